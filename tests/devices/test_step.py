"""The same step under jit, pmap and shard_map, on one and four devices: plain SGD, as Adam hides a wrong scale."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fgis.distances import DISTANCES
from fgis.learning import heads, losses, mining, objectives
from fgis.learning.step import init_state, make_train_step
from fgis.types import Batch

OBJECTIVES = {
    "batch_hard": (objectives.mined(mining.batch_hard, losses.soft_margin, DISTANCES["euclidean"]), losses.mean),
    "batch_hard, active": (
        objectives.mined(mining.batch_hard, partial(losses.triplet_loss, margin=0.4), DISTANCES["cosine"]),
        losses.mean_active,
    ),
    "semi_hard": (
        objectives.mined(
            partial(mining.semi_hard, margin=0.5), partial(losses.triplet_loss, margin=0.5), DISTANCES["euclidean"]
        ),
        losses.mean,
    ),
    "batch_all": (
        objectives.summed(mining.all_negatives, partial(losses.triplet_loss, margin=0.3), DISTANCES["euclidean"]),
        losses.mean,
    ),
    "published": (objectives.given(losses.difference, DISTANCES["euclidean"]), losses.hinge_of_mean),
}
HEAD = heads.EmbeddingHead(widths=(16, 8), dropouts=(0.3,))


def data():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 4)[rng.permutation(48)]
    rows = np.arange(48)
    rows[45:] = -1
    return Batch(*(jnp.asarray(x) for x in (rng.random((48, 10), np.float32), labels, rows)))


def five_steps(name, how, devices):
    objective, reduction = OBJECTIVES[name]
    optimizer = optax.sgd(0.05)
    axis = None if how == "jit" else "data"
    step = make_train_step(HEAD.apply, objective, reduction, optimizer, axis_name=axis)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    batch = data()
    state = init_state(heads.init_head(HEAD, jax.random.key(0), (10,)), optimizer)
    if how == "jit":
        step = jax.jit(step)
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    elif how == "pmap":
        step = jax.pmap(step, "data", in_axes=(None, 0, None), out_axes=None, devices=jax.devices()[:devices])
        batch = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
    else:
        specs = PartitionSpec(), PartitionSpec("data"), PartitionSpec()
        step = jax.jit(
            jax.shard_map(
                step, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=how == "shard_map, checked"
            )
        )
    history = []
    for i in range(5):
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(7), i))
        history.append(jax.tree.map(float, metrics))
    return jax.tree.map(np.asarray, state.params), history


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_way_of_running_the_step_gives_the_same_parameters(name):
    params, history = five_steps(name, "jit", 1)
    start = heads.init_head(HEAD, jax.random.key(0), (10,))
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, start)), strict=True)) > 1e-3
    for how in ("jit", "pmap", "shard_map"):
        for devices in (1, 4):
            other, other_history = five_steps(name, how, devices)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), params, other)
            for one, two in zip(history, other_history, strict=True):
                assert one == pytest.approx(two, abs=1e-5)
