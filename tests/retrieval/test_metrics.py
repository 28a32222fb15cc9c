"""Expected values are worked out by hand, on relevance that is not symmetric."""

import numpy as np
import pytest

from fgis.errors import UserError
from fgis.retrieval import metrics

# Query 0: relatives at ranks 2, 3 and 6 of 3; query 1: at rank 1 of 2 (the other is not retrieved); query 2: none
# exist.
RELEVANCE = np.array([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
TOTALS = np.array([3, 2, 0])

# 0-based ranks of the same relatives in the whole ranking; of query 1, the other relative is the last of 20.
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
    "knn@3": [1, 0, np.nan],  # two of three; two of three, against the own label
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
    "name", ["recal@1", "recall", "recall@0", "recall@x", "ns_score@4", "map@5", "ndcg", "mrr@k", "knn@", ""]
)
def test_an_unknown_metric_is_named(name):
    with pytest.raises(UserError, match=f"'{name}' is no metric"):
        metrics.find_metric(name)
