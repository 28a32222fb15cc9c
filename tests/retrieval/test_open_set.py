import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fgis.retrieval.open_set import auroc, choose_threshold, fpr_at_tpr, nearest_known_and_unknown, open_set

KNOWN = np.array([0.1, 0.2, 0.2, 0.9])
UNKNOWN = np.array([0.2, 0.5, 0.7, 0.8, 1.0])


def test_auroc_by_hand_and_by_scikit_learn():
    # .1 beats 5, each .2 beats 4 and ties with 1, .9 beats 1: (5 + 4.5 + 4.5 + 1) / 20.
    assert auroc(KNOWN, UNKNOWN) == pytest.approx(15 / 20)
    rng = np.random.default_rng(0)
    known, unknown = rng.integers(0, 30, 200) / 7, rng.integers(5, 40, 151) / 7
    labels = np.repeat([1, 0], [200, 151])
    assert auroc(known, unknown) == pytest.approx(roc_auc_score(labels, -np.concatenate([known, unknown])))


def test_weights_count_as_copies_do():
    rng = np.random.default_rng(1)
    times = rng.integers(0, 4, 4), rng.integers(0, 4, 5)
    copies = np.repeat(KNOWN, times[0]), np.repeat(UNKNOWN, times[1])
    for function in (auroc, fpr_at_tpr):
        weighted = function(KNOWN, UNKNOWN, tuple(np.stack([np.ones(len(t)), t]) for t in times))
        np.testing.assert_allclose(weighted, [function(KNOWN, UNKNOWN), function(*copies)])


def test_false_alarms_at_a_share_of_the_known():
    assert fpr_at_tpr(KNOWN, UNKNOWN) == pytest.approx(4 / 5)  # all four are needed: .9 accepts four unknown ones
    assert fpr_at_tpr(KNOWN, UNKNOWN, tpr=0.75) == pytest.approx(1 / 5)  # .2, where the tie is accepted too
    assert fpr_at_tpr(KNOWN, UNKNOWN, tpr=0.25) == 0


@pytest.mark.parametrize(("share", "accepted"), [(0.0, 0), (0.19, 0), (0.2, 1), (0.5, 2), (0.99, 4), (1.0, 5)])
def test_a_threshold_accepts_as_many_as_it_may(share, accepted):
    threshold = choose_threshold(UNKNOWN, share)
    assert (threshold >= UNKNOWN).sum() == accepted


def test_thresholds_at_ties_and_without_scores():
    tied = np.array([0.3, 0.3, 0.3, 0.6])
    assert (tied <= choose_threshold(tied, 0.5)).sum() == 0  # two of the three may, but they come together
    assert (tied <= choose_threshold(tied, 0.75)).sum() == 3
    assert choose_threshold(np.array([]), 0.1) == np.inf
    assert choose_threshold(np.array([np.nan, 0.5]), 0.1) < 0.5


def test_a_query_is_scored_as_known_and_as_unknown():
    embeddings = np.array([[0.0], [1], [1.5], [5], [5.5], [9]], np.float32)
    labels = np.array([4, 4, 7, 7, 8, 9])
    rows = np.arange(6)
    known, right, unknown = nearest_known_and_unknown(embeddings, labels, rows, rows, "euclidean")
    np.testing.assert_array_equal(known, [1, 0.5, 0.5, 0.5, np.nan, np.nan])  # objects 8 and 9 have one image
    assert right[:4].tolist() == [True, False, False, False]
    np.testing.assert_array_equal(unknown, [1.5, 0.5, 0.5, 0.5, 0.5, 3.5])
    known, right, unknown = nearest_known_and_unknown(embeddings, labels, rows[:2], rows[:2], "euclidean")
    assert (known.tolist(), right.tolist(), unknown.tolist()) == ([1, 1], [True, True], [np.inf, np.inf])


def test_thresholds_come_from_other_objects():
    """Two halves whose unknown scores lie apart: at their own thresholds false alarms would be exactly that share."""
    rng = np.random.default_rng(8)
    objects = np.repeat(np.arange(40), 5)
    unknown = rng.random((1, 200)) + 1.0
    known, right = np.full((1, 200), 1.05), np.ones((1, 200), bool)
    right[0, :50] = False
    found = open_set(known, right, unknown, objects, (0.1,), resamples=200)
    assert found["far@10"]["mean"] == pytest.approx(0.1, abs=0.05)
    assert found["far@10"]["mean"] != pytest.approx(0.1, abs=1e-9)
    assert found["dir@10far"]["mean"] == pytest.approx(0.75)  # a quarter is accepted, but with the wrong object nearest
    low, high = found["dir@10far"]["ci95"]
    assert low < 0.75 < high
    assert high - low > 0.15  # ten of forty objects: images of one come together


def test_perfect_and_useless_scores():
    objects = np.repeat(np.arange(10), 4)
    far = open_set(np.zeros((2, 40)), np.ones((2, 40), bool), np.ones((2, 40)), objects, resamples=50)
    assert {name: value["mean"] for name, value in far.items()} == {
        "auroc": 1, "fpr@95tpr": 0, "dir@1far": 1, "far@1": 0, "dir@10far": 1, "far@10": 0,
    }  # fmt: skip
    same = open_set(np.ones((1, 40)), np.ones((1, 40), bool), np.ones((1, 40)), objects, resamples=50)
    assert (same["auroc"]["mean"], same["fpr@95tpr"]["mean"], same["dir@10far"]["mean"]) == (0.5, 1, 0)
    nothing = open_set(np.full((1, 4), np.nan), np.zeros((1, 4), bool), np.ones((1, 4)), np.arange(4), resamples=9)
    assert np.isnan(nothing["auroc"]["mean"])
    assert np.isnan(nothing["dir@1far"]["ci95"]).all()


def test_two_thousand_draws_of_a_thousand_queries_agree_with_drawing_one_by_one():
    rng = np.random.default_rng(5)
    objects = np.repeat(np.arange(50), 4)
    known, unknown = rng.normal(size=(1, 200)), rng.normal(1, 1, size=(1, 200))
    found = open_set(known, np.ones((1, 200), bool), unknown, objects, resamples=500, seed=3)["auroc"]
    slow = []
    for _ in range(500):
        drawn = np.concatenate([np.flatnonzero(objects == o) for o in rng.integers(0, 50, 50)])
        slow.append(auroc(known[0, drawn], unknown[0, drawn]))
    np.testing.assert_allclose(found["ci95"], np.percentile(slow, [2.5, 97.5]), atol=0.02)


def test_weights_in_float32_give_the_same_bits(monkeypatch):
    """Sums of whole numbers are exact in both kinds, and shares are divided in float64."""
    rng = np.random.default_rng(0)
    known, unknown = rng.integers(0, 30, (2, 60)) / 10, rng.integers(5, 40, (2, 60)) / 10  # with ties
    known[0, 3] = np.nan
    found = open_set(known, known < 1.5, unknown, np.arange(60) // 4, resamples=40)
    monkeypatch.setattr("fgis.retrieval.open_set.EXACT", 0)
    assert open_set(known, known < 1.5, unknown, np.arange(60) // 4, resamples=40) == found
