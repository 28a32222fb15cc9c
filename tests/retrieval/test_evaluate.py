import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import KNeighborsClassifier

from fgis.base import Protocol, RunPlan
from fgis.retrieval import stored
from fgis.retrieval.evaluate import (
    Criteria,
    evaluate,
    evaluate_runs,
    protocol,
    score_neighbours,
)
from fgis.retrieval.folds import object_folds, photo_folds
from fgis.retrieval.intervals import compare
from fgis.retrieval.rerank import average_query_expansion
from fgis.retrieval.search import search

METRICS = ("ns_score", "accuracy_top4", "recall@1", "recall@3", "r_precision", "map@r")


def shuffled(classes=9, seed=0):
    """Classes of 1 to 5 images in shuffled order, with one exact duplicate across classes."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes) * 7 + 2**31, 1 + np.arange(classes) % 5)
    labels = labels[rng.permutation(len(labels))]
    embeddings = rng.normal(size=(len(labels), 4)) + 1.5 * rng.normal(size=(classes, 4))[(labels - 2**31) // 7]
    embeddings[3] = embeddings[8]
    return embeddings.astype(np.float32), labels


def by_hand(embeddings, labels):
    """The definitions, query by query, with scikit-learn's distances."""
    distances = euclidean_distances(embeddings.astype(np.float64))
    np.fill_diagonal(distances, 0)
    found = {name: [] for name in METRICS}
    for q, row in enumerate(distances):
        order = sorted(range(len(labels)), key=lambda g: (round(row[g], 6), g))
        hits = [labels[g] == labels[q] for g in order]
        others = [labels[g] == labels[q] for g in order if g != q]
        r = sum(others)
        found["ns_score"].append(sum(hits[:4]) if r else np.nan)
        found["accuracy_top4"].append(sum(hits[:4]) / 4 if r else np.nan)
        found["recall@1"].append(float(any(others[:1])) if r else np.nan)
        found["recall@3"].append(float(any(others[:3])) if r else np.nan)
        found["r_precision"].append(sum(others[:r]) / r if r else np.nan)
        precisions = [sum(others[: i + 1]) / (i + 1) * others[i] for i in range(r)]
        found["map@r"].append(sum(precisions) / r if r else np.nan)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_evaluate_agrees_with_the_definitions(seed):
    embeddings, labels = shuffled(seed=seed)
    found = evaluate(embeddings, labels, protocol(labels, METRICS), METRICS, "euclidean")
    for name, expected in by_hand(embeddings, labels).items():
        np.testing.assert_allclose(found[name], expected, err_msg=name)


WHOLE = ("map", "mrr")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("entries", [1, 1 << 22], ids=["query by query", "at once"])
def test_metrics_over_the_whole_ranking_agree_with_scikit_learn(seed, entries, monkeypatch):
    monkeypatch.setattr(stored, "ENTRIES", entries)
    embeddings, labels = shuffled(seed=seed)
    embeddings[3] += 1e-3  # scikit-learn averages over ties
    found = evaluate(embeddings, labels, protocol(labels, WHOLE), WHOLE, "euclidean")
    distances = euclidean_distances(embeddings.astype(np.float64))
    for q, row in enumerate(distances):
        others = np.arange(len(labels)) != q
        relevant = labels[others] == labels[q]
        expected = average_precision_score(relevant, -row[others]) if relevant.any() else np.nan
        assert found["map"][q] == pytest.approx(expected, abs=1e-6, nan_ok=True)
        order = np.argsort(row[others])
        first = 1 / (1 + np.argmax(relevant[order])) if relevant.any() else np.nan
        assert found["mrr"][q] == pytest.approx(first, nan_ok=True)


def test_whole_rankings_of_parts_leave_the_query_out_by_its_row():
    """Query 2 (label 7) is a duplicate of row 0 (label 7) and ties with it; row 3 is not in the gallery."""
    embeddings = np.array([[1.0], [5], [1], [1.5], [2], [1]], np.float32)
    labels = np.array([7, 7, 7, 7, 8, 8])
    parts = Protocol(np.array([2, 3]), np.array([0, 1, 2, 4, 5]), depth=0)
    found = evaluate(embeddings, labels, parts, WHOLE, "euclidean")
    # Query 2: others in order rows 0, 5 (ties by row), 4, 1. Query 3: rows 0, 2, 4, 5 all at .5, then 1.
    np.testing.assert_allclose(found["map"], [(1 + 2 / 4) / 2, (1 + 1 + 3 / 5) / 3])
    np.testing.assert_array_equal(found["mrr"], [1, 1])


def test_coarse_labels_grade_the_neighbours():
    embeddings = np.array([[0.0], [1], [2], [3], [9]], np.float32)
    labels, coarse = np.array([0, 1, 0, 2, 3]), np.array([5, 5, 5, 6, 6])
    found = evaluate(embeddings, labels, protocol(labels, ("ndcg@2",)), ("ndcg@2",), "euclidean", coarse)["ndcg@2"]
    second = 1 / np.log2(3)
    # Query 0: coarse, fine; ideal fine, coarse. Query 3: none (row 2), none (row 1); of its coarse class is row 4.
    assert found[0] == pytest.approx((1 + 3 * second) / (3 + second))
    assert found[3] == 0
    assert found[4] == pytest.approx(1)
    alone = evaluate(embeddings, labels, protocol(labels, ("ndcg@2",)), ("ndcg@2",), "euclidean")["ndcg@2"]
    np.testing.assert_allclose(alone, [second, np.nan, 0, np.nan, np.nan], atol=1e-12)  # row 0 is query 2's third


def test_neighbours_vote():
    embeddings, labels = shuffled(seed=4)
    names = ("knn@3",)
    found = evaluate(embeddings, labels, protocol(labels, names), names, "euclidean")["knn@3"]
    for q in range(len(labels)):
        others = np.arange(len(labels)) != q
        if not (labels[others] == labels[q]).any():
            assert np.isnan(found[q])
            continue
        peer = KNeighborsClassifier(3).fit(embeddings[others], labels[others])
        near = labels[others][peer.kneighbors(embeddings[q : q + 1])[1][0]]
        if len(set(near)) < 3:  # its ties go to the lowest label, ours to the nearest
            assert found[q] == (peer.predict(embeddings[q : q + 1])[0] == labels[q])
        else:
            assert found[q] == (near[0] == labels[q])


def test_queries_and_gallery_may_be_parts():
    embeddings, labels = shuffled()
    query_rows, gallery_rows = np.array([1, 4, 6]), np.array([0, 2, 3, 5, 7, 8, 9])
    found = evaluate(embeddings, labels, Protocol(query_rows, gallery_rows, 4), ("recall@1",), "euclidean")["recall@1"]
    distances = euclidean_distances(embeddings[query_rows], embeddings[gallery_rows])
    for value, query, row in zip(found, query_rows, distances, strict=True):
        relevant = labels[gallery_rows] == labels[query]
        assert np.isnan(value) if not relevant.any() else value == relevant[np.argmin(row)]


def test_a_k_beyond_the_gallery_gives_the_value_over_the_gallery():
    """And takes no memory beyond it: lists of a billion neighbours would not fit."""
    embeddings, labels = shuffled()
    n, far = len(labels), 10**9
    names = [f"{base}@{{}}" for base in ("recall", "mrr", "ndcg", "knn", "knn_weighted", "precision")]
    beyond, whole = [[name.format(k) for name in names] for k in (far, n)]
    assert protocol(labels, beyond).depth == n
    found = evaluate(embeddings, labels, protocol(labels, beyond), beyond, "euclidean")
    expected = evaluate(embeddings, labels, protocol(labels, whole), whole, "euclidean")
    for one, other in zip(beyond[:-1], whole[:-1]):
        np.testing.assert_allclose(found[one], expected[other], err_msg=one)
    np.testing.assert_allclose(found[beyond[-1]] * far, expected[whole[-1]] * n)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_split_objects_evenly_and_never_an_object(folds):
    labels = np.repeat(np.arange(17), 3)[np.random.default_rng(0).permutation(51)]
    found = object_folds(labels, folds, seed=1)
    per_object = [set(found[labels == label]) for label in range(17)]
    assert all(len(own) == 1 for own in per_object)
    sizes = np.bincount([own.pop() for own in per_object], minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    assert (found != object_folds(labels, folds, seed=2)).any()


def test_runs_are_scored_on_the_fold_they_have_not_seen():
    labels = np.repeat(np.arange(4), 2)
    folds = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    perfect, useless = np.eye(4, dtype=np.float32)[labels], np.ones((8, 4), np.float32)
    plans = [RunPlan(5, -1), RunPlan(6, -1), RunPlan(5, 0), RunPlan(6, 0), RunPlan(5, 1), RunPlan(6, 1)]
    embeddings = [useless, perfect, perfect, perfect, useless, perfect]
    found = evaluate_runs(lambda run: embeddings[run], plans, folds, labels, Criteria(("r_precision",), "euclidean"))
    # All distances tie in a useless run, so rows 0 (and 1, for row 0) come first: only object 0 is ranked rightly.
    expected_useless = np.array([1, 1, 0, 0, 0, 0, 0, 0.0])
    np.testing.assert_array_equal(found["closed_set"]["r_precision"], [expected_useless, np.ones(8)])
    np.testing.assert_array_equal(
        found["unseen_objects"]["r_precision"], [np.where(folds == 0, 1, expected_useless), np.ones(8)]
    )
    # A list of one neighbour and the query leaves out others that tie with it: all eight queries of the useless run.
    ties = found["closed_set"].pop("tied")
    np.testing.assert_array_equal(ties, [np.ones(8), np.zeros(8)])
    report = compare({"trained": {**found["closed_set"], "tied": ties}}, labels, 8, 10, 0)
    assert report["tied"] == {"trained": 4}
    assert "tied" not in report["trained"]
    # Among unseen objects alone, a useless run ranks rightly the first object of its own fold: rows 2 and 3.
    np.testing.assert_array_equal(found["unseen_gallery"]["r_precision"], [[1, 1, 1, 1, 1, 1, 0, 0], np.ones(8)])


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_of_photos_split_every_object_and_leave_out_single_photos(folds):
    labels = np.concatenate([np.repeat(np.arange(9), 4), np.repeat(np.arange(9, 14), 2), [20, 21]])
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    found = photo_folds(labels, folds, seed=1)
    assert set(labels[found == -1]) == {20, 21}
    for label in range(14):
        sizes = np.bincount(found[labels == label], minlength=folds)
        assert sizes.max() - sizes.min() <= 1
        assert sizes.max() < sizes.sum()  # some of its photos are always seen
    sizes = np.bincount(found[found >= 0], minlength=folds)
    assert sizes.max() - sizes.min() <= 1
    assert (found == photo_folds(labels, folds, seed=1)).all()
    assert (found != photo_folds(labels, folds, seed=2)).any()


def test_new_photos_are_searched_among_those_that_the_head_has_seen():
    labels, points = np.array([3, 3, 3, 5, 5, 9]), np.array([[0.0], [1.0], [9.0], [2.0], [9.5], [0.1]], np.float32)
    photos, folds = np.array([0, 1, 1, 0, 1, -1]), np.zeros(6, int)
    plans = [RunPlan(0, 0, photos=True), RunPlan(0, 1, photos=True)]
    criteria = Criteria(("recall@1", "map@r"), "euclidean")
    found = evaluate_runs(lambda run: points, plans, folds, labels, criteria, photos)
    assert set(found) == {"new_photos"}
    # Fold 0: 0 and 2 among 1, 9, 9.5 and .1, which is the single photo of object 9, a distractor.
    # Fold 1: 1, 9 and 9.5 among 0, 2 and .1.
    np.testing.assert_array_equal(found["new_photos"]["recall@1"], [[0, 0, 0, 0, 1, np.nan]])
    # Of photo 0 the relevant ones have ranks 2 and 3: one of the first two places, with precision 1/2, over R = 2.
    np.testing.assert_allclose(found["new_photos"]["map@r"], [[0.25, 0, 0, 0, 1, np.nan]])


def test_one_class_only_has_defined_values():
    embeddings, labels = shuffled()[0], np.full(len(shuffled()[1]), 2**40)
    names = (*METRICS, "map", "map_trapezoid", "mrr", "ndcg@3", "knn@3", "knn_weighted@3")
    found = evaluate(embeddings, labels, protocol(labels, names), names, "cosine")
    for name in names:
        np.testing.assert_allclose(found[name], 4 if name == "ns_score" else 1, err_msg=name)


def test_classes_of_one_image_have_no_value():
    embeddings, labels = shuffled()[0], np.arange(len(shuffled()[1]))
    names = ("ns_score", "recall@1", "map", "mrr", "ndcg@3", "knn@3")
    found = evaluate(embeddings, labels, protocol(labels, names), names, "euclidean")
    for name in names:
        assert np.isnan(found[name]).all(), name


def test_a_lone_image_does_not_lower_the_score_of_two_perfect_objects():
    labels = np.array([0] * 4 + [1] * 4 + [2])
    embeddings = np.eye(3, dtype=np.float32)[labels]
    found = evaluate(embeddings, labels, protocol(labels, ["ns_score"]), ["ns_score"])
    np.testing.assert_array_equal(found["ns_score"], [4] * 8 + [np.nan])


def test_no_query_has_no_values():
    embeddings, labels = shuffled()
    nobody = Protocol(np.arange(0), np.arange(len(labels)), 4)
    found = evaluate(embeddings, labels, nobody, ("recall@1", "map", "ndcg@3", "knn@3"))
    assert all(values.shape == (0,) for values in found.values())


def test_lists_of_neighbours_are_scored_as_evaluate_scores_them():
    embeddings, labels = shuffled()
    names = (*METRICS, "knn@3", "ndcg@2", "tied")
    lists = protocol(labels, names)
    found = score_neighbours(search(embeddings, embeddings, lists.depth + 1), labels, lists, (*names, "map"))
    assert list(found) == list(names)  # a whole ranking is no list of neighbours
    for name, values in evaluate(embeddings, labels, lists, names).items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_reranked_lists_are_scored_and_whole_rankings_left_out():
    embeddings, labels = shuffled()
    names = ("map@r", "map")
    found = evaluate(embeddings, labels, protocol(labels, names), names, "cosine", None, average_query_expansion)
    assert list(found) == ["map@r"]
    first = evaluate(embeddings, labels, protocol(labels, names), names, "cosine")
    assert (found["map@r"] != first["map@r"])[np.isfinite(first["map@r"])].any()
