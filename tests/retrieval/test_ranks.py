import jax
import numpy as np
import pytest

from fgis.distances import DISTANCES
from fgis.retrieval import ranks as module
from fgis.retrieval.measures import MEASURES
from fgis.retrieval.ranks import count_ranks
from tests.retrieval.test_search import one_by_one


def data(seed=0, n=300, d=8):
    """A third of the images are duplicates of others, two are zero."""
    rng = np.random.default_rng(seed)
    x = np.abs(rng.normal(size=(n, d))).astype(np.float32)
    x[rng.permutation(n)[: n // 3]] = x[rng.integers(0, n, n // 3)]
    x[[5, 17]] = 0
    return x, rng.permuted(np.tile(np.arange(n), (n, 1)), axis=1)[:, :4]


@pytest.fixture(params=["host", "compiled"])
def way(request, monkeypatch):
    if request.param == "compiled":
        monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("distance", DISTANCES)
def test_ranks_are_places_in_the_sorted_list(distance, way):
    x, members = data()
    members[7, 2] = -1
    queries, members = x[:60], members[:60]
    ranks, tied = count_ranks(queries, x, members, distance)
    order, distances = one_by_one(queries, x, len(x), distance)
    for q in range(len(queries)):
        place = np.argsort(order[q])
        expected = np.where(members[q] >= 0, place[members[q]], -1)
        near = distances[q][place]
        for i, member in enumerate(members[q]):
            if member >= 0:  # products tell apart what differs by more than rounding
                low, high = (np.count_nonzero(near < near[member] + sign * 2e-5) for sign in (-1, 1))
                assert low <= ranks[q, i] < high
                if high - low == np.count_nonzero(near == near[member]):
                    assert ranks[q, i] == expected[i]
            else:
                assert ranks[q, i] == -1
    assert tied.any()


def test_ties_go_to_the_lowest_place_and_are_told(way):
    gallery = np.array([[1.0], [0], [1], [1], [4]], np.float32)
    members = np.array([[2, 4], [0, 2], [1, -1]])
    ranks, tied = count_ranks(np.zeros((3, 1), np.float32), gallery, members, "euclidean")
    assert ranks.tolist() == [[2, 4], [1, 2], [0, -1]]
    assert tied.tolist() == [True, True, False]
    members = np.array([[0, 2, 3]])
    ranks, tied = count_ranks(np.zeros((1, 1), np.float32), gallery, members, "euclidean")
    assert (ranks.tolist(), tied.tolist()) == ([[1, 2, 3]], [False])  # they tie among themselves alone


def test_an_image_that_is_left_out_counts_nowhere(way):
    gallery = np.array([[1.0], [0], [1], [1], [4]], np.float32)
    members = np.array([[2, 4], [2, 4], [2, 4], [3, -1]])
    left_out = np.array([0, 1, -1, 2])
    ranks, tied = count_ranks(np.zeros((4, 1), np.float32), gallery, members, "euclidean", left_out)
    assert ranks.tolist() == [[1, 3], [1, 3], [2, 4], [2, -1]]
    assert tied.tolist() == [True, True, True, True]
    ranks, tied = count_ranks(np.zeros((1, 1), np.float32), gallery[:3], np.array([[2]]), "euclidean", np.array([0]))
    assert (ranks.tolist(), tied.tolist()) == ([[1]], [False])


def test_duplicates_stand_side_by_side_wherever_they_lie(way):
    """The product that scores them is the same for equal vectors, at any place of a matrix of any size."""
    rng = np.random.default_rng(3)
    for n, d in ((1001, 33), (2 * 640 + 6, 256), (90, 1280)):
        half = rng.normal(size=(n // 2, d)).astype(np.float32)
        x = np.concatenate([half, half[::-1]])
        places = np.stack([np.arange(n // 2), len(x) - 1 - np.arange(n // 2)], axis=1)
        ranks, _ = count_ranks(rng.normal(size=(n // 2, d)).astype(np.float32), x, places, "euclidean")
        assert (ranks[:, 1] == ranks[:, 0] + 1).all()


def test_a_zero_query_has_everything_at_one_cosine_distance(way):
    x, _ = data()
    ranks, tied = count_ranks(np.zeros((1, 8), np.float32), x[20:], np.array([[3, 90]]), "cosine")
    assert (ranks.tolist(), tied.tolist()) == ([[3, 90]], [True])


def test_every_device_has_the_same_words():
    assert jax.default_backend() == "cpu"
    assert set(MEASURES) == set(DISTANCES)
