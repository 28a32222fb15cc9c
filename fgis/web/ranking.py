"""The gallery as a request ranks it: an image or an upload, a part of it, moved by marks, within a folder or label."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgis.base import Neighbours
from fgis.gallery.search import SearchGallery, Where, find_nearest
from fgis.retrieval.measures import MEASURES
from fgis.retrieval.rerank import FirstSearch, Rerank
from fgis.retrieval.search import Gallery, prepare_queries, search

ROWS = 1024  # of the gallery that are compared at a time: they stay in the cache
TOWARDS, AWAY = 0.75, 0.25  # weights of relevant and not relevant images beside the query itself


def move_query(
    query: Float[np.ndarray, "1 f"], relevant: Float[np.ndarray, "r f"], not_relevant: Float[np.ndarray, "n f"]
) -> Float[np.ndarray, "1 f"]:
    """Relevance feedback: q + β mean(relevant) − γ mean(not relevant), scaled to the length of q.

    Args:
      query: prepared features of the query, q.
      relevant: of images that were marked as relevant; may be empty.
      not_relevant: of images that were marked as not relevant; may be empty.

    Returns:
      The moved query; q itself without marks, and where all terms cancel out.

    Reference: Rocchio, Relevance feedback in information retrieval, 1971; β = 0.75 and γ = 0.25 beside q's 1.

    >>> move_query(np.array([[1.0, 0.0]]), np.array([[0.0, 4 / 3]]), np.empty((0, 2))).round(3)
    array([[0.707, 0.707]])
    """
    moved = query
    if len(relevant):
        moved = moved + TOWARDS * relevant.mean(axis=0, keepdims=True)
    if len(not_relevant):
        moved = moved - AWAY * not_relevant.mean(axis=0, keepdims=True)
    length = np.linalg.norm(moved)
    if moved is query or not length:
        return query
    return (moved * (np.linalg.norm(query) / length)).astype(query.dtype)


def measure_rows(
    query: Float[np.ndarray, "1 d"], gallery: Gallery, rows: Int[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """The exact distances of a query to some rows of a prepared gallery, those that ``search`` gives."""
    measure, vector = MEASURES[gallery.distance], prepare_queries(query, gallery.distance)
    shards = [shard.vectors for shard in gallery.shards]
    vectors = shards[0] if len(shards) == 1 else np.concatenate(shards)
    blocks = (rows[start : start + ROWS] for start in range(0, len(rows), ROWS))
    keys = [measure.exact(vector, vectors[block]) for block in blocks]
    return measure.finish(np.concatenate(keys)) if keys else np.empty(0, np.float32)


class Selection(NamedTuple):
    """A part of a gallery."""

    rows: Int[np.ndarray, " m"]  # ascending
    where: Where | None = None  # the same, as a filter of engines


def rank_rows(
    gallery: SearchGallery, prepared: Float[np.ndarray, "1 f"], part: Selection | None, own: int | None, k: int,
    rerank: Rerank | None,
) -> Neighbours:  # fmt: skip
    """The ``k`` nearest images of some rows of the gallery, re-ranked where that is wanted; ties by row.

    Args:
      gallery: what is searched.
      prepared: prepared features of the query.
      part: what is searched of it; None for all.
      own: the row of the query in the gallery, which is left out; None where it is not in it.
      k: how many.
      rerank: a re-ranking.

    Returns:
      At most ``k`` rows and their distances, [1, k]; fewer of fewer rows.
    """
    query, everything = gallery.embed(prepared), np.arange(len(gallery.embeddings))
    searched = everything if part is None else part.rows
    mine = np.array([], int) if own is None else rows_of_images(gallery, np.array([own]))
    depth = min(k + len(mine), len(searched))
    if not depth:
        return Neighbours(np.empty((1, 0), np.int64), np.empty((1, 0), np.float32))
    if part is None or gallery.find:
        neighbours = find_nearest(gallery, query, depth, part.where if part else None)
    else:
        distances = measure_rows(query, gallery.prepared, part.rows)
        order = np.lexsort((part.rows, distances))[:depth]
        neighbours = Neighbours(part.rows[order][None], distances[order][None])
    if rerank:
        embeddings = gallery.embeddings if part is None else gallery.embeddings[part.rows]
        graph = gallery.graph if part is None else None  # a part has a graph of its own
        neighbours = rerank(FirstSearch(query, embeddings, searched, gallery.prepared.distance, neighbours, graph))
    kept = (neighbours.rows[0] >= 0) & ~np.isin(neighbours.rows[0], mine)
    return Neighbours(neighbours.rows[:, kept][:, :k], np.asarray(neighbours.distances)[:, kept][:, :k])


def nearest_distance(gallery: SearchGallery, prepared: Float[np.ndarray, "1 f"], own: int | None) -> float:
    """The distance by features to the nearest image of the whole gallery, ``own`` left out; infinite without any."""
    if own is None or not gallery.windows:
        rows = None if own is None else np.array([own])
        return float(search(prepared, gallery.judging, 1, query_rows=rows).distances[0, 0])
    mine = rows_of_images(gallery, np.array([own]))
    found = search(prepared, gallery.judging, len(mine) + 1)
    others = found.distances[0][(found.rows[0] >= 0) & ~np.isin(found.rows[0], mine)]
    return float(others[0]) if len(others) else np.inf


def rows_of_images(gallery: SearchGallery, images: Int[np.ndarray, " i"]) -> Int[np.ndarray, " m"]:
    """The rows of pictures and of their windows, ascending."""
    return images if gallery.windows is None else np.flatnonzero(np.isin(gallery.windows.image_of, images))


def similarity(distances: Float[np.ndarray, " k"], distance: str, scale: float) -> Float[np.ndarray, " k"]:
    """Distances as numbers from 0 to 1 for bars: the cosine where distances tell it, else scale / (scale + d).

    >>> similarity(np.array([0.0, 0.25, 1.5]), "cosine", 1.0).tolist()
    [1.0, 0.75, 0.0]
    """
    if distance == "cosine":
        found = 1 - distances
    elif distance == "unit_euclidean":
        found = 1 - distances**2 / 2
    else:
        found = scale / (scale + np.maximum(distances, 0))
    return np.clip(found, 0, 1)
