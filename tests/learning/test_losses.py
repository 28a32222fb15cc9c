"""Losses over triplets and reductions by hand, and against their formulas in NumPy's float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgis.base import LossSum
from fgis.learning import losses

T = 12
BETA = np.float32(1.2)


@functools.cache
def compiled(name, **options):
    """(values [t] or [t, 2], gradients with respect to d_ap, d_an and, for the margin loss, beta) of T triplets."""

    def total(d_ap, d_an, *beta):
        values = losses.LOSSES[name](d_ap, d_an, *beta, **options)
        return values.sum(), values

    arguments = (0, 1, 2) if name == "margin" else (0, 1)
    evaluate = jax.jit(jax.value_and_grad(total, argnums=arguments, has_aux=True))

    def values_and_gradients(d_ap, d_an):
        (_, values), gradients = evaluate(d_ap, d_an, *([BETA] if name == "margin" else []))
        return np.asarray(values), [np.asarray(g) for g in gradients]

    return values_and_gradients


def by_hand(name, d_ap, d_an, **options):
    """Values and gradients of a few triplets, beside further ones at distance 0."""
    room = (0, T - len(d_ap))
    values, gradients = compiled(name, **options)(np.pad(np.float32(d_ap), room), np.pad(np.float32(d_an), room))
    return values[: len(d_ap)], [g[: len(d_ap)] if g.ndim else g for g in gradients]


def test_hinge_soft_margin_and_difference_by_hand():
    d_ap, d_an = [0.5, 0.2], [0.6, 0.9]
    np.testing.assert_allclose(by_hand("triplet", d_ap, d_an, margin=0.3)[0], [0.2, 0.0], atol=1e-6)
    soft = by_hand("soft_margin", d_ap, d_an, temperature=0.1)[0]
    np.testing.assert_allclose(soft, np.log1p(np.exp([-1.0, -7.0])), rtol=1e-5)
    np.testing.assert_allclose(by_hand("difference", d_ap, d_an)[0], [-0.1, -0.7], atol=1e-6)


def test_margin_loss_by_hand():
    found, _ = by_hand("margin", [0.9, 1.5, 1.1], [1.3, 1.7, 0.2], margin=0.2)
    np.testing.assert_allclose(found, [[0.0, 0.1], [0.5, 0.0], [0.1, 1.2]], atol=1e-6)


def test_margin_loss_moves_its_boundary_by_the_pairs_that_violate_it():
    d_ap, d_an = np.float32([0.9, 1.5, 1.1] * 4), np.float32([1.3, 1.7, 1.9] * 4)
    _, (from_positives, from_negatives, from_beta) = compiled("margin", margin=0.2)(d_ap, d_an)
    np.testing.assert_allclose(from_positives, [0, 1, 1] * 4)
    np.testing.assert_allclose(from_negatives, [-1, 0, 0] * 4)
    assert float(from_beta) == 4 * (-2 + 1)


def test_selectively_contrastive_by_hand():
    # A hard triplet, an easy one, a tie, and one whose negative is beyond a right angle and still the nearer.
    found, _ = by_hand("selectively_contrastive", [0.5, 0.2, 0.4, 1.5], [0.3, 0.3, 0.4, 1.25], weight=2.0)
    e = np.exp
    easy = -np.log(e(8) / (e(8) + e(7)))
    np.testing.assert_allclose(found, [2 * 0.7, easy, np.log(2), 2 * -0.25], rtol=1e-5)
    assert (found > 0).tolist() == [True, True, True, False]


def test_selectively_contrastive_pushes_a_hard_negative_and_leaves_its_positive_alone():
    _, gradients = by_hand("selectively_contrastive", [0.5, 1.9, 0.2], [0.3, 0.1, 0.3], weight=0.5, temperature=0.2)
    pull = 1 / (1 + np.exp(0.5)) / 0.2
    np.testing.assert_allclose(gradients[0], [0, 0, pull], rtol=1e-5)
    np.testing.assert_allclose(gradients[1], [-0.5, -0.5, -pull], rtol=1e-5)


def formula(name, d_ap, d_an):
    """The loss in float64."""
    d_ap, d_an = np.float64(d_ap), np.float64(d_an)
    soft = lambda temperature: np.logaddexp(0, (d_ap - d_an) / temperature)
    if name == "margin":
        beta = np.float64(BETA)
        return np.stack([np.maximum(0, 0.2 + d_ap - beta), np.maximum(0, 0.2 + beta - d_an)], axis=-1)
    return {
        "triplet": np.maximum(0, 0.2 + d_ap - d_an),
        "soft_margin": soft(1.0),
        "difference": d_ap - d_an,
        "selectively_contrastive": np.where(d_an < d_ap, 1 - d_an, soft(0.1)),
    }[name]


distances = st.lists(st.floats(0, 2, width=32), min_size=T, max_size=T).map(np.float32)


@given(distances, distances, st.sampled_from([1.0, 1e4]))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_any_distances_give_the_values_of_the_formula_and_finite_gradients(d_ap, d_an, size):
    d_ap, d_an = np.float32(d_ap * size), np.float32(d_an * size)
    for name in losses.LOSSES:
        values, gradients = compiled(name)(d_ap, d_an)
        np.testing.assert_allclose(values, formula(name, d_ap, d_an), rtol=1e-4, atol=1e-5 * size, err_msg=name)
        assert all(np.isfinite(g).all() for g in gradients), name
        if name in ("triplet", "soft_margin", "margin"):
            assert (values >= 0).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_losses_of_bfloat16_distances_are_finite_and_so_are_their_gradients(name, size):
    pairs = jnp.array([0.0, 0.0, 1.0, 2.0, 1.0]) * size, jnp.array([0.0, 2.0, 1.0, 0.0, 0.0]) * size
    more = {"beta": jnp.asarray(1.2)} if name == "margin" else {}
    d_ap, d_an = (d.astype(jnp.bfloat16) for d in pairs)
    found, backward = jax.vjp(lambda p, n: losses.LOSSES[name](p, n, **more), d_ap, d_an)
    for x in (found, *backward(jnp.ones_like(found))):
        assert np.isfinite(np.asarray(x, np.float32)).all()


@pytest.mark.parametrize("name", ["soft_margin", "selectively_contrastive"])
@pytest.mark.parametrize("temperature", [0.0, float("nan")])
def test_a_temperature_that_divides_by_nothing_is_refused(name, temperature):
    with pytest.raises(ValueError, match=r"temperature: (0\.0|nan) found; write a number above 0"):
        losses.LOSSES[name](jnp.ones(1), jnp.ones(1), temperature=temperature)


def sums(total, valid, active):
    return LossSum(*(np.asarray(field, np.float32) for field in (total, valid, active)))


REDUCED = {name: jax.jit(jax.value_and_grad(reduction)) for name, reduction in losses.REDUCTIONS.items()}


def reduced(name, *fields):
    return float(REDUCED[name](sums(*fields))[0])


def test_reductions_of_one_kind_by_hand():
    one = -6.0, 4.0, 2.0
    assert reduced("mean", *one) == -1.5
    assert reduced("mean_active", *one) == -3
    assert reduced("hinge_of_mean", *one) == 0
    assert float(losses.hinge_of_mean(jax.tree.map(jnp.asarray, sums(*one)), margin=2.0)) == 0.5


def test_reductions_average_each_kind_by_itself():
    three = [6.0, 8.0, 0.0], [4.0, 16.0, 0.0], [2.0, 4.0, 0.0]
    assert reduced("mean", *three) == 1.5 + 0.5
    assert reduced("mean_active", *three) == 3 + 2
    assert reduced("hinge_of_mean", *three) == 1 + 2


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("name", losses.REDUCTIONS)
def test_a_reduction_of_nothing_is_0_with_a_finite_gradient(name, shape):
    value, gradient = REDUCED[name](sums(*[np.zeros(shape)] * 3))
    assert float(value) == 0
    assert np.isfinite(gradient.total).all()


def test_losses_below_0_alone_leave_nothing_to_average_over_active_terms():
    assert reduced("mean_active", -6.0, 4.0, 0.0) == 0
