"""The ranks of given gallery images in the whole ranking, by counting what is nearer: no list is ever sorted.

The scores of a block of queries lie in memory once, and every member is compared with all of them: O(q · g · r) work
for r members a query, and O(SCORES) memory. Equal vectors score equally and are ranked by their place; distances that
differ by less than the rounding of a product (about √d · 1e-7 of the norms) may change places.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fgis.retrieval import search
from fgis.retrieval.measures import MEASURES

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
    (shard,) = gallery.shards
    vectors = search.prepare_queries(queries, gallery.distance)
    search.require_fitting(vectors, gallery)
    on_host = jax.default_backend() == "cpu"  # there NumPy compares three times as fast as compiled code
    excluded = np.full(len(members), -1) if excluded is None else excluded
    ranks = np.empty(members.shape, np.int64)
    waiting: list[tuple[slice, Any]] = []
    for block in [*search.query_blocks(len(vectors), len(shard.centred)), None]:
        if block is not None:
            scores = _score_block(vectors[block], shard, gallery.distance, block.stop - block.start)
            waiting.append((block, scores if on_host else _count_on_device(scores, members[block], excluded[block])))
        if block is None or len(waiting) > 1:  # one block is scored while the one before is counted
            done, counted = waiting.pop(0)
            here = members[done]
            counted = np.asarray(counted)[: len(here)]
            ranks[done] = _count_on_host(counted, here, excluded[done]) if on_host else counted
    return ranks


def _score_block(queries: np.ndarray, shard: search.Shard, distance: str, size: int) -> Array:
    """Scores [size, g'] of a block of queries, which is filled up to ``size``: the higher, the nearer."""
    filled = np.zeros((size, queries.shape[1]), np.float32)
    filled[: len(queries)] = queries - shard.centre
    # Everything is equally far from a zero vector.
    flat = np.logical_and(~queries.any(axis=1), MEASURES[distance].zero_is_far)
    return _compiled_scores(filled, np.pad(flat, (0, size - len(queries))), shard.centred, shard.offsets, distance)


@partial(jax.jit, static_argnums=4)
def _compiled_scores(queries: Array, flat: Array, vectors: Array, offsets: Array, distance: str) -> Array:
    return jnp.where(flat[:, None], 0, search.raw_scores(queries, vectors, distance) - offsets)


def _count_on_host(scores: np.ndarray, members: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Ranks in one block of scores [b, g]; row by row, since a row and its comparisons stay in the cache."""
    ranks = np.full(members.shape, -1)
    for q, row in enumerate(scores):
        unseen = row[excluded[q]] if excluded[q] >= 0 else -np.inf
        for i, place in enumerate(members[q]):
            if place < 0:
                continue
            score = row[place]
            nearer, as_near = np.count_nonzero(row > score), np.count_nonzero(row >= score)
            if as_near > nearer + 1:
                nearer += np.count_nonzero(row[:place] == score) - (unseen == score and excluded[q] < place)
            ranks[q, i] = nearer - (unseen > score)
    return ranks


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
