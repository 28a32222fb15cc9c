"""Cross-batch memory (XBM; Wang 2020, arXiv:1912.06798): embeddings of earlier batches as further candidates.

It lives in ``TrainState.memory`` as a ring of m places, is replicated over devices and saved with every checkpoint. The
place to write next follows from the step, so that there is no position to lose.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Memory(NamedTuple):
    """What was embedded most recently; ``rows`` is -1 where nothing has been written yet."""

    embeddings: Float[Array, "m d"]
    labels: Int[Array, " m"]
    rows: Int[Array, " m"]
    coarse: Int[Array, " m"]


def empty_memory(size: int, dimensions: int) -> Memory:
    """A memory with nothing in it.

    Args:
      size: places; a whole batch at least, or part of every batch is lost.
      dimensions: of the embeddings.

    Returns:
      Float32 embeddings of 0, and rows of -1.
    """
    none = jnp.full(size, -1, jnp.int32)
    return Memory(jnp.zeros((size, dimensions), jnp.float32), none, none, none)


def enqueue(
    memory: Memory,
    step: Any,
    embeddings: Float[Array, "b d"],
    labels: Int[Array, " b"],
    rows: Int[Array, " b"],
    coarse: Int[Array, " b"],
) -> Memory:
    """The memory after step ``step``: the batch takes the places (step · b + i) mod m, the oldest ones.

    Args:
      memory: before the step.
      step: [] integer.
      embeddings: of the batch; no gradient passes into the memory.
      labels: of the batch.
      rows: of the batch; padding (-1) takes places too, which then hold nothing.
      coarse: of the batch.

    Returns:
      The memory of the next step. Of a batch larger than the memory the last m rows are kept.
    """
    size, batch = len(memory.rows), len(rows)
    kept = min(size, batch)
    period = size // math.gcd(size, batch)  # steps after which the places repeat: keeps the product small
    places = ((step % period) * batch + jnp.arange(batch - kept, batch)) % size
    new = Memory(jax.lax.stop_gradient(embeddings).astype(memory.embeddings.dtype), labels, rows, coarse)
    return jax.tree.map(lambda old, new: old.at[places].set(new[batch - kept :].astype(old.dtype)), memory, new)


def recalled(memory: Memory, step: Any, warmup_steps: int) -> Memory:
    """The memory as candidates: nothing of it during the first ``warmup_steps`` steps, while embeddings still drift."""
    return memory._replace(rows=jnp.where(step >= warmup_steps, memory.rows, -1))
