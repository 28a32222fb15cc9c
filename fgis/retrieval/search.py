"""Exact nearest neighbours: select by one matrix product, decide by exact distances, and know when that is certain.

A product scores a block of queries against the whole gallery at once, but its last bits depend on the shape of the
block. So it only selects: the ``k`` best and a few more are compared again by distances that are computed pair by
pair, and a query for which rounding could have hidden a nearer entry is searched again, with more candidates. The
result is therefore the same, bit for bit, for any block size and any number of devices, and parts of a gallery
(shards, blocks of a stream) are simply merged.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from fgis.base import Neighbours
from fgis.retrieval.best_scores import Pending, begin_selection, end_selection
from fgis.retrieval.dealing import dealt
from fgis.retrieval.measures import MEASURES, Measure
from fgis.retrieval.prepare import Gallery, Shard, prepare_gallery, prepare_queries

SCORES = 1 << 25  # scores at a time, 128 MiB: what a block of queries may take on the device
BLOCKS = (1, 8, 64, 256, 512)  # queries at a time; few sizes, since each of them is a compilation
PAIRS = 1 << 16  # numbers at a time where pairs are compared, 256 KiB: they stay in the cache
MARGIN = 6  # candidates beyond k: with more of them fewer queries are searched again
SURELY = 3  # times the rounding of a score, behind which no column can be nearer than one in front: 2 and a little
WIDER = 8  # times as many candidates for a query that is searched again


class Part(NamedTuple):
    """The nearest entries of a part of the gallery, by (distance, row); all others are at ``cut`` or farther."""

    rows: Int[np.ndarray, "q m"]
    distances: Float[np.ndarray, "q m"]
    cut: Float[np.ndarray, " q"]


class Begun(NamedTuple):
    """A block of queries that the device selects for."""

    selection: Pending
    squares: Float[np.ndarray, " q"]  # of the queries, from the centre of the shard


def search(
    queries: Float[Array | np.ndarray, "q d"],
    gallery: Float[Array | np.ndarray, "g d"] | Gallery,
    k: int,
    distance: str = "cosine",
    query_rows: Int[np.ndarray, " q"] | None = None,
    gallery_rows: Int[np.ndarray, " g"] | None = None,
) -> Neighbours:
    """The ``k`` nearest gallery rows of every query, by ascending distance; ties go to the lowest row.

    Args:
      queries: embeddings [q, d].
      gallery: embeddings [g, d], or a prepared ``Gallery``, which brings its own distance and rows.
      k: how many neighbours; of a smaller gallery, the remaining entries are empty.
      distance: a key of ``fgis.distances.DISTANCES``.
      query_rows: [q] the row of each query in the gallery; the entry with that row is left out of its list. It is left
        out by its row and not by its rank, since a duplicate of the query may tie with it.
      gallery_rows: [g] the row ids of the gallery, 0 … g−1 by default.

    Returns:
      Rows [q, k], -1 where the list is empty; distances [q, k], those of ``fgis.distances`` up to rounding, but exactly
      0 between equal vectors, and infinite where the list is empty; ``tied`` [q], whether an entry that was cut off is
      as near as the last one listed. The same bits for any size of blocks and any number of devices.

    Raises:
      ValueError: ``k`` below 1, an empty gallery, an unknown distance, shapes that do not fit, or an embedding that is
        NaN or infinite (it would rank first).

    >>> points = np.array([[0.0], [1.0], [3.0]], np.float32)
    >>> search(points[:1], points, 2, "euclidean").rows
    array([[0, 1]])
    >>> search(points[:1], points, 2, "euclidean", query_rows=np.array([0])).rows
    array([[1, 2]])
    """
    if not isinstance(gallery, Gallery):
        gallery = prepare_gallery(gallery, distance, gallery_rows)
    vectors = prepare_queries(queries, gallery.distance)
    require_fitting(vectors, gallery, query_rows)
    blocks = list(query_blocks(len(vectors), len(gallery.shards[0].rows)))
    search_share = lambda gallery, vectors, rows: _to_neighbours(_search_shards(vectors, gallery, k, rows), k)
    return _join_shares(dealt(search_share, gallery, blocks, vectors, query_rows))


def _join_shares(shares: Sequence[Neighbours]) -> Neighbours:
    return (
        shares[0] if len(shares) == 1 else Neighbours(*(np.concatenate(parts) for parts in zip(*shares, strict=True)))
    )


def search_stream(
    queries: Float[Array | np.ndarray, "q d"],
    blocks: Iterable[tuple[np.ndarray, Any]],
    k: int,
    distance: str = "cosine",
    query_rows: Int[np.ndarray, " q"] | None = None,
) -> Neighbours:
    """``search`` in a gallery that comes in blocks, one in memory at a time.

    Args:
      queries: embeddings [q, d].
      blocks: pairs of (rows [b], embeddings [b, d]); no row may come twice.
      k: how many neighbours.
      distance: a key of ``fgis.distances.DISTANCES``.
      query_rows: as in ``search``.

    Returns:
      What ``search`` returns for all blocks together, bit for bit.

    Raises:
      ValueError: as ``search``; no block, or an empty one, is an empty gallery.
    """
    vectors, part = prepare_queries(queries, distance), None
    for rows, embeddings in blocks:
        nearest = _search_shards(vectors, prepare_gallery(embeddings, distance, rows), k, query_rows)
        part = nearest if part is None else _merge_parts([part, nearest], k + MARGIN)
    if part is None:
        raise ValueError("gallery: empty; nothing can be retrieved, give it at least one embedding")
    return _to_neighbours(part, k)


def _search_shards(
    queries: Float[np.ndarray, "q d"], gallery: Gallery, k: int, query_rows: Int[np.ndarray, " q"] | None
) -> Part:
    """The ``k`` nearest and up to MARGIN more, of queries and a gallery that are prepared."""
    if k < 1:
        raise ValueError(f"k: {k} found; write a whole number of at least 1")
    require_fitting(queries, gallery, query_rows)
    own = [np.full(len(queries), -1) if query_rows is None else find_places(query_rows, s.rows) for s in gallery.shards]
    beyond = MARGIN + (query_rows is not None)  # the own entry may be among them
    depths = [min(k + beyond, len(shard.rows)) for shard in gallery.shards]
    parts = _search_blocks(queries, own, gallery, depths)
    for number, (shard, part) in enumerate(zip(gallery.shards, parts, strict=True)):
        one, depth = Gallery((shard,), gallery.distance), depths[number]
        while depth < len(shard.rows):
            unsure = np.flatnonzero(part.distances[:, min(k, depth) - 1] >= part.cut)
            if not len(unsure):
                break
            depth = min(WIDER * depth, len(shard.rows))
            (wider,) = _search_blocks(queries[unsure], [own[number][unsure]], one, [depth], keep=part.rows.shape[1])
            for old, new in zip(part, wider, strict=True):
                old[unsure] = new
    return _merge_parts(parts, k + MARGIN)


def require_fitting(
    queries: Float[np.ndarray, "q d"], gallery: Gallery, query_rows: Int[np.ndarray, " q"] | None = None
) -> None:
    """``ValueError`` where prepared queries have not the size of the gallery's vectors, or rows are not one a query."""
    sizes = queries.shape[1], gallery.shards[0].vectors.shape[1]
    if sizes[0] != sizes[1]:
        raise ValueError(f"queries: embeddings of {sizes[0]} numbers found; those of the gallery have {sizes[1]}")
    if query_rows is not None and np.shape(query_rows) != (len(queries),):
        raise ValueError(f"query_rows: shape {np.shape(query_rows)} found; write one row for each query")


def find_places(rows: Int[np.ndarray, "*s"], gallery_rows: Int[np.ndarray, " g"]) -> Int[np.ndarray, "*s"]:
    """The place of each row id in ``gallery_rows``, in the shape of ``rows``; -1 where it is not among them.

    >>> find_places(np.array([7, 5, 6]), np.array([5, 7]))
    array([ 1,  0, -1])
    """
    order = np.argsort(gallery_rows, kind="stable")
    place = np.searchsorted(gallery_rows, rows, sorter=order).clip(max=len(gallery_rows) - 1)
    return np.where(gallery_rows[order[place]] == rows, order[place], -1)


def _search_blocks(
    queries: Float[np.ndarray, "q d"], own: Sequence[np.ndarray], gallery: Gallery, depths: Sequence[int],
    keep: int | None = None,
) -> list[Part]:  # fmt: skip
    """The part of every shard, block by block: devices select from one block while the host decides the one before.

    ``depths`` are selected, and the first ``keep`` of them (all without it) kept.
    """
    kept = [min(depth, keep or depth) for depth in depths]
    parts = [Part(np.full((len(queries), m), -1), _infinite(len(queries), m), _infinite(len(queries))) for m in kept]
    measure, waiting = MEASURES[gallery.distance], []
    for block in [*query_blocks(len(queries), max(len(shard.rows) for shard in gallery.shards)), None, None]:
        if block is not None:
            selected = [
                _dispatch(queries[block], shard, depth, gallery.distance, block.stop - block.start)
                for shard, depth in zip(gallery.shards, depths, strict=True)
            ]
            waiting.append((block, selected))
        if waiting and (block is None or len(waiting) > 1):
            done, selected = waiting.pop(0)
            for part, shard, mine, chosen in zip(parts, gallery.shards, own, selected, strict=True):
                _decide(part, done, queries[done], mine[done], shard, measure, chosen)
    return parts


def _infinite(*shape: int) -> np.ndarray:
    return np.full(shape, np.inf, np.float32)


def query_blocks(count: int, gallery_size: int) -> Iterator[slice]:
    """Slices over ``count`` queries; the last one may reach beyond them, to one of the sizes that are compiled."""
    size = max((block for block in BLOCKS if block * gallery_size <= SCORES), default=BLOCKS[0])
    for start in range(0, count, size):
        yield slice(start, start + min(block for block in BLOCKS if block >= min(count - start, size)))


def _dispatch(queries: np.ndarray, shard: Shard, depth: int, distance: str, size: int) -> Begun | None:
    """Start the selection of one block, filled up to ``size``; None where the whole shard is selected."""
    if depth == len(shard.rows):
        return None
    shifted = queries - shard.centre
    squares = np.einsum("nd,nd->n", shifted, shifted)
    filled = np.pad(shifted, ((0, size - len(queries)), (0, 0))) if size > len(queries) else shifted
    return Begun(begin_selection(filled, shard.centred, shard.offsets, depth, distance), squares)


def _decide(
    part: Part, block: slice, queries: np.ndarray, own: np.ndarray, shard: Shard, measure: Measure,
    begun: Begun | None,
) -> None:  # fmt: skip
    """Fill a block of ``part``: exact distances of what was selected, in order, and the bound on all others."""
    if begun is None:
        places = np.broadcast_to(np.arange(len(shard.rows)), (len(queries), len(shard.rows)))
    else:
        slack = _slack(begun.squares, queries.shape[1], shard, measure)
        # What comes next tells ties. Scores of products bound those of all columns alike; other scores do not.
        wanted = part.rows.shape[1] - MARGIN + 1 if measure.product else begun.selection.depth
        least, places = end_selection(begun.selection, shard.offsets, wanted, SURELY * slack)
        bound = _bound(begun.squares, least, slack, measure)
        part.cut[block] = np.where(queries.any(axis=1), bound, -np.inf) if measure.zero_is_far else bound
    distances = measure.finish(_exact_keys(queries, shard.vectors, places, measure))
    rows = shard.rows.take(places)
    if own.max(initial=-1) >= 0:
        excluded = places == own[:, None]
        distances, rows = np.where(excluded, np.inf, distances), np.where(excluded, -1, rows)
    order = np.lexsort((rows, distances))[:, : part.rows.shape[1]]
    width = order.shape[1]
    part.rows[block, :width], part.distances[block, :width] = (
        np.take_along_axis(x, order, axis=1) for x in (rows, distances)
    )


def _exact_keys(queries: np.ndarray, vectors: np.ndarray, places: np.ndarray, measure: Measure) -> np.ndarray:
    """The keys [q, m] of the pairs of each query with the vectors at its places."""
    keys = np.empty(places.shape, np.float32)
    step = max(1, PAIRS // (places.shape[1] * queries.shape[1]))
    taken, room = (np.empty((min(step, len(queries)), places.shape[1], queries.shape[1]), np.float32) for _ in "ab")
    for start in range(0, len(queries), step):
        here = slice(start, min(start + step, len(queries)))
        count = here.stop - start
        vectors.take(places[here], axis=0, out=taken[:count], mode="clip")
        keys[here] = measure.exact(queries[here, None], taken[:count], room[:count])
    return keys


def _slack(squares: np.ndarray, dimensions: int, shard: Shard, measure: Measure) -> Float[np.ndarray, " q"]:
    """What a score is rounded by at most, of distances that a product gives; in shares of the score, of others.

    A sum of d rounded products is off by at most 8 √d u ‖a‖ ‖b‖, u = ε/2, but for a probability of 3e-14 (Higham and
    Mary 2019, theorem 2.4, λ = 8); the certain bound, d u ‖a‖ ‖b‖, would have many more queries searched again.
    """
    relative = 4 * np.sqrt(dimensions) * np.finfo(np.float32).eps
    if not measure.product:
        return np.full(len(squares), relative, np.float32)
    return relative * (np.sqrt(squares) + shard.largest) ** 2


def _bound(squares: np.ndarray, least: np.ndarray, slack: np.ndarray, measure: Measure) -> Float[np.ndarray, " q"]:
    """The distance that nothing can be below which scored no better than ``least``, however that was rounded."""
    if not measure.product:
        return measure.finish(-least * (1 - slack))
    if measure.product == "dot":
        return measure.finish((-least - slack).astype(np.float32))
    return measure.finish(np.maximum(0.5 * squares - least - slack, 0).astype(np.float32))


def _merge_parts(parts: Sequence[Part], depth: int) -> Part:
    """One part from several of the same queries."""
    if len(parts) == 1:
        return parts[0]
    rows, distances = (np.concatenate(x, axis=1) for x in ([p.rows for p in parts], [p.distances for p in parts]))
    order = np.lexsort((rows, distances))[:, :depth]
    rows, distances = (np.take_along_axis(x, order, axis=1) for x in (rows, distances))
    return Part(rows, distances, np.min([part.cut for part in parts], axis=0))


def _to_neighbours(part: Part, k: int) -> Neighbours:
    """The first ``k`` entries, filled up with -1; tied where the entry after the last one is as near."""
    width = part.rows.shape[1]
    missing = ((0, 0), (0, max(0, k - width)))
    rows = np.pad(part.rows[:, :k], missing, constant_values=-1)
    distances = np.pad(part.distances[:, :k], missing, constant_values=np.inf)
    last = part.distances[:, k - 1] if width > k else np.full(len(rows), np.inf, np.float32)
    behind = part.distances[:, k] if width > k else last
    return Neighbours(rows, distances, np.isfinite(behind) & (last == behind))
