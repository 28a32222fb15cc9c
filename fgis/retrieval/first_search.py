"""The first search, which every re-ranking begins with, and what re-rankings read of it and of its gallery."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from fgis.base import Neighbours
from fgis.retrieval.graph import GalleryGraph
from fgis.retrieval.neighbourhoods import nearest_of_members
from fgis.retrieval.search import Gallery, find_places, prepare_gallery, prepare_queries, search

DIRECTIONS = ("cosine", "unit_euclidean")  # distances that rank by the cosine


class FirstSearch(NamedTuple):
    """The first search, which a re-ranking begins with, and what it was made in."""

    queries: Float[Array | np.ndarray, "q d"]
    gallery: Float[Array | np.ndarray, "g d"]
    gallery_rows: Int[np.ndarray, " g"]
    distance: str
    neighbours: Neighbours  # [q, k]: the k nearest gallery rows, the query itself included
    graph: GalleryGraph | None = None  # of the gallery, if it is searched again and again


Rerank = Callable[[FirstSearch], Neighbours]  # a method, its hyperparameters bound


def first_search(
    queries: Float[Array | np.ndarray, "q d"],
    gallery: Float[Array | np.ndarray, "g d"],
    k: int,
    distance: str = "cosine",
    gallery_rows: Int[np.ndarray, " g"] | None = None,
) -> FirstSearch:
    """Searches as ``search`` does, and keeps what a re-ranking needs.

    Args:
      queries: embeddings [q, d].
      gallery: embeddings [g, d].
      k: how many neighbours: the depth of what is re-ranked.
      distance: a key of ``fgis.distances.DISTANCES``.
      gallery_rows: [g] the row ids of the gallery, 0 … g−1 by default.

    Returns:
      The argument of every method of ``RERANKERS``.

    Raises:
      ValueError: as ``search``.

    >>> points = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], np.float32)
    >>> first_search(points[:1], points, 2).neighbours.rows
    array([[0, 1]])
    """
    gallery_rows = np.arange(len(gallery)) if gallery_rows is None else gallery_rows
    neighbours = search(queries, gallery, k, distance, gallery_rows=gallery_rows)
    return FirstSearch(queries, gallery, gallery_rows, distance, neighbours)


def depth_of(first: FirstSearch) -> int:
    """How many neighbours of each query are listed."""
    return first.neighbours.rows.shape[1]


def to_directions(first: FirstSearch) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery as unit vectors; ``ValueError`` where the distance compares anything but directions."""
    if first.distance not in DIRECTIONS:
        raise ValueError(
            f"distance: {first.distance!r} found; re-ranking compares directions, choose {' or '.join(DIRECTIONS)}"
        )
    vectors = gallery_part(first, "vectors", lambda: prepare_queries(first.gallery, "cosine", "gallery"))
    return prepare_queries(first.queries, "cosine"), vectors


def gallery_part(first: FirstSearch, key: Hashable, make: Callable[[], Any]) -> Any:
    """What belongs to the gallery alone: kept with it, where it is searched again."""
    return first.graph.part(key, make) if first.graph else make()


def prepare_members(first: FirstSearch, vectors: np.ndarray, distance: str) -> Gallery:
    """New vectors of the members, [g, d], ready to be searched under the rows of the gallery."""
    return prepare_gallery(vectors, distance, first.gallery_rows)


def prepared_gallery(first: FirstSearch, vectors: np.ndarray) -> Gallery:
    """The unit vectors of the members, ready to be searched."""
    return gallery_part(first, "gallery", lambda: prepare_members(first, vectors, "cosine"))


def nearest_in_graph(first: FirstSearch, vectors: np.ndarray, n: int, own: bool = True) -> tuple[Any, Any]:
    """``nearest_of_members``, read from the graph of the gallery where that is deep enough."""
    known = first.graph.neighbours(n, own) if first.graph else None
    if known is None or len(known.rows) != len(vectors):
        return nearest_of_members(vectors, first.gallery_rows, n, own)
    return known.rows, 1 - known.distances


def nearest_of_queries(
    first: FirstSearch, queries: np.ndarray, vectors: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gallery places [q, n] of the nearest of each query, and their cosines; -1 and -inf where there is none.

    Those of the first search, where it ranks by cosine distances and is deep enough.
    """
    neighbours, n = first.neighbours, min(n, len(vectors) + 1)
    if first.distance != "cosine" or depth_of(first) < n:
        neighbours = search(queries, prepared_gallery(first, vectors), n)
    rows = neighbours.rows[:, :n]
    places = find_places(rows, first.gallery_rows)
    if ((places < 0) & (rows >= 0)).any():
        raise ValueError("first: neighbours of another gallery found; one of their rows is not in gallery_rows")
    return places, 1 - neighbours.distances[:, :n]
