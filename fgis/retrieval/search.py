"""Exact nearest neighbours: select by one matrix product, decide by exact distances, and know when that is certain.

A product scores a block of queries against the whole gallery at once, but rounds in its last bits as the shape of the
block has it. So it only selects: the ``k`` best and a few more are compared again by distances that are computed pair
by pair, and a query for which rounding could have hidden a nearer entry is asked again, more widely. The answer is
therefore the same, bit for bit, for any block size and any number of devices, and parts of a gallery (shards, blocks of
a stream) are simply merged.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fgis.base import Neighbours
from fgis.distances import pairwise_distances
from fgis.errors import UserError
from fgis.retrieval.measures import MEASURES, Measure

SCORES = 1 << 25  # scores at a time, 128 MiB: what a block of queries may take on the device
BLOCKS = (1, 8, 64, 256, 512)  # queries at a time; few sizes, since each of them is a compilation
PAIRS = 1 << 20  # numbers at a time where pairs are compared, 4 MiB: they stay in the cache
MARGIN = 6  # candidates beyond k: with more of them fewer queries are asked again
GROUP = 40  # columns of which the best is looked at first, where there are many
WIDER = 8  # times as many candidates for a query that is asked again


class Shard(NamedTuple):
    """A part of a gallery: what products select from lies on the device, what decides lies on the host."""

    vectors: Float[np.ndarray, "g d"]  # as the distance compares them
    rows: Int[np.ndarray, " g"]
    centre: Float[np.ndarray, " d"]
    centred: Any  # [g', d] vectors − centre: smaller numbers, so that products round less; filled up to whole groups
    offsets: Any  # [g'] what is subtracted from their products with queries; infinite where filled up
    largest: float  # the norm of the longest of them


class Gallery(NamedTuple):
    """Embeddings made ready to be searched: ``prepare_gallery`` once, ``search`` many times."""

    shards: tuple[Shard, ...]
    distance: str


class Part(NamedTuple):
    """The nearest entries of a part of the gallery, by (distance, row); all others are at ``cut`` or farther."""

    rows: Int[np.ndarray, "q m"]
    distances: Float[np.ndarray, "q m"]
    cut: Float[np.ndarray, " q"]


def search(
    queries: Float[Array | np.ndarray, "q d"],
    gallery: Float[Array | np.ndarray, "g d"] | Gallery,
    k: int,
    distance: str = "cosine",
    query_rows: Int[np.ndarray, " q"] | None = None,
    gallery_rows: Int[np.ndarray, " g"] | None = None,
) -> Neighbours:
    """The ``k`` nearest gallery rows of every query, by ascending distance; ties go to the lowest row.

    ``gallery_rows`` names the gallery entries (0 … g−1 without it). Where ``query_rows`` is given, the entry with the
    query's own row is left out of its list: by row id, since a duplicate of the query may tie with it. Places beyond
    the gallery hold row -1 at an infinite distance. ``tied`` marks queries whose last place an entry that was cut off
    could claim as well. A prepared ``Gallery`` brings its own distance and rows.

    Distances are those of ``fgis.distances`` up to rounding, but 0 between equal vectors.

    Raises:
      UserError: the gallery is empty, k is below 1, or an embedding is NaN or infinite (they would rank first).
    """
    if not isinstance(gallery, Gallery):
        gallery = prepare_gallery(gallery, distance, gallery_rows)
    return _ranked(_search(prepare_queries(queries, gallery.distance), gallery, k, query_rows), k)


def search_stream(
    queries: Float[Array | np.ndarray, "q d"],
    blocks: Iterable[tuple[np.ndarray, Any]],
    k: int,
    distance: str = "cosine",
    query_rows: Int[np.ndarray, " q"] | None = None,
) -> Neighbours:
    """``search`` in a gallery that comes as blocks of (rows [b], embeddings [b, d]), one in memory at a time."""
    asked, part = prepare_queries(queries, distance), None
    for rows, embeddings in blocks:
        found = _search(asked, prepare_gallery(embeddings, distance, rows), k, query_rows)
        part = found if part is None else _merge([part, found], k + MARGIN)
    if part is None:
        raise UserError("the gallery is empty: nothing can be retrieved; give it at least one image")
    return _ranked(part, k)


def prepare_gallery(
    embeddings: Float[Array | np.ndarray, "g d"],
    distance: str = "cosine",
    rows: Int[np.ndarray, " g"] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Gallery:
    """Embeddings as ``distance`` compares them, shared out over ``devices``; ``UserError`` as in ``search``."""
    if not len(embeddings):
        raise UserError("the gallery is empty: nothing can be retrieved; give it at least one image")
    vectors = prepare_queries(embeddings, distance, "gallery")
    rows = np.arange(len(vectors)) if rows is None else np.asarray(rows)
    devices = [None] if devices is None else list(devices)[: len(vectors)]
    cuts = np.linspace(0, len(vectors), len(devices) + 1).astype(int)
    shards = (
        _shard(vectors[start:stop], rows[start:stop], MEASURES[distance], device)
        for start, stop, device in zip(cuts, cuts[1:], devices, strict=False)
    )
    return Gallery(tuple(shards), distance)


def prepare_queries(
    embeddings: Float[Array | np.ndarray, "n d"], distance: str, name: str = "query"
) -> Float[np.ndarray, "n d"]:
    """Embeddings as ``distance`` compares them; ``UserError`` where one is not finite, with ``name`` for it."""
    embeddings = np.asarray(embeddings, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", embeddings, embeddings)  # not finite where an entry is not, or is too large
    if not np.isfinite(squares).all():
        bad = ~np.isfinite(squares)
        raise UserError(
            f"{name} embeddings: row {int(np.argmax(bad))} and {int(bad.sum()) - 1} more are NaN or infinite; "
            "the training diverged (lower the learning rate) or the features are damaged (extract them again)"
        )
    return MEASURES[distance].prepare(embeddings)


def _shard(vectors: np.ndarray, rows: np.ndarray, measure: Measure, device: jax.Device | None) -> Shard:
    centred, centre, offsets = vectors, np.zeros(vectors.shape[1], np.float32), np.zeros(len(vectors), np.float32)
    if measure.product == "squares":
        zero = ~vectors.any(axis=1)
        if not (zero.any() and measure.zero_is_far):
            centre = vectors.mean(axis=0)
            centred = vectors - centre
        offsets = 0.5 * np.einsum("nd,nd->n", centred, centred)
        if measure.zero_is_far:
            offsets[zero] = 0.5  # as far as a unit vector at a right angle
    largest = float(np.sqrt(np.einsum("nd,nd->n", centred, centred).max()))
    missing = -len(rows) % GROUP
    filled = np.pad(centred, ((0, missing), (0, 0))), np.pad(offsets, (0, missing), constant_values=np.inf)
    centred, offsets = jax.device_put(filled, device)
    return Shard(vectors, rows, centre, centred, offsets, largest)


def _search(
    asked: Float[np.ndarray, "q d"], gallery: Gallery, k: int, query_rows: Int[np.ndarray, " q"] | None
) -> Part:
    if k < 1:
        raise UserError(f"k: {k} found; ask for at least one neighbour")
    own = [np.full(len(asked), -1) if query_rows is None else _places(query_rows, s.rows) for s in gallery.shards]
    beyond = MARGIN + (query_rows is not None)  # the own entry may be among them
    depths = [min(k + beyond, len(shard.rows)) for shard in gallery.shards]
    parts = _nearest(asked, own, gallery, depths)
    for number, (shard, part) in enumerate(zip(gallery.shards, parts, strict=True)):
        one, depth = Gallery((shard,), gallery.distance), depths[number]
        while depth < len(shard.rows):
            unsure = np.flatnonzero(part.distances[:, min(k, depth) - 1] >= part.cut)
            if not len(unsure):
                break
            depth = min(WIDER * depth, len(shard.rows))
            (wider,) = _nearest(asked[unsure], [own[number][unsure]], one, [depth], keep=part.rows.shape[1])
            for old, new in zip(part, wider, strict=True):
                old[unsure] = new
    return _merge(parts, k + MARGIN)


def _places(rows: Int[np.ndarray, " q"], gallery_rows: Int[np.ndarray, " g"]) -> Int[np.ndarray, " q"]:
    """Where in the gallery each row stands; -1 where it does not."""
    order = np.argsort(gallery_rows, kind="stable")
    place = np.searchsorted(gallery_rows, rows, sorter=order).clip(max=len(gallery_rows) - 1)
    return np.where(gallery_rows[order[place]] == rows, order[place], -1)


def _nearest(
    asked: Float[np.ndarray, "q d"], own: Sequence[np.ndarray], gallery: Gallery, depths: Sequence[int],
    keep: int | None = None,
) -> list[Part]:  # fmt: skip
    """The part of every shard, block by block: devices select from one block while the host decides the one before.

    ``depths`` are selected, and the first ``keep`` of them (all without it) kept.
    """
    kept = [min(depth, keep or depth) for depth in depths]
    parts = [Part(np.full((len(asked), m), -1), _infinite(len(asked), m), _infinite(len(asked))) for m in kept]
    measure, waiting = MEASURES[gallery.distance], []
    for block in [*query_blocks(len(asked), max(len(shard.rows) for shard in gallery.shards)), None, None]:
        if block is not None:
            selected = [
                _dispatch(asked[block], shard, depth, gallery.distance, block.stop - block.start)
                for shard, depth in zip(gallery.shards, depths, strict=True)
            ]
            waiting.append((block, selected))
        if waiting and (block is None or len(waiting) > 1):
            done, selected = waiting.pop(0)
            for part, shard, mine, found in zip(parts, gallery.shards, own, selected, strict=True):
                _decide(part, done, asked[done], mine[done], shard, measure, found)
    return parts


def _infinite(*shape: int) -> np.ndarray:
    return np.full(shape, np.inf, np.float32)


def query_blocks(count: int, gallery_size: int) -> Iterator[slice]:
    """Slices over ``count`` queries; the last one may reach beyond them, to one of the sizes that are compiled."""
    size = max((block for block in BLOCKS if block * gallery_size <= SCORES), default=BLOCKS[0])
    for start in range(0, count, size):
        yield slice(start, start + min(block for block in BLOCKS if block >= min(count - start, size)))


def _dispatch(asked: np.ndarray, shard: Shard, depth: int, distance: str, size: int) -> tuple[Array, Array] | None:
    """Start the selection of one block, filled up to ``size``; None where the whole shard is selected."""
    if depth == len(shard.rows):
        return None
    filled = np.zeros((size, asked.shape[1]), np.float32)
    filled[: len(asked)] = asked - shard.centre
    return _select(filled, shard.centred, shard.offsets, depth, distance)


@partial(jax.jit, static_argnums=(3, 4))
def _select(asked: Array, vectors: Array, offsets: Array, depth: int, distance: str) -> tuple[Array, Array]:
    """Scores and places of the ``depth`` best: with many columns, the best of each group and then the best groups.

    The best ``depth`` entries lie in the ``depth`` groups with the best maxima, and a maximum costs no more than
    writing the product down, while ``top_k`` over all columns costs as much as the product.
    """
    scores, groups = raw_scores(asked, vectors, distance), len(vectors) // GROUP
    if groups < 4 * depth:
        best, places = jax.lax.top_k(scores - offsets, depth)  # of float32, the one type that it is fast on with a CPU
        return best, places
    # The offsets are taken off twice, since that is free inside the maximum and a pass over memory before it.
    maxima = (scores.reshape(len(asked), GROUP, groups) - offsets.reshape(GROUP, groups)).max(axis=1)
    _, chosen = jax.lax.top_k(maxima, depth)
    members = (jnp.arange(GROUP) * groups + chosen[:, :, None]).reshape(len(asked), -1)
    best, places = jax.lax.top_k(jnp.take_along_axis(scores, members, axis=1) - offsets[members], depth)
    return best, jnp.take_along_axis(members, places, axis=1)


def raw_scores(asked: Array, vectors: Array, distance: str) -> Array:
    """[q, g]: the higher, less the offset, the nearer; to be traced."""
    if MEASURES[distance].product:
        return jnp.einsum("qd,gd->qg", asked, vectors, precision="highest")
    return -pairwise_distances(asked, vectors, distance)


def _decide(
    part: Part, block: slice, asked: np.ndarray, own: np.ndarray, shard: Shard, measure: Measure,
    found: tuple[Array, Array] | None,
) -> None:  # fmt: skip
    """Fill a block of ``part``: exact distances of what was selected, in order, and the bound on all others."""
    if found is None:
        places = np.broadcast_to(np.arange(len(shard.rows)), (len(asked), len(shard.rows)))
    else:
        scores, places = (np.asarray(x)[: len(asked)] for x in found)
        part.cut[block] = _bound(asked, scores[:, -1], shard, measure)
    keys = np.empty(places.shape, np.float32)
    step = max(1, PAIRS // (places.shape[1] * asked.shape[1]))
    for start in range(0, len(asked), step):
        here = slice(start, start + step)
        keys[here] = measure.exact(asked[here, None], shard.vectors[places[here]])
    excluded = places == own[:, None]
    distances = np.where(excluded, np.inf, measure.finish(keys))
    rows = np.where(excluded, -1, shard.rows[places])
    order = np.lexsort((rows, distances))[:, : part.rows.shape[1]]
    part.rows[block], part.distances[block] = (np.take_along_axis(x, order, axis=1) for x in (rows, distances))


def _bound(asked: np.ndarray, least: np.ndarray, shard: Shard, measure: Measure) -> Float[np.ndarray, " q"]:
    """The distance that nothing can be below which scored no better than ``least``, whatever its score was rounded by.

    A sum of d rounded products is off by at most 8 √d u ‖a‖ ‖b‖, u = ε/2, but for a probability of 3e-14 (Higham and
    Mary 2019, theorem 2.4, λ = 8); the certain bound, d u ‖a‖ ‖b‖, would have many more queries asked again.
    """
    shifted = asked - shard.centre
    squares = np.einsum("nd,nd->n", shifted, shifted)
    relative = 4 * np.sqrt(asked.shape[1]) * np.finfo(np.float32).eps
    if not measure.product:
        return measure.finish(-least * np.float32(1 - relative))
    slack = relative * (np.sqrt(squares) + shard.largest) ** 2
    if measure.product == "dot":
        return measure.finish((-least - slack).astype(np.float32))
    bound = measure.finish(np.maximum(0.5 * squares - least - slack, 0).astype(np.float32))
    return np.where(asked.any(axis=1), bound, -np.inf) if measure.zero_is_far else bound


def _merge(parts: Sequence[Part], depth: int) -> Part:
    """One part from several of the same queries."""
    if len(parts) == 1:
        return parts[0]
    rows, distances = (np.concatenate(x, axis=1) for x in ([p.rows for p in parts], [p.distances for p in parts]))
    order = np.lexsort((rows, distances))[:, :depth]
    rows, distances = (np.take_along_axis(x, order, axis=1) for x in (rows, distances))
    return Part(rows, distances, np.min([part.cut for part in parts], axis=0))


def _ranked(part: Part, k: int) -> Neighbours:
    """The first ``k`` places, filled up with -1; tied where the place behind the last one is as near."""
    found = part.rows.shape[1]
    missing = ((0, 0), (0, max(0, k - found)))
    rows = np.pad(part.rows[:, :k], missing, constant_values=-1)
    distances = np.pad(part.distances[:, :k], missing, constant_values=np.inf)
    last = part.distances[:, k - 1] if found > k else np.full(len(rows), np.inf, np.float32)
    behind = part.distances[:, k] if found > k else last
    return Neighbours(rows, distances, np.isfinite(behind) & (last == behind))
