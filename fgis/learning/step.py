"""One train step: pure, and the same mathematics under ``jit``, ``pmap`` and ``shard_map``.

    step = make_train_step(apply, objective, reduction, optimizer)                    # jit, or jit over sharded arrays
    step = make_train_step(apply, objective, reduction, optimizer, axis_name="data")  # pmap or shard_map
    jax.pmap(step, axis_name="data", in_axes=(None, 0, None), out_axes=None)
    jax.shard_map(step, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=P(), check_vma=False)

With an ``axis_name`` each device holds its share of the batch as anchors, while candidates are gathered from all
devices: mining and the reduction see the global batch. Loss sums and gradients add up over devices.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fgis.base import Batch, Comparison, Key, LossSum, Objective, Reduction, TrainState
from fgis.learning.memory import Memory, enqueue, recalled
from fgis.learning.miners import relations

Apply = Callable[..., Float[Array, "b d"]]  # (params, features [b, ...], keys [b] or None) -> embeddings
Step = Callable[[TrainState, Batch, Key], tuple[TrainState, dict[str, Array]]]


def init_state(params: Any, optimizer: optax.GradientTransformation, memory: Memory | tuple[()] = ()) -> TrainState:
    """The state before the first step.

    Args:
      params: what is trained, a tree of arrays.
      optimizer: what moves it.
      memory: an empty one (``empty_memory``), or () for none.

    Returns:
      The state at step 0.
    """
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), memory=memory)


def make_loss(
    apply: Apply,
    objective: Objective,
    reduction: Reduction,
    axis_name: str | None = None,
    warmup_steps: int = 0,
    batch_rows: int | None = None,
) -> Callable[..., tuple[Float[Array, ""], tuple[LossSum, Any]]]:
    """The loss of one batch as a function of the parameters.

    Args:
      apply: the head.
      objective: what is summed over the batch, see ``fgis.learning.objectives``.
      reduction: the sums of the global batch to a scalar.
      axis_name: of the devices that share a batch; None for one device, or for arrays that the compiler shards.
      warmup_steps: how many steps a memory is filled before it is used.
      batch_rows: of the global batch, where padding was put behind it so that devices can share it; None without.

    Returns:
      ``loss(params, batch, key, step=0, memory=()) -> (scalar, (LossSum of the global batch, the next memory))``.
      ``key=None`` switches dropout off. What the loss itself has learned is the collection ``learned`` of ``params``,
      if they are a mapping that has one. The gradient of the scalar with respect to ``params`` is this device's share:
      shares add up to the whole gradient.
    """

    def loss(
        params: Any, batch: Batch, key: Key | None, step: Any = 0, memory: Memory | tuple[()] = ()
    ) -> tuple[Float[Array, ""], tuple[LossSum, Any]]:
        device, devices = (jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)) if axis_name else (0, 1)
        # A key per place in the global batch: nothing random depends on how many devices share it.
        dropout_key, mining_key = jax.random.split(jax.random.key(0) if key is None else key)
        places = device * len(batch.rows) + jnp.arange(len(batch.rows))
        at_places = lambda key: jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
        anchors = apply(params, batch.features, None if key is None else at_places(dropout_key))
        own = _Described(
            anchors, batch.labels, batch.rows, jnp.zeros_like(batch.labels) if batch.coarse is None else batch.coarse
        )
        known = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), own) if axis_name else own
        known = jax.tree.map(lambda x: x[:batch_rows], known)
        if isinstance(memory, Memory):
            known, memory = _remember(memory, step, known, warmup_steps)
        positives, negatives = relations(own.labels, own.rows, known.labels, known.rows)
        seen = Comparison(
            anchors=anchors, candidates=known.embeddings, labels=known.labels, rows=known.rows, positives=positives,
            negatives=negatives, opposites=negatives & (own.coarse[:, None] != known.coarse[None, :]),
            keys=at_places(mining_key), step=step, share=(device, devices),
        )  # fmt: skip
        learned = params.get("learned", {}) if isinstance(params, Mapping) else {}
        sums = jax.tree.map(lambda x: _global_value(x, axis_name), objective(seen, learned))
        return reduction(sums), (sums, memory)

    return loss


class _Described(NamedTuple):
    """Embeddings, and what is known of their images."""

    embeddings: Float[Array, "c d"]
    labels: Int[Array, " c"]
    rows: Int[Array, " c"]
    coarse: Int[Array, " c"]


def _remember(memory: Memory, step: Any, known: _Described, warmup_steps: int) -> tuple[_Described, Memory]:
    """The batch with the memory behind it, and the memory with the batch in it."""
    old = recalled(memory, step, warmup_steps)
    memory = enqueue(memory, step, *known)
    embeddings = jnp.concatenate([known.embeddings, old.embeddings.astype(known.embeddings.dtype)])
    return _Described(embeddings, *(jnp.concatenate(pair) for pair in zip(known[1:], old[1:], strict=True))), memory


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
    warmup_steps: int = 0,
    batch_rows: int | None = None,
) -> Step:
    """One update on one (global) batch, as a pure function.

    Args:
      apply: the head.
      objective: what is summed over the batch, see ``fgis.learning.objectives``.
      reduction: the sums of the global batch to a scalar.
      optimizer: what moves the parameters.
      axis_name: of the devices that share a batch; None for one device, or for arrays that the compiler shards.
      warmup_steps: a state with a memory compares the batch with it too, from this step on.
      batch_rows: as in ``make_loss``.

    Returns:
      ``step(state, batch, key) -> (state, metrics)``. Metrics: ``loss``, ``active`` (share of valid terms with a loss
      above 0), ``triplets`` (how many terms were valid) and ``gradient_norm``. A batch without a valid term has loss 0
      and leaves only the optimiser's own motion.
    """
    loss = make_loss(apply, objective, reduction, axis_name, warmup_steps, batch_rows)

    def step(state: TrainState, batch: Batch, key: Key) -> tuple[TrainState, dict[str, Array]]:
        (value, (sums, memory)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, batch, key, state.step, state.memory
        )
        if axis_name:
            gradient = jax.lax.psum(gradient, axis_name)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        valid = jnp.sum(sums.valid)
        metrics = {
            "loss": value,
            "active": jnp.sum(sums.active) / jnp.where(valid > 0, valid, 1.0),
            "triplets": valid,
            "gradient_norm": optax.tree.norm(gradient),
        }
        return TrainState(state.step + 1, params, opt_state, memory), metrics

    return step
