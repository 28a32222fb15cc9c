"""Poolings by hand."""

import jax.numpy as jnp
import numpy as np

from fgis.features.pooling import POOLINGS, sum_normalised


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
