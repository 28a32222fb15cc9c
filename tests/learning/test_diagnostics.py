import functools

import jax
import numpy as np
import pytest

from fgis.distances import DISTANCES
from fgis.learning.diagnostics import diagnose

LABELS, ROWS = np.array([0, 0, 1, 1]), np.arange(4)


compiled = functools.cache(lambda distance: jax.jit(functools.partial(diagnose, distance=DISTANCES[distance])))


def found(x, labels=LABELS, rows=ROWS, distance="euclidean"):
    """The diagnostics of 6 rows, of which the last ones are padding where fewer are given."""
    room = (0, 6 - len(x))
    x = np.pad(np.float32(x), (room, (0, 6 - x.shape[1])))
    values = compiled(distance)(x, np.pad(labels, room), np.pad(rows, room, constant_values=-1))
    return {name: float(value) for name, value in values.items()}


def test_by_hand_on_a_cross():
    x = np.array([[2.0, 0, 0, 5], [0, 3.0, 0, 5], [-2.0, 0, 0, 5], [0, -3.0, 0, 5]])
    values = found(x)
    assert values["positive_distance"] == pytest.approx(np.sqrt(13), rel=1e-5)
    assert values["negative_distance"] == pytest.approx((4 + 6 + 2 * np.sqrt(13)) / 4, rel=1e-5)
    a, b = 2 / np.sqrt(29), 3 / np.sqrt(34)  # unit vectors (±a, 0, 0, ·), (0, ±b, 0, ·), whose last entries differ
    u = np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float64)
    eigenvalues = np.linalg.eigvalsh(np.cov(u.T, bias=True))
    assert values["variance"] == pytest.approx(eigenvalues.sum(), rel=1e-4)
    assert values["variance"] > (a**2 + b**2) / 2
    assert values["effective_rank"] == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-4)
    assert values["dead_units"] == pytest.approx(4 / 6)  # the third is always 0, the fourth always 5; and two of none
    assert values["collapsed"] == 0


def test_padding_counts_nowhere():
    x = np.random.default_rng(0).normal(size=(4, 3))
    padded = np.concatenate([x, 99 * np.ones((2, 3))])
    whole = found(x)
    also = found(padded, np.concatenate([LABELS, LABELS[:2]]), np.array([0, 1, 2, 3, -1, -1]))
    assert whole == pytest.approx(also, rel=1e-5)


def test_one_point_and_one_line_are_named_collapsed_and_a_cloud_is_not():
    noise = np.random.default_rng(1).normal(size=(4, 6))
    point = np.ones((4, 6)) + 1e-3 * noise
    line = np.arange(4.0)[:, None] * np.array([[1.0, 0, 0, 0, 0, 0]]) + np.array([[0, 1.0, 0, 0, 0, 0]])
    assert found(point)["collapsed"] == 1
    assert found(line)["collapsed"] == 1
    assert found(noise)["collapsed"] == 0


@pytest.mark.parametrize("distance", ["euclidean", *(pytest.param(d, marks=pytest.mark.slow) for d in DISTANCES)])
def test_degenerate_batches_give_finite_values(distance):
    x = np.abs(np.random.default_rng(0).normal(size=(4, 3)))
    for case in (
        (x * 0, LABELS, ROWS), (x, LABELS, np.full(4, -1)), (x, LABELS * 0, ROWS), (x, np.arange(4), ROWS),
    ):  # fmt: skip
        assert np.isfinite(list(found(*case, distance).values())).all()
