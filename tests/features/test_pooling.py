"""Poolings by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgis.features.pooling import POOLINGS, region_starts, sum_normalised


def test_pooling_by_hand():
    x = jnp.array([[[[1.0, -4.0], [2.0, 0.0]], [[3.0, 2.0], [0.0, 4.0]]]])  # channels (1, 2, 3, 0) and (-4, 0, 2, 4)
    np.testing.assert_allclose(POOLINGS["avg"](x), [[1.5, 0.5]])
    np.testing.assert_allclose(POOLINGS["max"](x), [[3, 4]])
    np.testing.assert_allclose(POOLINGS["gem"](x), [[(36 / 4) ** (1 / 3), (72 / 4) ** (1 / 3)]], rtol=1e-6)
    np.testing.assert_array_equal(POOLINGS["spatial"](x), x)
    assert np.isfinite(POOLINGS["gem"](x * 1e20)).all()
    assert np.isfinite(POOLINGS["gem"](x * 0)).all()


def test_scales_are_summed_after_normalisation():
    # (3, 4) has norm 5, (0, 2) norm 2, and the zero vector stays zero instead of becoming NaN
    y = sum_normalised((jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[0.0, 2.0], [0.0, 2.0]])))
    np.testing.assert_allclose(y, [[0.6, 1.8], [0.0, 1.0]], rtol=1e-6)


def regional_by_loops(x, levels=3):
    """R-MAC of one map [h, w, c] as the paper words it."""
    height, width, _ = x.shape
    short, long = min(height, width), max(height, width)
    counts = [1]
    if long > short:
        misfit = {}
        for count in range(2, 8):
            step = (long - short) / (count - 1)
            misfit[count] = abs((short**2 - short * step) / short**2 - 0.4)
        counts = sorted(misfit, key=misfit.get)
    total = np.zeros(x.shape[-1])
    for level in range(1, levels + 1):
        side = int(np.floor(2 * short / (level + 1)))
        down = level + (counts[0] - 1 if height > width else 0)
        right = level + (counts[0] - 1 if width > height else 0)
        for i in range(down if side else 0):
            for j in range(right):
                top = int(np.floor(i * (height - side) / (down - 1))) if down > 1 else 0
                left = int(np.floor(j * (width - side) / (right - 1))) if right > 1 else 0
                best = x[top : top + side, left : left + side].max(axis=(0, 1))
                total += best / max(np.linalg.norm(best), 1e-12)
    return total


@pytest.mark.parametrize("shape", [(11, 14), (14, 11), (7, 7), (2, 9), (1, 1), (3, 2)])
def test_regional_maxima_by_loops(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 5)).astype(np.float32)
    expected = np.stack([regional_by_loops(one) for one in x])
    np.testing.assert_allclose(POOLINGS["regional"](jnp.asarray(x)), expected, rtol=2e-5, atol=2e-6)


def test_regional_maxima_by_hand():
    # One row of two places: at level 1 three regions of one place, at 0, 0.5 and 1, rounded down; none of side 2 / 3.
    x = jnp.array([[[[3.0, 4.0], [0.0, 2.0]]]])
    np.testing.assert_allclose(POOLINGS["regional"](x), [[0.6 + 0.6, 0.8 + 0.8 + 1]], rtol=1e-6)
    # 11 × 14 places: two regions along the longer side overlap by 8 / 11, and more of them by more than that.
    assert region_starts(11, 14, 2) == [(11, (0,), (0, 3)), (7, (0, 4), (0, 3, 7))]
    assert np.isfinite(POOLINGS["regional"](x * 0)).all()
