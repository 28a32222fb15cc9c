import jax
import numpy as np
import pytest

from fgis.distances import DISTANCES
from fgis.retrieval import ranks as module
from fgis.retrieval.ranks import count_ranks
from fgis.retrieval.search import prepare_gallery
from tests.retrieval.test_search import one_by_one


def data(seed=0, n=300, d=8):
    """A third of the images are duplicates of others, two are zero."""
    rng = np.random.default_rng(seed)
    x = np.abs(rng.normal(size=(n, d))).astype(np.float32)
    x[rng.permutation(n)[: n // 3]] = x[rng.integers(0, n, n // 3)]
    x[[5, 17]] = 0
    return x, rng.permuted(np.tile(np.arange(n), (n, 1)), axis=1)[:, :4]


@pytest.fixture(params=["host", "compiled"])
def backend(request, monkeypatch):
    if request.param == "compiled":
        monkeypatch.setattr(module.jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("distance", DISTANCES)
def test_ranks_are_places_in_the_sorted_list(distance, backend):
    x, members = data()
    members[7, 2] = -1
    queries, members = x[:60], members[:60]
    ranks = count_ranks(queries, x, members, distance)
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


def test_ties_go_to_the_lowest_place(backend):
    gallery = np.array([[1.0], [0], [1], [1], [4]], np.float32)
    members = np.array([[2, 4, -1], [0, 2, -1], [1, -1, -1], [0, 2, 3]])
    ranks = count_ranks(np.zeros((4, 1), np.float32), gallery, members, "euclidean")
    assert ranks.tolist() == [[2, 4, -1], [1, 2, -1], [0, -1, -1], [1, 2, 3]]


def test_an_excluded_image_counts_nowhere(backend):
    gallery = np.array([[1.0], [0], [1], [1], [4]], np.float32)
    members = np.array([[2, 4], [2, 4], [2, 4], [3, -1]])
    excluded = np.array([0, 1, -1, 2])
    ranks = count_ranks(np.zeros((4, 1), np.float32), gallery, members, "euclidean", excluded)
    assert ranks.tolist() == [[1, 3], [1, 3], [2, 4], [2, -1]]
    ranks = count_ranks(np.zeros((1, 1), np.float32), gallery[:3], np.array([[2]]), "euclidean", np.array([0]))
    assert ranks.tolist() == [[1]]


def test_duplicates_are_adjacent_wherever_they_are(backend):
    """The product that scores them is the same for equal vectors, at any place of a matrix of any size."""
    rng = np.random.default_rng(3)
    for n, d in ((1001, 33), (2 * 640 + 6, 256), (90, 1280)):
        half = rng.normal(size=(n // 2, d)).astype(np.float32)
        x = np.concatenate([half, half[::-1]])
        places = np.stack([np.arange(n // 2), len(x) - 1 - np.arange(n // 2)], axis=1)
        ranks = count_ranks(rng.normal(size=(n // 2, d)).astype(np.float32), x, places, "euclidean")
        assert (ranks[:, 1] == ranks[:, 0] + 1).all()


def test_a_zero_query_has_everything_at_one_cosine_distance(backend):
    x, _ = data()
    ranks = count_ranks(np.zeros((1, 8), np.float32), x[20:], np.array([[3, 90]]), "cosine")
    assert ranks.tolist() == [[3, 90]]


def test_a_gallery_on_several_devices_is_refused():
    prepared = prepare_gallery(np.eye(8, dtype=np.float32), devices=jax.devices()[:2])
    with pytest.raises(ValueError, match=r"^gallery: 2 shards found"):
        count_ranks(np.eye(8, dtype=np.float32), prepared, np.arange(8)[:, None])


def test_the_host_counts_where_there_is_no_accelerator():
    assert jax.default_backend() == "cpu"  # so that the parameter "host" above is what it says
