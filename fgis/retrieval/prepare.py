"""Queries and galleries made ready to be searched: checked, brought into the form that a distance compares, placed."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from fgis.retrieval.measures import MEASURES, Measure, find_measure

GROUP = 64  # the columns of a gallery on a device are filled up to a multiple of this


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


def prepare_gallery(
    embeddings: Float[Array | np.ndarray, "g d"],
    distance: str = "cosine",
    rows: Int[np.ndarray, " g"] | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Gallery:
    """Embeddings as ``distance`` compares them, divided among ``devices``.

    Args:
      embeddings: [g, d].
      distance: a key of ``fgis.distances.DISTANCES``.
      rows: [g] row ids, 0 … g−1 by default.
      devices: where the matrix products are to run; the default device without it.

    Returns:
      A gallery for ``search``.

    Raises:
      ValueError: no embedding, one that is NaN or infinite, an unknown distance, or ``rows`` of another length.
    """
    vectors = prepare_queries(embeddings, distance, "gallery")
    if not len(vectors):
        raise ValueError("gallery: empty; nothing can be retrieved, give it at least one embedding")
    rows = np.arange(len(vectors)) if rows is None else np.asarray(rows)
    if rows.shape != (len(vectors),):
        raise ValueError(f"gallery_rows: shape {rows.shape} found; write one row id for each of {len(vectors)} vectors")
    devices = [None] if devices is None else list(devices)[: len(vectors)]
    cuts = np.linspace(0, len(vectors), len(devices) + 1).astype(int)
    shards = (
        make_shard(vectors[start:stop], rows[start:stop], MEASURES[distance], device)
        for start, stop, device in zip(cuts, cuts[1:], devices, strict=False)
    )
    return Gallery(tuple(shards), distance)


def prepare_queries(
    embeddings: Float[Array | np.ndarray, "n d"], distance: str, name: str = "queries"
) -> Float[np.ndarray, "n d"]:
    """Embeddings as ``distance`` compares them, checked.

    Args:
      embeddings: [n, d].
      distance: a key of ``fgis.distances.DISTANCES``.
      name: what messages call the embeddings.

    Returns:
      Vectors [n, d], float32.

    Raises:
      ValueError: an unknown distance, no matrix, or an embedding that is NaN or infinite.
    """
    measure = find_measure(distance)
    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2 or not embeddings.shape[1]:
        raise ValueError(f"{name}: shape {embeddings.shape} found; write a matrix with one embedding per row")
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("nd,nd->n", embeddings, embeddings)  # not finite where an entry is not, or is too large
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        raise ValueError(
            f"{name}: the embedding of row {bad[0]} is NaN, infinite or too large to be squared, and so are "
            f"{len(bad) - 1} more; every number has to be finite"
        )
    return measure.prepare(embeddings)


def make_shard(
    vectors: Float[np.ndarray, "g d"], rows: Int[np.ndarray, " g"], measure: Measure,
    device: jax.Device | None = None, centre: Float[np.ndarray, " d"] | None = None, size: int = 0,
) -> Shard:  # fmt: skip
    """A part of a gallery, ready to be searched.

    Args:
      vectors: as the distance compares them, [g, d].
      rows: their row ids.
      measure: how the distance is searched.
      device: where products are to run; the default device without it.
      centre: what is subtracted from vectors that a product compares; their mean without it, and zero where a zero
        vector has to stay one.
      size: columns to fill up to; whole groups without it.
    """
    if centre is None:
        moved = measure.product == "squares" and not (measure.zero_is_far and not vectors.any(axis=1).all())
        centre = vectors.mean(axis=0) if moved else np.zeros(vectors.shape[1], np.float32)
    missing = (size or len(rows) + -len(rows) % GROUP) - len(rows)
    # One array of the size of the gallery, and no copy of it.
    centred = np.empty((len(rows) + missing, vectors.shape[1]), np.float32)
    offsets = np.zeros(len(centred), np.float32)
    np.subtract(vectors, centre, out=centred[: len(rows)])
    centred[len(rows) :], offsets[len(rows) :] = 0, np.inf
    squares = np.einsum("nd,nd->n", centred[: len(rows)], centred[: len(rows)])
    if measure.product == "squares":
        offsets[: len(rows)] = 0.5 * squares
        if measure.zero_is_far:
            offsets[: len(rows)][~vectors.any(axis=1)] = 0.5  # as far as a unit vector at a right angle
    centred, offsets = jax.device_put((centred, offsets), device)
    return Shard(vectors, rows, centre, centred, offsets, float(np.sqrt(squares.max())))
