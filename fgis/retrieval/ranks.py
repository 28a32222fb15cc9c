"""Where in the whole ranking given gallery images stand, by counting what is nearer: no list is ever sorted.

The scores of a block of queries lie in memory once, and every member is compared with all of them: O(q · g · r) work
for r members a query, and O(SCORES) memory. Equal vectors score equally and are ranked by their place; distances that
differ by less than the rounding of a product (about √d · 1e-7 of the norms) may change places.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fgis.retrieval import search
from fgis.retrieval.measures import MEASURES


def count_ranks(
    queries: Float[Array | np.ndarray, "q d"],
    gallery: Float[Array | np.ndarray, "g d"] | search.Gallery,
    members: Int[np.ndarray, "q r"],
    distance: str = "cosine",
    left_out: Int[np.ndarray, " q"] | None = None,
) -> tuple[Int[np.ndarray, "q r"], Bool[np.ndarray, " q"]]:
    """(ranks, tied): the 0-based rank of each member among the whole gallery, and whether ties had a say in it.

    ``members`` holds gallery places, each at most once a query, and -1 where there is none; its rank is then -1 too.
    ``left_out``: a place, no member, that each query does not see, such as its own; -1 where it sees all.
    Ties go to the lowest place; ``tied`` marks queries of which a member is as near as an image that is no member.
    A prepared ``Gallery`` (of one shard) brings its own distance. Raises ``UserError`` as ``search`` does.
    """
    if not isinstance(gallery, search.Gallery):
        gallery = search.prepare_gallery(gallery, distance)
    (shard,) = gallery.shards
    asked = search.prepare_queries(queries, gallery.distance)
    flat = np.logical_and(
        ~asked.any(axis=1), MEASURES[gallery.distance].zero_is_far
    )  # everything is equally far from these
    on_host = jax.default_backend() == "cpu"  # there NumPy compares three times as fast as compiled code
    left_out = np.full(len(members), -1) if left_out is None else left_out
    ranks, tied = np.empty(members.shape, np.int64), np.empty(len(members), bool)
    waiting: list[tuple[slice, Any]] = []
    for block in [*search.query_blocks(len(asked), len(shard.centred)), None]:
        if block is not None:
            size, here = block.stop - block.start, len(asked[block])
            filled = np.zeros((size, asked.shape[1]), np.float32)
            filled[:here] = asked[block] - shard.centre
            alike = np.pad(flat[block], (0, size - here))
            scores = _score(filled, alike, shard.centred, shard.offsets, gallery.distance)
            if not on_host:
                unseen = np.pad(left_out[block], (0, size - here), constant_values=-1)
                scores = _count(scores, np.pad(members[block], ((0, size - here), (0, 0)), constant_values=-1), unseen)
            waiting.append((block, scores))
        if block is None or len(waiting) > 1:  # one block is scored while the one before is counted
            done, found = waiting.pop(0)
            own = members[done]
            unseen = left_out[done]
            counted = _compare(np.asarray(found)[: len(own)], own, unseen) if on_host else map(np.asarray, found)
            ranks[done], tied[done] = (x[: len(own)] for x in counted)
    return ranks, tied


@partial(jax.jit, static_argnums=4)
def _score(asked: Array, flat: Array, vectors: Array, offsets: Array, distance: str) -> Array:
    return jnp.where(flat[:, None], 0, search.raw_scores(asked, vectors, distance) - offsets)


def _compare(scores: np.ndarray, members: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ranks, tied) of one block of scores [b, g]; row by row, since a row and its comparisons stay in the cache."""
    ranks, tied = np.full(members.shape, -1), np.zeros(len(members), bool)
    for q, row in enumerate(scores):
        own = members[q][members[q] >= 0]
        unseen = row[left_out[q]] if left_out[q] >= 0 else -np.inf
        for i, place in enumerate(members[q]):
            if place < 0:
                continue
            score = row[place]
            nearer, as_near = np.count_nonzero(row > score), np.count_nonzero(row >= score)
            if as_near > nearer + 1:
                tied[q] |= as_near - nearer > np.count_nonzero(row[own] == score) + (unseen == score)
                nearer += np.count_nonzero(row[:place] == score) - (unseen == score and left_out[q] < place)
            ranks[q, i] = nearer - (unseen > score)
    return ranks, tied


@jax.jit
def _count(scores: Array, members: Array, left_out: Array) -> tuple[Array, Array]:
    """``_compare``, compiled."""
    scores = jnp.where(jnp.arange(scores.shape[1]) == left_out[:, None], -jnp.inf, scores)
    real = members >= 0
    own = jnp.take_along_axis(scores, jnp.maximum(members, 0), axis=1)[..., None]
    tie = (scores[:, None] == own) & (jnp.arange(scores.shape[1]) < members[..., None])
    ranks = jnp.sum((scores[:, None] > own) | tie, axis=-1)
    among = jnp.sum((own == own[:, None, :, 0]) & real[:, None], axis=-1)
    return jnp.where(real, ranks, -1), jnp.any(real & (jnp.sum(scores[:, None] == own, axis=-1) > among), axis=-1)
