"""The same step under jit, pmap and shard_map, on one and four devices: plain SGD, as Adam hides a wrong scale."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fgis.base import Batch
from fgis.distances import DISTANCES
from fgis.learning import heads, losses, miners, objectives, pair_losses
from fgis.learning.memory import empty_memory
from fgis.learning.step import init_state, make_train_step

pytestmark = [pytest.mark.slow, pytest.mark.lean]

OBJECTIVES = {
    "batch_hard": (objectives.mined(miners.batch_hard, losses.soft_margin, DISTANCES["euclidean"]), losses.mean),
    "batch_hard, active": (
        objectives.mined(miners.batch_hard, partial(losses.triplet_loss, margin=0.4), DISTANCES["cosine"]),
        losses.mean_active,
    ),
    "semi_hard": (
        objectives.mined(
            partial(miners.semi_hard, margin=0.5), partial(losses.triplet_loss, margin=0.5), DISTANCES["euclidean"]
        ),
        losses.mean,
    ),
    "batch_all": (
        objectives.summed(miners.all_negatives, partial(losses.triplet_loss, margin=0.3), DISTANCES["euclidean"]),
        losses.mean,
    ),
    "distance_weighted, margin": (
        objectives.mined(
            miners.distance_weighted,
            losses.margin_loss,
            DISTANCES["unit_euclidean"],
        ),
        losses.mean_active,
    ),
    "random_negatives": (
        objectives.mined(miners.random_negatives, losses.soft_margin, DISTANCES["euclidean"]),
        losses.mean,
    ),
    "sup_con": (objectives.paired(pair_losses.sup_con, DISTANCES["cosine"]), losses.mean),
    "contrastive": (objectives.paired(pair_losses.contrastive, DISTANCES["cosine"]), losses.mean),
    "opposites": (objectives.paired(pair_losses.opposites, DISTANCES["cosine"], graded=True), losses.mean),
    "proxy_anchor": (objectives.proxied(pair_losses.proxy_anchor, DISTANCES["cosine"]), losses.mean),
    "batch_hard, memory": (
        objectives.mined(miners.batch_hard, losses.soft_margin, DISTANCES["euclidean"]),
        losses.mean,
    ),
    "published": (objectives.given(losses.difference, DISTANCES["euclidean"]), losses.hinge_of_mean),
}
HEAD = heads.mlp(widths=(16, 8), dropouts=(0.3,))


def data():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 4)[rng.permutation(48)]
    rows = np.arange(48)
    rows[45:] = -1
    return Batch(*(jnp.asarray(x) for x in (rng.random((48, 10), np.float32), labels, rows, labels % 3)))


def start(name):
    """Parameters of the head and, where the loss has some, of the loss; a memory for the row that has one."""
    params = HEAD.init(jax.random.key(0), (10,))
    if "margin" in name:
        params["learned"] = {"beta": jnp.float32(1.0)}
    if "proxy" in name:
        params["learned"] = {"proxies": jax.random.normal(jax.random.key(1), (12, 8))}
    return params, empty_memory(100, 8) if "memory" in name else ()


def five_steps(name, how, devices):
    objective, reduction = OBJECTIVES[name]
    optimizer = optax.sgd(0.05)
    axis = None if how == "jit" else "data"
    step = make_train_step(HEAD.apply, objective, reduction, optimizer, axis_name=axis)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    batch = data()
    params, memory = start(name)
    state = init_state(params, optimizer, memory)
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
    return jax.tree.map(np.asarray, (state.params, state.memory)), history


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_step_gives_the_same_parameters_under_jit_pmap_and_shard_map(name):
    params, history = five_steps(name, "jit", 1)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, start(name))), strict=True)) > 1e-3
    for how in ("jit", "pmap", "shard_map"):
        for devices in (4,):
            other, other_history = five_steps(name, how, devices)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=0), params, other)
            for one, two in zip(history, other_history, strict=True):
                assert one == pytest.approx(two, abs=1e-5)
