"""The benchmark of EfficientNet-Lite0, in small: ours and the peers compute the same features."""

import numpy as np
import pytest

from experiments.benchmarks import networks, timing

pytestmark = pytest.mark.slow


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(networks, "SIZE", (64, 64))
    monkeypatch.setattr(networks, "BATCH", 2)


@pytest.mark.parametrize(("peer", "make"), [("torch", networks.make_torch), ("onnxruntime", networks.make_onnx)])
def test_a_peer_computes_the_same(peer, make, small):
    pytest.importorskip(peer, reason="the peers are an extra of their own: pip install -e '.[oracles]'")
    ours = networks.make_ours("none", 1)()
    assert ours.shape == (2, 1280)
    assert ours.std() > 0.01
    for together in (1, 2):
        np.testing.assert_allclose(make("none", 2, together)(), ours, rtol=1e-3, atol=1e-4)


def test_other_features_are_refused(monkeypatch):
    values = iter((np.ones(3), np.ones(3), np.ones(3) + 0.01))
    monkeypatch.setattr(timing, "apart", lambda *arguments: next(values))
    with pytest.raises(SystemExit, match="torch, channels last: features differ"):
        networks.check("none")
