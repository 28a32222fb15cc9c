"""Ranks by counting in a gallery that is read in blocks: the scores of a query are never together.

The gallery is read twice. The first time the score of every member is taken from the block that holds it, the second
time what is nearer is counted, block by block. All blocks have the same centre and the same shape, so that equal
vectors score equally wherever they lie.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from jaxtyping import Float, Int

from fgis.retrieval.measures import MEASURES
from fgis.retrieval.prepare import GROUP, Gallery, Shard, make_shard, prepare_queries
from fgis.retrieval.ranks import count_ranks, nearer_in_row, score_block
from fgis.retrieval.search import query_blocks, require_fitting
from fgis.retrieval.stored import StoredGallery

Visit = Callable[[slice, Float[np.ndarray, "b g"], int, int], None]  # queries, their scores, first and last place


def count_in(
    queries: Float[np.ndarray, "q d"], gallery: Gallery | StoredGallery, members: Int[np.ndarray, "q r"],
    excluded: Int[np.ndarray, " q"],
) -> Int[np.ndarray, "q r"]:  # fmt: skip
    """``count_ranks`` in either kind of gallery, with its arguments; what ties within rounding may change places."""
    if isinstance(gallery, Gallery):
        return count_ranks(queries, gallery, members, excluded=excluded)
    vectors = prepare_queries(queries, gallery.distance)
    places = np.concatenate([members, excluded[:, None]], axis=1)
    scores = np.full(places.shape, -np.inf, np.float32)
    counts = np.zeros(members.shape, np.int64)
    _visit(vectors, gallery, partial(_take_scores, scores, places))
    _visit(vectors, gallery, partial(_count_nearer, counts, scores[:, :-1], members))
    own, unseen = scores[:, :-1], scores[:, -1:]
    counts_itself = (excluded[:, None] >= 0) & ((unseen > own) | ((unseen == own) & (excluded[:, None] < members)))
    flat = np.logical_and(~vectors.any(axis=1), MEASURES[gallery.distance].zero_is_far)[:, None]  # all equally far
    before = (excluded[:, None] >= 0) & (excluded[:, None] < members)
    ranks = np.where(flat, members - before, counts - counts_itself)
    return np.where(members >= 0, ranks, -1)


def _visit(vectors: Float[np.ndarray, "q d"], gallery: StoredGallery, visit: Visit) -> None:
    """Calls ``visit`` with the scores of every block of queries in every block of the gallery."""
    for first, shard, count in _shards(gallery):
        require_fitting(vectors, Gallery((shard,), gallery.distance))
        for block in query_blocks(len(vectors), len(shard.centred)):
            here = vectors[block]
            scored = np.asarray(score_block(here, shard, gallery.distance, block.stop - block.start, raw=False))
            visit(block, scored[: len(here), :count], first, first + count)


def _shards(gallery: StoredGallery) -> Iterator[tuple[int, Shard, int]]:
    """(place of its first row, block, number of rows), all with the centre of the first and filled up to its shape."""
    measure, first, shape = MEASURES[gallery.distance], 0, 0
    # A zero vector anywhere has to stay one; otherwise smaller numbers round less.
    centre = np.zeros(gallery.vectors.shape[1], np.float32) if measure.zero_is_far else None
    for rows, embeddings in gallery.blocks():
        own = prepare_queries(embeddings, gallery.distance, "gallery")
        shape = shape or len(own) + -len(own) % GROUP
        shard = make_shard(own, rows, measure, centre=centre, size=shape)
        centre = shard.centre
        yield first, shard, len(rows)
        first += len(rows)


def _take_scores(
    scores: Float[np.ndarray, "q r"], places: Int[np.ndarray, "q r"], block: slice, scored: np.ndarray, start: int,
    stop: int,
) -> None:  # fmt: skip
    """The scores of members that lie in this block of the gallery."""
    query, member = np.nonzero((places[block] >= start) & (places[block] < stop))
    scores[block][query, member] = scored[query, places[block][query, member] - start]


def _count_nearer(
    counts: Int[np.ndarray, "q r"], own: Float[np.ndarray, "q r"], members: Int[np.ndarray, "q r"], block: slice,
    scored: np.ndarray, start: int, stop: int,
) -> None:  # fmt: skip
    """Adds what is nearer than each member in this block of the gallery."""
    flags = np.empty(stop - start, bool)
    cuts = np.where(members[block] < 0, -1, np.clip(members[block] - start, 0, stop - start))
    for q, row in enumerate(scored):
        counts[block][q] += nearer_in_row(row, flags, cuts[q].tolist(), own[block][q].tolist())
