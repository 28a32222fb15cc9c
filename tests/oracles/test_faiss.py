"""Search against faiss, an independent exact index: ``pip install -e '.[test,oracles]'``."""

import numpy as np
import pytest

from fgis.retrieval.search import prepare_gallery, search

faiss = pytest.importorskip("faiss", reason="the oracles are an extra of their own: pip install -e '.[oracles]'")


@pytest.mark.parametrize(("distance", "index"), [
    ("euclidean", "IndexFlatL2"), ("inner_product", "IndexFlatIP"), ("cosine", "IndexFlatIP"),
    ("manhattan", "METRIC_L1"),
])  # fmt: skip
def test_rows_and_distances(distance, index):
    """Its tie order is not specified, and it ranks by rounded products: places may differ where distances do not."""
    rng = np.random.default_rng(0)
    gallery, queries = (rng.normal(size=(n, 40)).astype(np.float32) for n in (3000, 300))
    found = search(queries, prepare_gallery(gallery, distance), 10)
    if distance == "cosine":
        gallery, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (gallery, queries))
    peer = faiss.IndexFlat(40, faiss.METRIC_L1) if index == "METRIC_L1" else getattr(faiss, index)(40)
    peer.add(gallery)
    theirs, rows = peer.search(queries, 10)
    expected = {
        "euclidean": lambda d: np.sqrt(d), "inner_product": lambda d: -d, "cosine": lambda d: 1 - d,
        "manhattan": lambda d: d,
    }[distance](theirs)  # fmt: skip
    np.testing.assert_allclose(found.distances, expected, rtol=2e-5, atol=2e-5)
    assert (found.rows != rows).mean() < 1e-3
