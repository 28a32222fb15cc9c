"""Expected values are worked out by hand, on relevance that is not symmetric."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fgis.base import Neighbours, Protocol
from fgis.retrieval import metrics
from fgis.retrieval.evaluate import score_neighbours

# Query 0: relevant images at ranks 2, 3 and 6 of 3; query 1: at rank 1 of 2 (the other is not retrieved); query 2: none
# exist.
RELEVANCE = np.array([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
TOTALS = np.array([3, 2, 0])

# 0-based ranks of the same images in the whole ranking; of query 1, the other one is the last of 20.
RANKS = np.array([[1, 2, 5], [0, 19, 99], [99, 99, 99]])
# Grades of query 0: coarse, fine, fine, none; of query 1: fine, then nothing, though 1 fine and 2 coarse ones exist.
GRADES, GRADED = np.array([[1, 2, 2, 0], [2, 0, 0, 0], [0, 0, 0, 0]]), np.array([[2, 3], [2, 2], [0, 0]])
LOG = np.log2(np.arange(2, 8))  # of 1 + rank
VOTES = np.array([[7, 5, 5, 9], [2**60, 2**60 + 1, 2**60 + 1, 2**60], [3, 4, 4, 4]])
DISTANCES = np.array([[0.1, 0.2, 0.3, np.inf], [0.1, 0.2, 0.3, 0.4], [0.1, 0.9, 0.95, 1.0]])
LABELS = np.array([5, 2**60, 3])

EXPECTED = {
    "ns_score": [2, 1, np.nan],
    "accuracy_top4": [0.5, 0.25, np.nan],
    "recall@1": [0, 1, np.nan],
    "recall@2": [1, 1, np.nan],
    "precision@3": [2 / 3, 1 / 3, np.nan],
    "r_precision": [2 / 3, 1 / 2, np.nan],
    "map@r": [(1 / 2 + 2 / 3) / 3, 1 / 2, np.nan],
    "mrr@2": [1 / 2, 1, np.nan],
    "mrr@1": [0, 1, np.nan],
    "mrr": [1 / 2, 1, np.nan],
    "map": [(1 / 2 + 2 / 3 + 3 / 6) / 3, (1 + 2 / 20) / 2, np.nan],
    "map_trapezoid": [
        ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 5 + 3 / 6) / 2) / 3,
        ((1 + 1) / 2 + (1 / 19 + 2 / 20) / 2) / 2,
        np.nan,
    ],
    "ndcg@3": [
        (1 / LOG[0] + 3 / LOG[1] + 3 / LOG[2]) / (3 / LOG[0] + 3 / LOG[1] + 1 / LOG[2]),
        3 / LOG[0] / (3 / LOG[0] + 3 / LOG[1] + 1 / LOG[2]),
        np.nan,
    ],
    "ndcg@1": [1 / 3, 1, np.nan],
    "tied": [1, 0, 1],
    "knn@3": [1, 0, np.nan],  # two of three; two of three, against the query's label
    "knn@2": [0, 1, np.nan],  # a tie goes to the label of the nearest
    "knn_weighted@4": [0, 1, np.nan],  # weights 1, 1/2, 0; and 1 + 0 against 2/3 + 1/3: a tie again
}
READ = {
    "relevance": (RELEVANCE, TOTALS),
    "ranks": (RANKS, TOTALS),
    "grades": (GRADES, GRADED),
    "tied": (np.array([True, False, True]),),
    "votes": (VOTES, DISTANCES, LABELS, TOTALS),
}


def test_every_metric_has_a_hand_worked_value():
    known = {key.removesuffix("@k") + "@" * kind.takes_k for key, kind in metrics.METRICS.items()}
    assert {name if name in metrics.METRICS else name.rstrip("0123456789") for name in EXPECTED} == known


@pytest.mark.parametrize("name", EXPECTED)
def test_metric_by_hand(name):
    metric = metrics.find_metric(name, 3)
    np.testing.assert_allclose(metric.function(*READ[metric.reads]), EXPECTED[name])


def test_the_two_rules_of_average_precision_differ_as_published():
    """Ranks 0, 1, 3: the example of the conventions."""
    ranks, totals = np.array([[0, 1, 3]]), np.array([3])
    assert metrics.average_precision(ranks, totals)[0] == pytest.approx(0.9167, abs=5e-5)
    assert metrics.average_precision_trapezoid(ranks, totals)[0] == pytest.approx(0.9028, abs=5e-5)


@pytest.mark.parametrize(("name", "includes_query", "depth"), [
    ("ns_score", True, 4), ("accuracy_top4", True, 4), ("recall@10", False, 10), ("precision@2", False, 2),
    ("r_precision", False, 7), ("map@r", False, 7), ("map", False, 0), ("mrr@5", False, 5), ("ndcg@30", False, 30),
    ("knn@9", False, 9),
])  # fmt: skip
def test_a_metric_knows_its_depth_and_whether_the_query_counts(name, includes_query, depth):
    metric = metrics.find_metric(name, 7)
    assert (metric.includes_query, metric.depth) == (includes_query, depth)


@pytest.mark.parametrize(
    "name",
    [
        "recal@1",
        "recall",
        "recall@0",
        "recall@x",
        "ns_score@4",
        "map@5",
        "ndcg",
        "mrr@k",
        "knn@",
        "",
        "recall@-1",
        "recall@1.5",
        "recall@1" + 18 * "0",
    ],
)
def test_an_unknown_metric_is_named(name):
    with pytest.raises(ValueError, match=f"^'{name}' is no metric; .*known: accuracy_top4, knn@K, "):
        metrics.find_metric(name)


# Property tests: 7 queries, a gallery of 12 with distinct distances; one shape, so that nothing is compiled again.
K = (1, 3, 5, 40)
NAMES = [
    "r_precision", "map@r", "mrr", "map", "map_trapezoid",
    *(f"{base}@{k}" for k in K for base in ("recall", "precision", "mrr", "ndcg", "knn")),
]  # fmt: skip
CASES = st.tuples(
    arrays(np.int64, 7, elements=st.integers(0, 3)),
    arrays(np.int64, 12, elements=st.integers(0, 3)),
    arrays(np.int64, 4, elements=st.integers(0, 1)),  # the coarse label of each label
    st.integers(0, 2**32 - 1),
)


def score(labels, own, coarse, distances):
    """Every metric of queries that are no members of the gallery, from neighbours and whole rankings."""
    rows = np.arange(12) + 7
    order = np.argsort(distances, axis=1)
    all_labels = np.concatenate([own, labels])
    neighbours = Neighbours(rows[order], np.take_along_axis(distances, order, axis=1))
    found = score_neighbours(neighbours, all_labels, Protocol(np.arange(7), rows, 12), NAMES, coarse[all_labels])
    relevant = labels[order] == own[:, None]
    ranks = np.argsort(~relevant, axis=1, kind="stable")
    for name in ("mrr", "map", "map_trapezoid"):
        found[name] = metrics.find_metric(name).function(ranks, relevant.sum(axis=1))
    return found


def reference(labels, own, coarse, distances):
    """The definitions, one query at a time, in plain Python."""
    found = {name: [] for name in NAMES}
    for q, label in enumerate(own):
        ranked = labels[np.argsort(distances[q])]
        hits = [one == label for one in ranked]
        total = sum(hits)
        ranks = [i for i, hit in enumerate(hits) if hit]
        precisions = [sum(hits[: i + 1]) / (i + 1) for i in range(12)]
        grades = [int(one == label) + int(coarse[one] == coarse[label]) for one in ranked]
        gain = lambda grades, k: sum((2**grade - 1) / np.log2(2 + i) for i, grade in enumerate(grades[:k]))
        one = {
            "r_precision": lambda: sum(hits[:total]) / total,
            "map@r": lambda: sum(precisions[i] for i in ranks if i < total) / total,
            "mrr": lambda: 1 / (1 + ranks[0]),
            "map": lambda: sum(precisions[i] for i in ranks) / total,
            "map_trapezoid": lambda: sum((precisions[i] + (precisions[i - 1] if i else 1)) / 2 for i in ranks) / total,
        }
        for k in K:
            one[f"recall@{k}"] = lambda k=k: float(any(hits[:k]))
            one[f"precision@{k}"] = lambda k=k: sum(hits[:k]) / k
            one[f"mrr@{k}"] = lambda k=k: 1 / (1 + ranks[0]) if ranks[0] < k else 0
            votes = [list(ranked[:k]).count(other) for other in ranked[:k]]
            one[f"knn@{k}"] = lambda votes=votes: float(ranked[np.argmax(votes)] == label)
        for name, value in one.items():
            found[name].append(value() if total else np.nan)
        for k in K:
            best = gain(sorted(grades, reverse=True), k)
            found[f"ndcg@{k}"].append(gain(grades, k) / best if best else np.nan)
    return found


@settings(derandomize=True, max_examples=30, deadline=None)
@given(CASES)
def test_metrics_agree_with_their_definitions_whatever_the_order_of_the_gallery(case):
    own, labels, coarse, seed = case
    rng = np.random.default_rng(seed)
    distances = np.stack([rng.permutation(12) for _ in own]) / 12
    found = score(labels, own, coarse, distances)
    missing = ~(labels == own[:, None]).any(axis=1)
    for name, expected in reference(labels, own, coarse, distances).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-12, err_msg=name)
        valued = found[name][~np.isnan(found[name])]
        assert ((valued >= 0) & (valued <= 1 + 1e-12)).all(), name
        if not name.startswith("ndcg"):  # whose grades include those of the coarse class
            np.testing.assert_array_equal(np.isnan(found[name]), missing, err_msg=name)
    order = rng.permutation(12)
    for name, values in score(labels[order], own, coarse, distances[:, order]).items():
        np.testing.assert_array_equal(values, found[name], err_msg=name)


def test_longer_lists_of_other_queries_change_no_bit():
    rng = np.random.default_rng(0)
    relevance, totals = rng.random((40, 300)) < 0.3, rng.integers(1, 300, 40)
    ranks = np.sort(rng.permuted(np.tile(np.arange(900), (40, 1)), axis=1)[:, :300], axis=1)
    beyond = ((0, 0), (0, 777))
    wider = np.pad(relevance, beyond, constant_values=True)
    np.testing.assert_array_equal(metrics.map_at_r(relevance, totals), metrics.map_at_r(wider, totals))
    behind = np.pad(ranks, beyond, constant_values=10**6)
    for metric in (metrics.average_precision, metrics.average_precision_trapezoid):
        np.testing.assert_array_equal(metric(ranks, totals), metric(behind, totals))
