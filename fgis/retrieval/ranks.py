"""The ranks of given gallery images in the whole ranking, by counting what is nearer: no list is ever sorted.

The scores of a block of queries lie in memory once, and every member is compared with all of them: O(q · g · r) work
for r members a query, and O(SCORES) memory. Equal vectors score equally and are ranked by their place; distances that
differ by less than the rounding of a product (about √d · 1e-7 of the norms) may change places.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fgis.retrieval import search
from fgis.retrieval.best_scores import raw_scores
from fgis.retrieval.dealing import dealt
from fgis.retrieval.measures import MEASURES

SORTED = 128  # members of a query from which on one sort costs less than a pass over the row for each
ABSENT_RANK = np.iinfo(np.int64).max - 1  # what stands for the rank of an image that is not there: behind everything


def count_ranks(
    queries: Float[Array | np.ndarray, "q d"],
    gallery: Float[Array | np.ndarray, "g d"] | search.Gallery,
    members: Int[np.ndarray, "q r"],
    distance: str = "cosine",
    excluded: Int[np.ndarray, " q"] | None = None,
) -> Int[np.ndarray, "q r"]:
    """The 0-based rank of each member in the ranking of the whole gallery; ties go to the lowest place.

    Args:
      queries: embeddings [q, d].
      gallery: embeddings [g, d], or a prepared ``Gallery`` of one shard, which brings its own distance.
      members: gallery places [q, r], each at most once a query, and -1 where there is none.
      distance: a key of ``fgis.distances.DISTANCES``.
      excluded: [q] a place, no member, that is not part of the query's ranking, such as its own; -1 for none.

    Returns:
      Ranks [q, r], -1 where there is no member.

    Raises:
      ValueError: as ``search``, or a gallery of several shards.

    >>> gallery = np.array([[1.0], [0.0], [4.0], [2.0]], np.float32)
    >>> count_ranks(np.zeros((1, 1), np.float32), gallery, np.array([[0, 2, -1]]), "euclidean")
    array([[ 1,  3, -1]])
    """
    if not isinstance(gallery, search.Gallery):
        gallery = search.prepare_gallery(gallery, distance)
    if len(gallery.shards) > 1:
        raise ValueError(f"gallery: {len(gallery.shards)} shards found; prepare it for one device")
    vectors = search.prepare_queries(queries, gallery.distance)
    search.require_fitting(vectors, gallery)
    excluded = np.full(len(members), -1) if excluded is None else excluded
    blocks = list(search.query_blocks(len(vectors), len(gallery.shards[0].centred)))
    return np.concatenate(dealt(_count_share, gallery, blocks, vectors, members, excluded))


def _count_share(gallery: search.Gallery, vectors: np.ndarray, members: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """The ranks of the members of some queries, block by block."""
    (shard,) = gallery.shards
    on_host = jax.default_backend() == "cpu"  # there NumPy compares three times as fast as compiled code
    ranks, offsets = np.empty(members.shape, np.int64), np.asarray(shard.offsets)
    waiting: list[tuple[slice, Any]] = []
    for block in [*search.query_blocks(len(vectors), len(shard.centred)), None]:
        if block is not None:
            scores = score_block(vectors[block], shard, gallery.distance, block.stop - block.start, on_host)
            waiting.append((block, scores if on_host else _count_on_device(scores, members[block], excluded[block])))
        if block is None or len(waiting) > 1:  # one block is scored while the one before is counted
            done, counted = waiting.pop(0)
            here = members[done]
            counted = np.asarray(counted)[: len(here)]
            ranks[done] = _count_on_host(counted, offsets, here, excluded[done]) if on_host else counted
    flat = ~vectors.any(axis=1) & MEASURES[gallery.distance].zero_is_far  # everything is equally far
    before = (excluded[flat, None] >= 0) & (excluded[flat, None] < members[flat])
    ranks[flat] = np.where(members[flat] >= 0, members[flat] - before, -1)
    return ranks


def score_block(queries: np.ndarray, shard: search.Shard, distance: str, size: int, raw: bool) -> Array:
    """Scores [size, g'] of a block of prepared queries, which is filled up to ``size``: the higher, the nearer.

    ``raw`` ones lack the offsets: a host takes them off while it reads the scores, which saves a pass over memory.
    """
    filled = np.zeros((size, queries.shape[1]), np.float32)
    filled[: len(queries)] = queries - shard.centre
    return _compiled_scores(filled, shard.centred, shard.offsets, distance, raw)


@partial(jax.jit, static_argnums=(3, 4))
def _compiled_scores(queries: Array, vectors: Array, offsets: Array, distance: str, raw: bool) -> Array:
    scores = raw_scores(queries, vectors, distance)
    return scores if raw else scores - offsets


def _count_on_host(scores: np.ndarray, offsets: np.ndarray, members: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Ranks in one block of raw scores [b, g]; row by row, since a row and its comparisons stay in the cache.

    What ties with a member is nearer before its place and not behind it, so that one pass over a row counts all.
    """
    take = lambda places: np.take_along_axis(scores, np.maximum(places, 0), axis=1) - offsets[np.maximum(places, 0)]
    own, unseen = take(members), np.where(excluded[:, None] >= 0, take(excluded[:, None]), -np.inf)
    counts_itself = (unseen > own) | ((unseen == own) & (excluded[:, None] < members))
    row, flags = np.empty(scores.shape[1], np.float32), np.empty(scores.shape[1], bool)
    ranks = np.full(members.shape, -1)
    for q, (places, limits) in enumerate(zip(members, own, strict=True)):
        np.subtract(scores[q], offsets, out=row)
        many = len(places) > SORTED
        ranks[q] = _rank_all(row)[places] if many else nearer_in_row(row, flags, places.tolist(), limits.tolist())
    return np.where(members >= 0, ranks - counts_itself, -1)


def _rank_all(row: Float[np.ndarray, " g"]) -> Int[np.ndarray, " g"]:
    """The rank of every entry of a row of scores."""
    lowest = -row
    order = np.argsort(lowest)  # several times as fast as a stable sort, which only ties need
    ascending = lowest[order]
    if ((ascending[1:] == ascending[:-1]) & np.isfinite(ascending[1:])).any():
        order = np.argsort(lowest, kind="stable")
    ranks = np.empty(len(row), np.int64)
    ranks[order] = np.arange(len(row))
    return ranks


def nearer_in_row(
    row: Float[np.ndarray, " g"], flags: Bool[np.ndarray, " g"], places: Sequence[int], limits: Sequence[float]
) -> Int[np.ndarray, " r"]:
    """How many of a row of scores are above each limit, or as high and before its place.

    Args:
      row: scores, the higher, the nearer; none is NaN.
      flags: as many places of memory to compute in.
      places: of the members, from 0 to g; below 0 where there is none.
      limits: the score of each member.

    Returns:
      Counts, 0 where there is no member.
    """
    counts = np.zeros(len(places), np.int64)
    if len(places) > SORTED:
        at, wanted, ascending = np.asarray(places), np.asarray(limits, row.dtype), np.sort(row)
        counts = len(row) - np.searchsorted(ascending, wanted, "right")
        as_near = len(row) - np.searchsorted(ascending, wanted, "left") - counts
        # Mostly a member ties with itself alone.
        for one in np.flatnonzero((as_near > (at < len(row))) & (at > 0)).tolist():
            counts[one] += np.count_nonzero(row[: places[one]] == wanted[one])
        return np.where(at >= 0, counts, 0)
    for i, (place, limit) in enumerate(zip(places, limits, strict=True)):
        if place >= 0:
            np.greater_equal(row[:place], limit, out=flags[:place])
            np.greater(row[place:], limit, out=flags[place:])
            counts[i] = np.count_nonzero(flags)
    return counts


def _count_on_device(scores: Array, members: np.ndarray, excluded: np.ndarray) -> Array:
    """``_count_on_host``, compiled, for as many queries as there are scores."""
    missing = len(scores) - len(members)
    members = np.pad(members, ((0, missing), (0, 0)), constant_values=-1)
    return _compiled_ranks(scores, members, np.pad(excluded, (0, missing), constant_values=-1))


@jax.jit
def _compiled_ranks(scores: Array, members: Array, excluded: Array) -> Array:
    scores = jnp.where(jnp.arange(scores.shape[1]) == excluded[:, None], -jnp.inf, scores)
    own = jnp.take_along_axis(scores, jnp.maximum(members, 0), axis=1)[..., None]
    tie = (scores[:, None] == own) & (jnp.arange(scores.shape[1]) < members[..., None])
    ranks = jnp.sum((scores[:, None] > own) | tie, axis=-1)
    return jnp.where(members >= 0, ranks, -1)
