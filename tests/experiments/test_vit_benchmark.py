"""The sides of the benchmark of vision transformers compute the same."""

import numpy as np
import pytest

from experiments.benchmarks import vit

pytest.importorskip("torch", reason="the peers are the extra oracles")
pytest.importorskip("transformers", reason="the peers are the extra oracles")


@pytest.mark.slow
def test_both_sides_compute_the_same(monkeypatch):
    monkeypatch.setattr(vit, "SIZE", (56, 70))
    monkeypatch.setattr(vit, "BATCH", 3)
    ours, theirs = vit.make_ours(1)(), vit.make_torch(1, 2)()
    assert ours.shape == (3, 384)
    assert np.abs(ours).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
