"""The ranking of the page: hand-worked on the unit circle, where cosines are those of angles."""

import numpy as np
import pytest

from fgis.errors import UserError
from fgis.retrieval.search import search
from fgis.web.agreement import split_similarity
from fgis.web.query import PageQuery, read_page_query
from fgis.web.ranking import Selection, measure_rows, move_query, nearest_distance, rank_rows, similarity
from tests.web.galleries import gallery_of

DEGREES = [0, 10, 25, 40, 90, 180]


def circle(distance="cosine"):
    angles = np.radians(DEGREES)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return gallery_of([f"{'ab'[n % 2]}/{n}.jpg" for n in range(6)], points, lambda name: None, distance).search


def at(degrees):
    return np.array([[np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]], np.float32)


def test_all_rows_are_ranked_as_search_does():
    gallery = circle()
    found = rank_rows(gallery, at(12), None, None, 3, None)
    assert found.rows.tolist() == [[1, 0, 2]]
    assert found.distances.tolist() == search(at(12), gallery.prepared, 3).distances.tolist()


def test_the_own_row_is_left_out_and_the_list_is_full_all_the_same():
    gallery = circle()
    assert rank_rows(gallery, at(10), None, 1, 3, None).rows.tolist() == [[0, 2, 3]]
    assert rank_rows(gallery, at(10), Selection(np.array([1, 3, 5])), 1, 3, None).rows.tolist() == [[3, 5]]


def test_some_rows_are_ranked_with_the_distances_of_all():
    gallery, rows = circle(), np.array([0, 2, 4])
    found, everything = rank_rows(gallery, at(12), Selection(rows), None, 2, None), search(at(12), gallery.prepared, 6)
    assert found.rows.tolist() == [[0, 2]]
    of_all = dict(zip(everything.rows[0].tolist(), everything.distances[0].tolist()))
    assert found.distances[0].tolist() == [of_all[0], of_all[2]]
    assert rank_rows(gallery, at(12), Selection(np.empty(0, np.int64)), None, 2, None).rows.shape == (1, 0)


def test_a_reranking_sees_the_rows_that_are_searched_alone():
    seen = {}

    def backwards(first):
        seen.update(rows=first.gallery_rows.tolist(), embeddings=first.gallery.shape)
        return first.neighbours._replace(rows=first.neighbours.rows[:, ::-1])

    found = rank_rows(circle(), at(0), Selection(np.array([0, 2, 4])), None, 3, backwards)
    assert found.rows.tolist() == [[4, 2, 0]]
    assert seen == {"rows": [0, 2, 4], "embeddings": (3, 2)}


def test_the_nearest_distance_is_that_of_another_image():
    gallery = circle()
    assert nearest_distance(gallery, at(10), None) == pytest.approx(0, abs=1e-6)
    assert nearest_distance(gallery, at(10), 1) == pytest.approx(1 - np.cos(np.radians(10)), abs=1e-6)


def test_distances_are_measured_in_blocks():
    gallery = circle("euclidean")
    found = measure_rows(at(0), gallery.prepared, np.array([4, 0, 5]))
    assert found == pytest.approx([np.sqrt(2), 0, 2], abs=1e-6)


def test_marks_move_the_query_and_keep_its_length():
    query, up, left = 2 * at(0), at(90), at(180)
    none = np.empty((0, 2), np.float32)
    assert move_query(query, none, none) is query
    moved = move_query(query, up, none)  # (2, 0) + .75 (0, 1) = (2, .75), of length 2.136
    assert np.allclose(moved, [[4 / 2.136, 1.5 / 2.136]], atol=1e-3)
    assert np.linalg.norm(moved) == pytest.approx(2)
    moved = move_query(query, up, np.concatenate([left, up]))  # mean of the latter (-.5, .5): (2.125, .625)
    assert np.allclose(moved / moved[0, 0], [[1, 0.625 / 2.125]])
    assert move_query(np.array([[0.25, 0]]), none, at(0)).tolist() == [[0.25, 0]]  # all of it cancels out


def test_similarity_of_distances_that_are_no_cosine():
    assert similarity(np.array([0.0, 1.0]), "unit_euclidean", 1.0).tolist() == [1.0, 0.5]
    assert similarity(np.array([0.0, 2.0, -1.0]), "manhattan", 2.0).tolist() == [1.0, 0.5, 1.0]


def test_the_parts_of_a_similarity_sum_to_it():
    rng = np.random.default_rng(0)
    places, other = rng.random((3, 5, 8)), rng.random(8)
    places[..., 2] = 0  # a feature that is nowhere
    own = np.sqrt(places.mean(axis=(0, 1)))  # prepared as photos are
    parts = split_similarity(places, own, other)
    assert parts.shape == (3, 5)
    assert parts.sum() == pytest.approx(own @ other / np.linalg.norm(own) / np.linalg.norm(other), rel=1e-5)
    assert parts.min() >= 0


def test_a_query_is_read_from_an_address():
    parameters = [("image", "a/1.jpg"), ("crop", "1,2,30,40"), ("k", "5"), ("rerank", "none"), ("folder", "a/")]
    parameters += [("relevant", "x"), ("relevant", "y"), ("relevant", "x"), ("not_relevant", "z")]
    assert read_page_query(parameters, {}) == PageQuery(
        "a/1.jpg", "", (1, 2, 30, 40), 5, "", "", "", "a", ("x", "y"), ("z",)
    )


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ([], "image, picture, text: name one of them"),
        ([("image", "a"), ("picture", "b")], "image, picture, text: name one of them"),
        ([("image", "a"), ("k", "0")], "k: '0' found; write a whole number from 1 to 500"),
        ([("image", "a"), ("k", "1e9")], "k: '1e9' found"),
        ([("image", "a"), ("crop", "1,2,3")], "crop: not x,y,w,h"),
        ([("image", "a"), ("rerank", "difusion")], "rerank: no such method; .*diffusion"),
        ([("image", "a"), ("relevant", "x"), ("not_relevant", "x")], "'x' is in both"),
        ([("image", "a"), *[("relevant", str(n)) for n in range(101)]], "more than 100 marks"),
    ],
)
def test_a_query_that_cannot_be_is_refused(parameters, line):
    with pytest.raises(UserError, match=line):
        read_page_query(parameters, {"diffusion": None})
