import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.base import LossSum
from fgis.learning import losses


def sums(total, valid, active):
    return LossSum(*(jnp.asarray(field, jnp.float32) for field in (total, valid, active)))


def test_margin_loss_by_hand():
    d_ap, d_an = jnp.array([0.9, 1.5, 1.1]), jnp.array([1.3, 1.7, 0.2])
    found = losses.margin_loss(d_ap, d_an, beta=jnp.asarray(1.2), margin=0.2)
    np.testing.assert_allclose(found, [[0.0, 0.1], [0.5, 0.0], [0.1, 1.2]], atol=1e-6)


def test_margin_loss_moves_its_boundary_by_the_pairs_that_violate_it():
    d_ap, d_an = jnp.array([0.9, 1.5, 1.1]), jnp.array([1.3, 1.7, 1.9])
    total = lambda d_ap, d_an, beta: losses.margin_loss(d_ap, d_an, beta).sum()
    from_positives, from_negatives, from_beta = jax.grad(total, argnums=(0, 1, 2))(d_ap, d_an, jnp.asarray(1.2))
    np.testing.assert_allclose(from_positives, [0, 1, 1])
    np.testing.assert_allclose(from_negatives, [-1, 0, 0])
    assert float(from_beta) == -2 + 1


def test_selectively_contrastive_by_hand():
    # A hard triplet, an easy one, a tie, and one whose negative is beyond a right angle and still the nearer.
    d_ap, d_an = jnp.array([0.5, 0.2, 0.4, 1.5]), jnp.array([0.3, 0.3, 0.4, 1.25])
    found = losses.selectively_contrastive(d_ap, d_an, weight=2.0, temperature=0.1)
    e = np.exp
    easy = -np.log(e(8) / (e(8) + e(7)))
    np.testing.assert_allclose(found, [2 * 0.7, easy, np.log(2), 2 * -0.25], rtol=1e-5)
    assert (np.asarray(found) > 0).tolist() == [True, True, True, False]


def test_selectively_contrastive_pushes_a_hard_negative_and_leaves_its_positive_alone():
    total = lambda d_ap, d_an: losses.selectively_contrastive(d_ap, d_an, weight=0.5, temperature=0.2).sum()
    d_ap, d_an = jnp.array([0.5, 1.9, 0.2]), jnp.array([0.3, 0.1, 0.3])
    from_positives, from_negatives = jax.grad(total, argnums=(0, 1))(d_ap, d_an)
    pull = 1 / (1 + np.exp(0.5)) / 0.2
    np.testing.assert_allclose(from_positives, [0, 0, pull], rtol=1e-5)
    np.testing.assert_allclose(from_negatives, [-0.5, -0.5, -pull], rtol=1e-5)


@pytest.mark.parametrize("name", losses.LOSSES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_every_loss_is_finite_and_so_is_its_gradient(name, dtype, size):
    distances = jnp.array([0.0, 0.0, 1.0, 2.0, 1.0]) * size, jnp.array([0.0, 2.0, 1.0, 0.0, 0.0]) * size
    more = {"beta": jnp.asarray(1.2)} if name == "margin" else {}
    d_ap, d_an = (d.astype(dtype) for d in distances)
    found, backward = jax.vjp(lambda p, n: losses.LOSSES[name](p, n, **more), d_ap, d_an)
    assert found.shape[0] == 5
    for x in (found, *backward(jnp.ones_like(found))):
        assert np.isfinite(np.asarray(x, np.float32)).all()


def test_reductions_of_one_kind_by_hand():
    one = sums(-6.0, 4.0, 2.0)
    assert float(losses.mean(one)) == -1.5
    assert float(losses.mean_active(one)) == -3
    assert float(losses.hinge_of_mean(one, margin=2.0)) == 0.5
    assert float(losses.hinge_of_mean(one, margin=1.0)) == 0


def test_reductions_average_each_kind_by_itself():
    three = sums([6.0, 8.0, 0.0], [4.0, 16.0, 0.0], [2.0, 4.0, 0.0])
    assert float(losses.mean(three)) == 1.5 + 0.5
    assert float(losses.mean_active(three)) == 3 + 2
    assert float(losses.hinge_of_mean(three, margin=-0.5)) == 1.5


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("name", losses.REDUCTIONS)
def test_a_reduction_of_nothing_is_0_with_a_finite_gradient(name, shape):
    reduction = losses.REDUCTIONS[name]
    nothing = jnp.zeros(shape)
    value, gradient = jax.value_and_grad(lambda total: reduction(LossSum(total, nothing, nothing)))(nothing)
    assert float(value) == 0
    assert np.isfinite(gradient).all()


def test_losses_below_0_alone_leave_nothing_to_average_over_active_terms():
    assert float(losses.mean_active(sums(-6.0, 4.0, 0.0))) == 0
