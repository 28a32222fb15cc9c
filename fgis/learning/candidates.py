"""Masked searches over the candidates of every anchor at once, in O(a c) memory: what strategies are made of.

Ties go to the lowest candidate index everywhere. Where a mask is empty, the index is 0 and "found" is False.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fgis.base import BatchInfo, Key, Triplets

NO_INFO = BatchInfo()  # nothing is known of a batch beforehand


def first_true(mask: Bool[Array, "a c"]) -> tuple[Int[Array, " a"], Bool[Array, " a"]]:
    """The index of the first True of each row, and whether there is one (0 where not): faster than ``argmax``.

    Float32 holds every index below 2²⁴, and on a CPU its maxima are faster than those of integers.
    """
    c = mask.shape[1]
    index = -jnp.max(jnp.where(mask, -jnp.arange(c, dtype=jnp.float32), -c), axis=1).astype(jnp.int32)
    return jnp.where(index < c, index, 0), index < c


def nearest_candidate(
    distances: Float[Array, "a c"], mask: Bool[Array, "a c"]
) -> tuple[Int[Array, " a"], Bool[Array, " a"]]:
    """The candidate at the smallest distance under ``mask``, and whether there is one: much faster than ``argmin``.

    A distance that is NaN is taken rather than lost, so that a loss shows it.
    """
    # Not a minimum: compared with all distances, XLA would write that out [a, c] on a CPU.
    smallest = -jnp.max(jnp.where(mask, -distances, -jnp.inf), axis=1)
    return first_true(mask & ~(distances > smallest[:, None]))


def farthest_candidate(
    distances: Float[Array, "a c"], mask: Bool[Array, "a c"]
) -> tuple[Int[Array, " a"], Bool[Array, " a"]]:
    """The candidate at the largest distance under ``mask``, and whether there is one; NaN as ``nearest_candidate``."""
    return nearest_candidate(-distances, mask)


def next_positive(
    remaining: Bool[Array, "a c"],
) -> tuple[Int[Array, " a"], Bool[Array, " a"], Bool[Array, "a c"]]:
    """The first remaining positive of each anchor, whether there is one, and the positives that remain after it."""
    first, found = first_true(remaining)
    return first, found, remaining & (jnp.arange(remaining.shape[1]) != first[:, None])


def cumulative_sum(weights: Float[Array, "a c"]) -> Float[Array, "a c"]:
    """``cumsum`` along each row, faster on a CPU: within every 32 entries by a product with a triangle of ones."""
    a, c = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -c % 32))).reshape(a, -1, 32)
    inside = jnp.matmul(blocks, jnp.triu(jnp.ones((32, 32))), precision="highest")
    before = jnp.cumsum(inside[:, :, -1], axis=1) - inside[:, :, -1]
    return (inside + before[:, :, None]).reshape(a, -1)[:, :c]


def one_per_pair(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    info: BatchInfo,
    choose: Callable[[Array, Any], tuple[Array, Array]],
    numbers: Float[Array, "s a"] | None = None,
) -> Triplets:
    """One triplet per positive: the j-th positives of all anchors together, one j after the other, in O(a c) memory.

    ``choose(d_ap [a, 1], numbers[j])`` gives the negative of each anchor, and whether there is one.
    """
    a, c = distances.shape

    def one_slot(remaining: Array, number: Any) -> tuple[Array, tuple[Array, Array, Array]]:
        positive, valid, remaining = next_positive(remaining)
        negative, found = choose(jnp.take_along_axis(distances, positive[:, None], axis=1), number)
        return remaining, (positive, negative, (valid & found).astype(distances.dtype))

    slots = _slots(info, c)
    _, found = jax.lax.scan(one_slot, positives, numbers, length=slots)
    return Triplets(np.tile(np.arange(a), slots), *(x.ravel() for x in found))


def one_drawn_per_pair(
    key: Key,
    weights: Float[Array, "a c"],
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    info: BatchInfo,
) -> Triplets:
    """For every pair, one candidate with probability proportional to its weight, by inverting the cumulative weights.

    One uniform number per pair is enough, where Gumbel noise takes one per pair and candidate; and a candidate of
    weight 0 leaves the draw as it was, wherever it stands. No draw where all weights are 0.
    """
    a, c = weights.shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(a)) if key.ndim == 0 else key
    draw = lambda key: jax.random.uniform(key, (_slots(info, c),), jnp.float32)
    # Rounding lets a cumulative sum move, even down, at a candidate of weight 0: only the others can be drawn.
    cumulative = jnp.where(weights > 0, cumulative_sum(weights), 0)
    total = cumulative.max(axis=1)

    def choose(_: Array, number: Float[Array, " a"]) -> tuple[Array, Array]:
        return first_true(cumulative > (number * total)[:, None])

    return one_per_pair(distances, positives, info, choose, jax.vmap(draw, out_axes=1)(keys))


def _slots(info: BatchInfo, candidates: int) -> int:
    """How many pairs of an anchor are listed."""
    return min(info.max_positives or candidates, candidates)
