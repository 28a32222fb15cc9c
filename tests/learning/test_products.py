from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ukbench
from fgis.base import Batch, BatchInfo
from fgis.experiment import build
from fgis.experiment.config import read_settings
from fgis.experiment.differences import to_plain
from fgis.learning import heads, learned, losses
from fgis.learning.products import round_and_multiply, rounding_dot
from fgis.learning.recipe import Strategy, make_recipe
from fgis.learning.step import make_loss
from tests.devices.combinations import combinations, named

RNG = np.random.default_rng(0)
PRECISIONS = ("float32", "bfloat16", "float16")
LOW = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


def rounded(x, precision):
    return np.asarray(jnp.asarray(x, jnp.float32).astype(LOW[precision]).astype(jnp.float32), np.float64)


@pytest.mark.parametrize("precision", LOW)
def test_factors_are_rounded_and_sums_are_not(precision):
    x, w = (RNG.normal(size=shape).astype(np.float32) for shape in ((3, 4096), (4096, 2)))
    found = round_and_multiply(jnp.asarray(x), jnp.asarray(w), precision)
    assert found.dtype == jnp.float32
    exact, whole = rounded(x, precision) @ rounded(w, precision), x.astype(np.float64) @ w
    assert np.abs(found - exact).max() < 1e-3 * np.abs(whole - exact).max() + 1e-4


@pytest.mark.parametrize("precision", LOW)
def test_a_long_sum_of_ones_is_counted_to_the_end(precision):
    """Summed in bfloat16 it would stop at 256, in float16 at 2048."""
    assert round_and_multiply(jnp.ones((1, 5000)), jnp.ones((5000, 1)), precision) == 5000


@pytest.mark.parametrize("scale", [1e-20, 1e-7, 1.0, 1e6, 1e15])
def test_float16_neither_overflows_nor_vanishes(scale):
    x, w = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((5, 7), (7, 3)))
    plain, pull = jax.vjp(lambda x, w: x @ w, scale * x, w)
    found, low_pull = jax.vjp(lambda x, w: round_and_multiply(x, w, "float16"), scale * x, w)
    np.testing.assert_allclose(found, plain, atol=4e-3 * scale)
    for one, other in zip(low_pull(1e-9 * plain / scale), pull(1e-9 * plain / scale), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-3 * float(jnp.abs(other).max()))
        assert jnp.abs(one).max() > 0


def test_infinity_and_nan_are_kept_and_zeros_are_zeros():
    ones = jnp.ones((2, 1))
    for precision in LOW:
        assert not jnp.isfinite(round_and_multiply(jnp.array([[1.0, jnp.inf]]), ones, precision))
        assert jnp.isnan(round_and_multiply(jnp.array([[1.0, jnp.nan]]), ones, precision))
        assert round_and_multiply(jnp.zeros((1, 2)), ones, precision) == 0


def test_only_the_last_axis_is_multiplied():
    assert rounding_dot("float32") is None
    with pytest.raises(ValueError, match=r"dimensions: .* found; only layers that multiply the last axis"):
        rounding_dot("bfloat16")(jnp.ones((2, 2)), jnp.ones((2, 2)), (((0,), (0,)), ((), ())))


HEADS = {
    "mlp": heads.mlp(widths=(8, 5)),
    "residual": heads.residual(rank=3, whiten=0.1),
    "deep_ranking": heads.HEADS["deep_ranking"](pixels=(16,), width=5),
    "visnet": heads.HEADS["visnet"](pixels=(16,), width=5, whiten=0.1),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_knows_all_precisions_and_keeps_float32_around_products(name):
    head, size = HEADS[name], 12 + 3 * 256 * (name in ("deep_ranking", "visnet"))
    x = jnp.asarray(RNG.random((6, size)), jnp.float32)
    start = head.fit(np.asarray(x))

    @jax.jit
    def embeddings_and_gradients(key):
        params = head.init(key, (size,), start)
        pairs = [jax.value_and_grad(partial(_sum_of_cubes, head, x, to), has_aux=True)(params) for to in PRECISIONS]
        return head.apply(params, x), [z for (_, z), _ in pairs], [gradient for _, gradient in pairs]

    plain, found, gradients = embeddings_and_gradients(jax.random.key(0))
    np.testing.assert_array_equal(found[0], plain)
    assert {leaf.dtype for leaf in jax.tree.leaves((found, gradients))} == {np.dtype(np.float32)}
    for low, bound in zip(found[1:], (2e-2, 2e-3), strict=True):
        assert 0 < np.abs(np.asarray(low) - plain).max() < bound * np.abs(plain).max()


def _sum_of_cubes(head, x, precision, params):
    z = head.apply(params, x, precision=precision)
    return (z**3).sum(), z


def test_a_head_without_other_precisions_is_refused():
    own = heads.mlp(widths=(8, 5))._replace(apply=lambda variables, features, dropout_keys=None: features)
    with pytest.raises(ValueError, match="precision: 'float16' found, but this head is computed in float32 alone"):
        make_recipe(Strategy(own, precision="float16"), 12)


SIZE = 6
BATCHES = {
    "all of one class": (RNG.random((9, SIZE)), np.zeros(9), np.arange(9)),
    "identical vectors": (np.ones((9, SIZE)), np.arange(9) // 3, np.arange(9)),
    "zeros": (np.zeros((9, SIZE)), np.arange(9) // 3, np.arange(9)),
    "one image": (RNG.random((9, SIZE)), np.zeros(9), np.array([4] + [-1] * 8)),
    "padding alone": (np.ones((9, SIZE)), np.zeros(9), np.full(9, -1)),
    "large and small": (RNG.random((9, SIZE)) * 10.0 ** np.arange(-4, 5)[:, None], np.arange(9) // 3, np.arange(9)),
}


def losses_and_gradients(strategies):
    """By strategy, precision and batch: the loss, and the largest gradient of the head and of what the loss learns.

    One program, in which the precision is data: strategies share their head and often their miner, and are slow to
    compile.
    """
    head, places = heads.mlp(widths=(8, 5), final="normalize"), [(to, name) for to in PRECISIONS for name in BATCHES]
    objectives, start = [], []
    for overrides in strategies:
        config = ukbench.get_config()
        config.update_from_flattened_dict(overrides)
        settings = read_settings(to_plain(config))
        objectives.append(build.build_objective(settings, BatchInfo(None, 5)))
        params = head.init(jax.random.key(0), (SIZE,), {})
        if settings.loss.name in learned.LEARNED:
            params["learned"] = learned.LEARNED[settings.loss.name]().init(jax.random.key(1), jnp.ones(3, bool), 5)
        start.append(params)
    features, labels, rows = (np.stack([BATCHES[name][part] for _, name in places]) for part in range(3))
    labels, rows = (jnp.asarray(x, jnp.int32) for x in (labels, rows))
    batches = Batch(jnp.asarray(features, jnp.float32), labels, rows, labels // 2)

    def every_strategy(batch, number):
        apply = lambda *values: jax.lax.switch(
            number, [partial(head.apply, precision=to) for to in PRECISIONS], *values
        )
        found = []
        for objective, params in zip(objectives, start, strict=True):
            loss = make_loss(apply, objective, losses.mean_active)
            value, gradient = jax.value_and_grad(lambda *x, loss=loss: loss(*x)[0])(params, batch, jax.random.key(0))
            found.append((value, jnp.max(jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient)]))))
        return found

    numbers = jnp.asarray([PRECISIONS.index(to) for to, _ in places])
    found = jax.jit(lambda *data: jax.lax.map(lambda x: every_strategy(*x), data))(batches, numbers)
    return {
        (named(overrides), *place): (float(values[i]), float(largest[i]))
        for overrides, (values, largest) in zip(strategies, found, strict=True)
        for i, place in enumerate(places)
    }


COMBINATIONS = [one for one in combinations() if "memory.size" not in one]


def require_finite(strategies):
    found = losses_and_gradients(strategies)
    assert len(found) == len(strategies) * len(PRECISIONS) * len(BATCHES)
    assert {place: values for place, values in found.items() if not np.isfinite(values).all()} == {}
    return found


@pytest.mark.parametrize("overrides", COMBINATIONS[:: len(COMBINATIONS) // 3], ids=named)
def test_degenerate_batches_have_a_finite_loss_and_gradient(overrides):
    found = require_finite([overrides])
    assert any(gradient > 0 for _, gradient in found.values())


@pytest.mark.slow
@pytest.mark.lean
@pytest.mark.parametrize("miner", sorted({one["miner.name"] for one in COMBINATIONS}))
def test_a_miner_with_all_its_losses_is_finite_on_degenerate_batches_in_every_precision(miner):
    require_finite([overrides for overrides in COMBINATIONS if overrides["miner.name"] == miner])
