"""One train step: pure, and the same mathematics under ``jit``, ``pmap`` and ``shard_map``.

    step = make_train_step(apply, objective, reduction, optimizer)                    # jit, or jit over sharded arrays
    step = make_train_step(apply, objective, reduction, optimizer, axis_name="data")  # pmap or shard_map
    jax.pmap(step, axis_name="data", in_axes=(None, 0, None), out_axes=None)
    jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P(), check_vma=False)

With an ``axis_name`` each device holds its share of the batch as anchors, while candidates are gathered from all
devices: mining and the reduction see the global batch. Loss sums and gradients add up over devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fgis.learning.mining import relations
from fgis.types import Batch, Key, LossSum, Objective, Reduction, TrainState

Apply = Callable[..., Float[Array, "b d"]]  # (params, features [b, ...], keys [b] or None) -> embeddings
Step = Callable[[TrainState, Batch, Key], tuple[TrainState, dict[str, Array]]]


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def make_loss(
    apply: Apply, objective: Objective, reduction: Reduction, axis_name: str | None = None
) -> Callable[[Any, Batch, Key | None], tuple[Float[Array, ""], LossSum]]:
    """``loss(params, batch, key) -> (scalar, LossSum of the global batch)``; ``key=None`` switches dropout off.

    The gradient of the scalar with respect to ``params`` is this device's share: shares add up to the whole gradient.
    """

    def loss(params: Any, batch: Batch, key: Key | None) -> tuple[Float[Array, ""], LossSum]:
        device = jax.lax.axis_index(axis_name) if axis_name else 0
        dropout_keys, mining_key = None, jax.random.key(0)
        if key is not None:
            dropout_key, mining_key = jax.random.split(key)
            # A key per place in the global batch: the dropout masks do not depend on how many devices share it.
            places = device * len(batch.rows) + jnp.arange(len(batch.rows))
            dropout_keys = jax.vmap(lambda place: jax.random.fold_in(dropout_key, place))(places)
        embeddings = apply(params, batch.features, dropout_keys)
        candidates, labels, rows = embeddings, batch.labels, batch.rows
        if axis_name:
            gather = lambda x: jax.lax.all_gather(x, axis_name, tiled=True)
            candidates, labels, rows = gather(embeddings), gather(batch.labels), gather(batch.rows)
        positives, negatives = relations(batch.labels, batch.rows, labels, rows)
        local = objective(jax.random.fold_in(mining_key, device), embeddings, candidates, positives, negatives)
        sums = jax.tree.map(lambda x: _global_value(x, axis_name), local)
        return reduction(sums), sums

    return loss


def _global_value(x: Array, axis_name: str | None) -> Array:
    """The sum over devices, with the gradient of this device's term alone."""
    if axis_name is None:
        return x
    constant = jax.lax.stop_gradient(x)
    return jax.lax.psum(constant, axis_name) + (x - constant)


def make_train_step(
    apply: Apply,
    objective: Objective,
    reduction: Reduction,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
) -> Step:
    """``step(state, batch, key) -> (state, metrics)``: one update on one (global) batch.

    Metrics: ``loss``, ``active`` (share of valid triplets with a loss above 0), ``triplets`` (how many were valid) and
    ``gradient_norm``. A batch without a valid triplet has loss 0 and leaves only the optimiser's own motion.
    """
    loss = make_loss(apply, objective, reduction, axis_name)

    def step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, dict[str, Array]]:
        (value, sums), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
        if axis_name:
            gradient = jax.lax.psum(gradient, axis_name)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": value,
            "active": sums.active / jnp.where(sums.valid > 0, sums.valid, 1.0),
            "triplets": sums.valid,
            "gradient_norm": optax.tree.norm(gradient),
        }
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step
