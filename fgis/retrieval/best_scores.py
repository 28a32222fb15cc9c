"""The best scores of a block of queries among all columns of a gallery: what a search selects from.

The best ``depth`` columns lie in the ``depth`` groups with the best maxima, and maxima cost little more than writing
the product down, while sorting or ``top_k`` over all columns costs as much as the product. An accelerator takes the
``top_k`` of the maxima. On a CPU that alone is half a product; there NumPy finds the ``depth``-th best maximum of large
groups (a partial selection, by the instructions that the processor has), and lists by comparing what reaches it: large
groups, the small ones in them, and their columns.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fgis.distances import pairwise_distances
from fgis.retrieval.measures import MEASURES

FACTORS = (8, 8)  # columns of a small group, small groups of a large one; ``prepare.GROUP`` is their product
ENOUGH = 2  # groups for each column that is wanted: with fewer, most groups would be chosen
ON_HOST = ("cpu",)  # platforms whose ``top_k`` is slower than NumPy's selection, with AVX2 as with AVX-512
TIES = 2  # as many as are wanted are listed in the mean; with more ties, queries are selected for one by one


class Pending(NamedTuple):
    """A selection that a device has begun: every level of scores, from columns up, or what is selected already."""

    arrays: tuple[Array, ...]
    depth: int
    on_host: bool


def raw_scores(queries: Array, vectors: Array, distance: str) -> Array:
    """Scores [q, g]: the higher a score less the offset of its column, the nearer; to be traced."""
    if MEASURES[distance].product:
        return jnp.einsum("qd,gd->qg", queries, vectors, precision="highest")
    return -pairwise_distances(queries, vectors, distance)


def begin_selection(
    queries: Float[np.ndarray, "q d"], vectors: Array, offsets: Array, depth: int, distance: str
) -> Pending:
    """Start the selection of the ``depth`` best columns for every query, on the device that holds ``vectors``.

    Args:
      queries: [q, d], of one of the sizes that are compiled.
      vectors: [g, d], g a multiple of ``prepare.GROUP``.
      offsets: [g] taken off every query's scores; infinite of columns that are no entry.
      depth: how many, fewer than there are entries.
      distance: a key of ``fgis.distances.DISTANCES``.

    Returns:
      What ``end_selection`` waits for.
    """
    factors = group_factors(len(vectors), depth)
    if next(iter(vectors.devices())).platform in ON_HOST:
        return Pending(_score_levels(queries, vectors, offsets, distance, factors), depth, on_host=True)
    return Pending(_select(queries, vectors, offsets, distance, factors, depth), depth, on_host=False)


def end_selection(
    pending: Pending, offsets: Array, wanted: int, slack: Float[np.ndarray, " q"]
) -> tuple[Float[np.ndarray, " q"], Int[np.ndarray, "q m"]]:
    """Waits for what was begun, and leaves out what cannot be among the ``wanted`` nearest.

    Args:
      pending: from ``begin_selection``.
      offsets: as there.
      wanted: how many entries are to be known for certain, at most the depth.
      slack: of the first q queries, what rounding can have added to the difference of two scores.

    Returns:
      Scores [q] that no column exceeds which is not listed, and places [q, m] in descending order of scores,
      ``wanted`` <= m <= depth.
    """
    arrays = tuple(np.asarray(x)[: len(slack)] for x in pending.arrays)
    scores, places = _choose(arrays, pending.depth, np.asarray(offsets)) if pending.on_host else arrays
    near = scores >= scores[:, wanted - 1, None] - slack[:, None]
    width = int(near.sum(axis=1).max(initial=wanted))
    return scores[:, min(width, pending.depth - 1)], places[:, :width]


def group_factors(columns: int, depth: int) -> tuple[int, ...]:
    """Which of ``FACTORS`` groups are made by; none where there are few columns.

    >>> [group_factors(columns, 16) for columns in (64, 1000, 10_000)]
    [(), (8,), (8, 8)]
    """
    upto = [count for count in range(len(FACTORS) + 1) if columns >= ENOUGH * depth * np.prod(FACTORS[:count])]
    return FACTORS[: max(upto, default=0)]


@partial(jax.jit, static_argnums=(3, 4))
def _score_levels(
    queries: Array, vectors: Array, offsets: Array, distance: str, factors: tuple[int, ...]
) -> tuple[Array, ...]:
    """Scores [q, g] and, level by level, maxima [q, groups]; without groups, scores less offsets alone.

    Group i of n holds i, i + n, i + 2n, ... of the level below: so, processors take many maxima at once. Offsets are
    taken off within the first maximum, where that is free; before it, it is a pass over memory.
    """
    scores = raw_scores(queries, vectors, distance)
    if not factors:
        return (scores - offsets,)
    grouped = scores.reshape(len(scores), factors[0], -1) - offsets.reshape(factors[0], -1)
    levels = [scores, grouped.max(axis=1)]
    for factor in factors[1:]:
        levels.append(levels[-1].reshape(len(scores), factor, -1).max(axis=1))
    return tuple(levels)


@partial(jax.jit, static_argnums=(3, 4, 5))
def _select(
    queries: Array, vectors: Array, offsets: Array, distance: str, factors: tuple[int, ...], depth: int
) -> tuple[Array, Array]:
    """Scores and places of the ``depth`` best, in descending order."""
    size = int(np.prod(factors))
    scores, *maxima = _score_levels(queries, vectors, offsets, distance, (size,) if factors else ())
    best, places = jax.lax.top_k(maxima[0] if maxima else scores, depth)
    if not maxima:
        return best, places
    members = (jnp.arange(size) * maxima[0].shape[1] + places[:, :, None]).reshape(len(queries), -1)
    best, places = jax.lax.top_k(jnp.take_along_axis(scores, members, axis=1) - offsets[members], depth)
    return best, jnp.take_along_axis(members, places, axis=1)


def _choose(levels: Sequence[np.ndarray], depth: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``_select`` on the host: a threshold, and level by level what reaches it."""
    count, groups = levels[-1].shape
    threshold = np.partition(levels[-1], groups - depth, axis=1)[:, groups - depth]
    query, place = np.divmod(np.flatnonzero(levels[-1] >= threshold[:, None]), groups)
    values = levels[-1][query, place] if len(levels) == 1 else threshold  # of columns, at the last level
    for upper, level in pairwise(reversed(levels)):
        if len(place) > TIES * count * depth:
            return _choose_one_by_one(levels, depth, offsets)
        width, factor = level.shape[1], level.shape[1] // upper.shape[1]
        places = place[:, None] + np.arange(0, width, upper.shape[1])
        values = level.reshape(-1).take(places + (query * width)[:, None])
        if level is levels[0]:
            values -= offsets.take(places)
        hits = np.flatnonzero(values >= threshold.take(query)[:, None])
        query, place, values = query.repeat(factor).take(hits), places.take(hits), values.take(hits)
    if len(place) > TIES * count * depth:
        return _choose_one_by_one(levels, depth, offsets)
    numbers = np.bincount(query, minlength=count)
    width = int(numbers.max(initial=depth))
    # The cell of each in a table of one row a query: query · width + its turn among those of its query.
    cells = np.arange(len(query)) + (np.arange(count) * width - np.cumsum(numbers) + numbers).repeat(numbers)
    table, listed = np.full(count * width, np.inf, np.float32), np.zeros(count * width, np.int64)
    table[cells], listed[cells] = -values, place
    order = np.argsort(table.reshape(count, width), axis=1)[:, :depth] + np.arange(0, count * width, width)[:, None]
    return -table.take(order), listed.take(order)


def _choose_one_by_one(levels: Sequence[np.ndarray], depth: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same where so many columns tie that a list of them would take memory."""
    scores, places = (np.empty((len(levels[0]), depth), kind) for kind in (np.float32, np.int64))
    for q, row in enumerate(levels[0]):
        values = row - offsets if len(levels) > 1 else row
        best = np.argpartition(values, len(values) - depth)[len(values) - depth :]
        places[q] = best[np.argsort(-values[best])]
        scores[q] = values[places[q]]
    return scores, places
