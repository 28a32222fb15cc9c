import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.distances import DISTANCES
from fgis.learning.diagnostics import diagnose

LABELS, ROWS = jnp.array([0, 0, 1, 1]), jnp.arange(4)


def found(x, labels=LABELS, rows=ROWS, distance="euclidean"):
    return {k: float(v) for k, v in jax.jit(lambda x: diagnose(x, labels, rows, DISTANCES[distance]))(x).items()}


def test_by_hand_on_a_cross():
    x = jnp.array([[2.0, 0, 0, 5], [0, 3.0, 0, 5], [-2.0, 0, 0, 5], [0, -3.0, 0, 5]])
    values = found(x)
    assert values["positive_distance"] == pytest.approx(np.sqrt(13), rel=1e-5)
    assert values["negative_distance"] == pytest.approx((4 + 6 + 2 * np.sqrt(13)) / 4, rel=1e-5)
    a, b = 2 / np.sqrt(29), 3 / np.sqrt(34)  # unit vectors (±a, 0, 0, ·), (0, ±b, 0, ·), whose last entries differ
    u = np.asarray(x / jnp.linalg.norm(x, axis=1, keepdims=True), np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(u.T, bias=True))
    assert values["variance"] == pytest.approx(eigenvalues.sum(), rel=1e-4)
    assert values["variance"] > (a**2 + b**2) / 2
    assert values["effective_rank"] == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-4)
    assert values["dead_units"] == 0.5  # the third is always 0, the fourth always 5
    assert values["collapsed"] == 0


def test_padding_counts_nowhere():
    x = jax.random.normal(jax.random.key(0), (4, 3))
    padded = jnp.concatenate([x, 99 * jnp.ones((2, 3))])
    whole = found(x)
    also = found(padded, jnp.concatenate([LABELS, LABELS[:2]]), jnp.array([0, 1, 2, 3, -1, -1]))
    assert whole == pytest.approx(also, rel=1e-5)


def test_one_point_and_one_line_are_named_collapsed_and_a_cloud_is_not():
    noise = jax.random.normal(jax.random.key(1), (4, 6))
    point = jnp.ones((4, 6)) + 1e-3 * noise
    line = jnp.arange(4.0)[:, None] * jnp.array([[1.0, 0, 0, 0, 0, 0]]) + jnp.array([[0, 1.0, 0, 0, 0, 0]])
    assert found(point)["collapsed"] == 1
    assert found(line)["collapsed"] == 1
    assert found(noise)["collapsed"] == 0


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("case", ["zeros", "padding", "one class", "singletons"])
def test_degenerate_batches_give_finite_values(case, distance):
    x = jnp.zeros((4, 3)) if case == "zeros" else jnp.abs(jax.random.normal(jax.random.key(0), (4, 3)))
    labels = {"one class": jnp.zeros(4, int), "singletons": jnp.arange(4)}.get(case, LABELS)
    rows = jnp.full(4, -1) if case == "padding" else ROWS
    assert np.isfinite(list(found(x, labels, rows, distance).values())).all()
