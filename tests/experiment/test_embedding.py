import numpy as np
import pytest

from fgis.errors import UserError
from fgis.experiment import embedding
from fgis.experiment.build import Scoring
from fgis.retrieval.stored import StoredVectors

X = np.random.default_rng(0).normal(size=(2500, 3)).astype(np.float32)
STORED = StoredVectors(X.shape, lambda rows: X[rows])


def scoring(embed):
    return Scoring(lambda x: x, embed, "cosine", (), 1, 0)


def test_rows_come_in_chunks_of_one_size():
    seen = []
    found = embedding.in_chunks(lambda chunk: seen.append(len(chunk)) or 2 * chunk, X)
    np.testing.assert_array_equal(found, 2 * X)
    assert seen == [1024, 1024, 1024]
    assert embedding.in_chunks(lambda chunk: seen.append(len(chunk)) or chunk, X[:1]).shape == (1, 3)
    assert seen[-1] == 1  # a query by itself costs no more


def test_prepared_rows_are_the_same_in_memory_and_from_the_file():
    read = lambda rows: X[rows] + 1
    resident, stored = (embedding.prepared_rows(read, X.shape, resident=resident) for resident in (True, False))
    assert isinstance(resident, np.ndarray)
    assert isinstance(stored, StoredVectors)
    np.testing.assert_array_equal(resident, X + 1)
    np.testing.assert_array_equal(stored[np.array([7, 2, 2])], (X + 1)[[7, 2, 2]])


def test_pixels_behind_the_features_are_left_out():
    rows = np.array([3, 4])
    for features in (X, STORED):
        np.testing.assert_array_equal(embedding.first_columns(features, 2)[rows], X[rows, :2])
        np.testing.assert_array_equal(embedding.first_columns(features, 3)[rows], X[rows])


def test_stored_features_are_embedded_when_they_are_read():
    params = {"scale": np.array([2.0, 3.0], np.float32)}
    triple = scoring(lambda own, x: own["scale"] * x[:, :2])
    found = embedding.embed_with(triple, params, STORED, 1)
    assert found.shape == (2500, 2)
    np.testing.assert_array_equal(found[np.array([9])], 3 * X[[9], :2])
    np.testing.assert_array_equal(embedding.embed_with(triple, params, X, 1), 3 * X[:, :2])
    broken = scoring(lambda own, x: x / 0)
    with pytest.raises(UserError, match="the head of run 0 gives embeddings that are NaN"):
        embedding.embed_with(broken, params, STORED, 0)[:5]
