import numpy as np
import pytest

from fgis.distances import DISTANCES, pairwise_distances
from fgis.retrieval import search as module
from fgis.retrieval.search import search
from fgis.types import UserError

RNG = np.random.default_rng(0)
GALLERY = np.abs(RNG.normal(size=(40, 6))).astype(np.float32)
QUERIES = np.abs(RNG.normal(size=(11, 6))).astype(np.float32)


@pytest.mark.parametrize("distance", DISTANCES)
def test_search_is_a_stable_sort_of_the_distances(distance):
    distances = np.asarray(pairwise_distances(QUERIES, GALLERY, distance))
    found = search(QUERIES, GALLERY, 7, distance)
    order = np.argsort(distances, axis=1, kind="stable")[:, :7]
    np.testing.assert_array_equal(found.rows, order)
    np.testing.assert_allclose(found.distances, np.take_along_axis(distances, order, axis=1), rtol=1e-5, atol=1e-6)


def test_ties_go_to_the_lowest_row_and_gallery_rows_are_named():
    gallery = np.array([[1.0, 0], [2, 0], [1, 0], [1, 0]], np.float32)
    found = search(np.array([[1.0, 0]], np.float32), gallery, 3, "euclidean", gallery_rows=np.array([4, 5, 8, 9]))
    assert found.rows.tolist() == [[4, 8, 9]]


def test_a_query_is_left_out_by_its_row_and_not_by_its_rank():
    gallery = np.array([[1.0, 0], [1, 0], [0, 1]], np.float32)  # rows 0 and 1 are duplicates
    found = search(gallery[1:2], gallery, 2, "euclidean", query_rows=np.array([1]))
    assert found.rows.tolist() == [[0, 2]]


def test_places_beyond_the_gallery_are_empty():
    found = search(GALLERY[:2], GALLERY[:3], 5, query_rows=np.array([0, 1]))
    assert (found.rows[:, 2:] == -1).all()
    assert np.isinf(found.distances[:, 2:]).all()
    assert sorted(found.rows[0, :2].tolist()) == [1, 2]


def test_the_answer_does_not_depend_on_the_block(monkeypatch):
    whole = search(QUERIES, GALLERY, 5)
    monkeypatch.setattr(module, "BLOCK", 4)
    np.testing.assert_array_equal(whole.rows, search(QUERIES, GALLERY, 5).rows)


def test_embeddings_that_are_not_finite_are_refused():
    bad = GALLERY.copy()
    bad[3, 1] = np.nan
    with pytest.raises(UserError, match="gallery embeddings: row 3 and 0 more"):
        search(QUERIES, bad, 3)
    with pytest.raises(UserError, match="query embeddings: row 3"):
        search(bad, GALLERY, 3)


def test_an_empty_gallery_is_refused():
    with pytest.raises(UserError, match="the gallery is empty"):
        search(QUERIES, GALLERY[:0], 3)
