"""Selections against a full sort: on the host and on a device, with groups of any size, with ties and without."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgis.retrieval import best_scores as module
from fgis.retrieval.best_scores import begin_selection, end_selection, group_factors
from fgis.retrieval.prepare import GROUP


def select(queries, vectors, depth, wanted, slack=0.0, *, offsets=None, distance="inner_product"):
    columns = len(vectors) + -len(vectors) % GROUP
    filled = np.zeros((columns, vectors.shape[1]), np.float32)
    filled[: len(vectors)] = vectors
    off = np.full(columns, np.inf, np.float32)
    off[: len(vectors)] = 0 if offsets is None else offsets
    off = jnp.asarray(off)
    pending = begin_selection(queries, jnp.asarray(filled), off, depth, distance)
    return end_selection(pending, off, wanted, np.full(len(queries), slack, np.float32))


def whole_numbers(seed, queries, entries, largest):
    """Products of whole numbers are exact, whatever computes them."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(-largest, largest + 1, (n, 8)).astype(np.float32) for n in (queries, entries))


@pytest.fixture(params=["host", "device"])
def where(request, monkeypatch):
    if request.param == "device":
        monkeypatch.setattr(module, "ON_HOST", ())


@pytest.mark.parametrize("entries", [70, 640, 1500, 5000])  # no groups, groups, groups of groups
@pytest.mark.parametrize("largest", [1, 1000])  # with many ties, and with hardly any
def test_the_best_scores_are_those_of_a_full_sort(entries, largest, where):
    queries, vectors = whole_numbers(entries, 9, entries, largest)
    offsets = np.random.default_rng(1).integers(0, 5, entries).astype(np.float32)
    scores = queries @ vectors.T - offsets
    least, places = select(queries, vectors, 12, 12, offsets=offsets)
    ordered = -np.sort(-scores, axis=1)
    np.testing.assert_array_equal(np.take_along_axis(scores, places, axis=1), ordered[:, :12])
    np.testing.assert_array_equal(least, ordered[:, 11])
    assert all(len(set(row)) == 12 for row in places.tolist())


def test_what_is_surely_behind_the_wanted_ones_is_left_out(where):
    """Scores 0, −1, −2, ...: behind the third best, slack 1.5 reaches one more, and the next bounds all others."""
    vectors = -np.arange(1500, dtype=np.float32)[:, None]
    least, places = select(np.ones((2, 1), np.float32), vectors, 12, 3, 1.5)
    assert places.tolist() == [[0, 1, 2, 3]] * 2
    assert least.tolist() == [-4, -4]
    least, places = select(np.ones((2, 1), np.float32), vectors, 12, 3, 100)
    assert places.shape == (2, 12)
    assert least.tolist() == [-11, -11]


def test_one_query_with_many_ties_does_not_spoil_the_others(where):
    queries, vectors = whole_numbers(3, 6, 5000, 1000)
    queries[2] = 0  # 5000 scores of 0
    least, places = select(queries, vectors, 12, 12)
    scores = queries @ vectors.T
    np.testing.assert_array_equal(np.take_along_axis(scores, places, axis=1).min(axis=1), least)
    np.testing.assert_array_equal(least, -np.sort(-scores, axis=1)[:, 11])


def test_groups_are_made_where_they_pay():
    assert GROUP % np.prod(module.FACTORS) == 0
    assert group_factors(2 * 16 * 64, 16) == (8, 8)
    assert group_factors(2 * 16 * 64 - 64, 16) == (8,)
    assert group_factors(2 * 16 * 8 - 64, 16) == ()
