"""Learnt re-ranking against plain loops: what is read of two neighbourhoods, what is learnt, and the new order."""

import numpy as np
import pytest

from experiments.learnt_reranking import NAMES, Weights, learn_weights, pair_features, pairs_of, reorder
from fgis.retrieval.first_search import first_search
from fgis.retrieval.measures import to_unit


@pytest.fixture
def points():
    """Twelve directions in four groups of three."""
    rng = np.random.default_rng(0)
    return to_unit((rng.normal(size=(4, 6)).repeat(3, axis=0) + 0.7 * rng.normal(size=(12, 6))).astype(np.float32))


def test_features_by_loops(points):
    found = pair_features(first_search(points, points, 5))
    cosines = points @ points.T
    lists = [[i, *sorted((j for j in range(12) if j != i), key=lambda j, i=i: -cosines[i, j])] for i in range(12)]
    near = [one[1:4] for one in lists]
    dense = [np.mean([cosines[i, j] for j in near[i]]) for i in range(12)]
    assert found.shape == (12, 5, len(NAMES))
    for query in range(12):
        for place, candidate in enumerate(lists[query][:5]):
            shared = [
                len({*lists[query][:k]} & {*lists[candidate][:k]}) / len({*lists[query][:k]} | {*lists[candidate][:k]})
                for k in (4, 8)
            ]
            expected = [
                cosines[query, candidate], np.log2(1 + place), np.log2(1 + lists[candidate].index(query)), *shared,
                cosines[query, candidate] - (dense[query] + dense[candidate]) / 2,
                np.mean([cosines[j, candidate] for j in near[query]]),
                np.mean([cosines[j, query] for j in near[candidate]]),
            ]  # fmt: skip
            np.testing.assert_allclose(found[query, place], expected, atol=1e-5)


def test_the_regression_is_at_its_minimum():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(400, 3)) * [1, 10, 0.1] + [0, 5, 1]
    same = features[:, 0] + rng.normal(size=400) > 0.3
    learnt = learn_weights(features, same)
    z = (features - learnt.mean) / learnt.scale
    y = np.where(same, 1, -1)

    def loss(slopes, intercept):
        return np.logaddexp(0, -y * (z @ slopes + intercept)).sum() + 1e-3 * len(z) * (slopes**2).sum() / 2

    best = loss(learnt.slopes, learnt.intercept)
    for step in (*np.eye(3) * 1e-2, *np.eye(3) * -1e-2):
        assert loss(learnt.slopes + step, learnt.intercept) > best
    assert min(loss(learnt.slopes, learnt.intercept + step) for step in (-1e-2, 1e-2)) > best
    assert learnt.slopes[0] > 1 > abs(learnt.slopes[1:]).max()


def test_pairs_are_of_two_images_and_of_the_rows_that_are_asked_for(points):
    first, labels = first_search(points, points, 5), np.repeat(np.arange(4), 3)
    features, same = pairs_of(first, labels, np.array([2, 7]))
    places = first.neighbours.rows[[2, 7], 1:]
    np.testing.assert_array_equal(features, pair_features(first)[[2, 7], 1:].reshape(8, -1))
    np.testing.assert_array_equal(same, (labels[places] == [[0], [2]]).ravel())
    assert len(pairs_of(first, labels)[0]) == 12 * 4


def test_candidates_by_their_odds_behind_the_image_itself(points):
    first = first_search(points, points, 5)
    turned = Weights(np.zeros(8), np.ones(8), np.array([-1.0, *np.zeros(7)]), 0.0)  # by ascending cosine
    found = reorder(first, turned)
    rows = first.neighbours.rows
    np.testing.assert_array_equal(found.rows, np.concatenate([rows[:, :1], rows[:, :0:-1]], axis=1))
    assert np.all(found.distances[:, 0] == -np.inf)
    assert np.all(np.diff(found.distances[:, 1:], axis=1) >= 0)
