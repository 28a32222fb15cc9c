"""Re-ranking: what the gallery's own neighbours tell is used to order the neighbours of a query again, without labels.

Every method is one function of one type: ``method(first, *, hyperparameters) -> Neighbours``. ``first`` holds queries,
gallery and the first search of these queries in this gallery, no entry left out; the result is as deep. A method that
reads further than that searches again, so the depth cuts the list off and changes nothing else in it. The neighbours of
a query do not depend on other queries.

All methods compare directions: ``cos`` is the cosine of two vectors, and 1 − cos the distance of the first search. A
gallery vector equal to the query counts as the query itself: queries that are members of the gallery are treated as its
other members are, and no row id is needed for that. Zero vectors have the cosine 0 with everything and are never
expanded. Every method refuses, with a ``ValueError``, a distance that does not rank by the cosine, a hyperparameter out
of its range, and neighbours of another gallery; a number of neighbours beyond the gallery means the whole gallery. No
query gives empty arrays; NaN has been refused by the first search.

Numbers of neighbours decide more than the method does: they should not exceed the images of an object. The defaults
suit objects of about four images; the references, with tens of images each, take k = 50 (diffusion), k1 = 20, k2 = 6.
``fgis.retrieval.selection`` chooses among several.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from fgis.base import Neighbours
from fgis.ranges import Count, Finite, Share, ShareBelowOne, require
from fgis.retrieval.measures import to_unit
from fgis.retrieval.neighbourhoods import (
    diffuse,
    encode,
    first_by_key,
    is_member,
    jaccard_distances,
    mean_codes,
    mean_cosine,
    mutual_graph,
    nearest_of_members,
    powers,
    reciprocal,
    sparse_rows,
    weighted_sums,
)
from fgis.retrieval.search import find_places, prepare_queries, search

DIRECTIONS = ("cosine", "unit_euclidean")  # distances that rank by the cosine
COLUMNS = 64  # queries whose equations are in memory together


class FirstSearch(NamedTuple):
    """The first search, which a re-ranking begins with, and what it was made in."""

    queries: Float[Array | np.ndarray, "q d"]
    gallery: Float[Array | np.ndarray, "g d"]
    gallery_rows: Int[np.ndarray, " g"]
    distance: str
    neighbours: Neighbours  # [q, k]: the k nearest gallery rows, the query itself included


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
    >>> average_query_expansion(first_search(points[:1], points, 2), n=2).rows
    array([[0, 1]])
    """
    gallery_rows = np.arange(len(gallery)) if gallery_rows is None else gallery_rows
    neighbours = search(queries, gallery, k, distance, gallery_rows=gallery_rows)
    return FirstSearch(queries, gallery, gallery_rows, distance, neighbours)


def average_query_expansion(first: FirstSearch, *, n: Count = 3) -> Neighbours:
    """Search again with q + Σ_{i ≤ n} x_i, x_i the ``n`` nearest of cosine above 0: unit vectors, weighted alike.

    Args:
      first: the first search.
      n: how many neighbours are added; a query that is a member of the gallery is one of its own ``n``.

    Returns:
      Neighbours as deep as the first search; distances are 1 − cos to the new query, in [0, 2].

    Raises:
      ValueError: see the module.

    Reference: Chum, Philbin, Sivic, Isard and Zisserman, Total Recall, ICCV 2007.
    """
    return weighted_query_expansion(first, n=n, alpha=0.0)


def weighted_query_expansion(first: FirstSearch, *, n: Count = 3, alpha: Finite = 3.0) -> Neighbours:
    """αQE: search again with q + Σ_{i ≤ n} cos(q, x_i)^α x_i over the ``n`` nearest of cosine above 0.

    Args:
      first: the first search.
      n: how many neighbours are added; a query that is a member of the gallery is one of its own ``n``.
      alpha: 0 is the average; the larger, the less a distant neighbour weighs.

    Returns:
      Neighbours as deep as the first search; distances are 1 − cos to the new query, in [0, 2].

    Raises:
      ValueError: see the module.

    Reference: Radenović, Tolias and Chum, Fine-tuning CNN image retrieval with no human annotation, TPAMI 2018.
    """
    require(weighted_query_expansion, n=n, alpha=alpha)
    queries, vectors = _directions(first)
    places, cosines = _nearest_of_queries(first, queries, vectors, n)
    expanded = weighted_sums(vectors, places, powers(cosines, alpha), start=queries)
    return search(expanded, vectors, _depth(first), gallery_rows=first.gallery_rows)


def database_augmentation(first: FirstSearch, *, k: Count = 4, alpha: Finite = 3.0) -> Neighbours:
    """Search again, every vector v on both sides replaced by Σ_j cos(v, x_j)^α x_j: its ``k`` nearest, itself first.

    Args:
      first: the first search.
      k: how many vectors are summed up; 1 changes nothing.
      alpha: 0 is the average; the larger, the less a distant neighbour weighs.

    Returns:
      Neighbours as deep as the first search; distances are 1 − cos between the new vectors, in [0, 2].

    Raises:
      ValueError: see the module.

    Reference: Turcot and Lowe, Better matching with fewer features, ICCV workshops 2009; weights of Gordo, Almazán,
    Revaud and Larlus, End-to-end learning of deep visual representations for image retrieval, IJCV 2017.
    """
    require(database_augmentation, k=k, alpha=alpha)
    return search(*_augmented(first, k, alpha), _depth(first), gallery_rows=first.gallery_rows)


def local_scaling(first: FirstSearch, *, k: Count = 10) -> Neighbours:
    """CSLS: the whole gallery by r(q) + r(x) − 2 cos(q, x), with r(v) the mean cosine of v and its ``k`` nearest.

    The nearest are members of the gallery other than v itself, on both sides (the reference takes those of x among the
    queries, so that the neighbours of a query depend on other queries). Where there are fewer than ``k``, the mean is
    over these; r is 0 where there is none.

    Args:
      first: the first search.
      k: how many neighbours a mean is over.

    Returns:
      Neighbours as deep as the first search; distances lie in [−4, 4]: below 0 where two are nearer than is usual
      around them.

    Raises:
      ValueError: see the module.

    Reference: Conneau, Lample, Ranzato, Denoyer and Jégou, Word translation without parallel data, ICLR 2018.
    """
    require(local_scaling, k=k)
    queries, vectors = _directions(first)
    k, rows = min(k, len(vectors)), first.gallery_rows
    _, cosines = nearest_of_members(vectors, rows, k, own=False)
    around = mean_cosine(cosines)
    _, cosines = _nearest_of_queries(first, queries, vectors, k + 1)
    others = np.where(is_member(cosines)[:, None], cosines[:, 1:], cosines[:, :-1])
    # One product gives 2 cos(q, x) − r(x): one more column on either side, and the search is exact.
    queries = np.concatenate([2 * queries, np.full((len(queries), 1), -1, np.float32)], axis=1)
    vectors = np.concatenate([vectors, around[:, None]], axis=1)
    scaled = search(queries, vectors, _depth(first), "inner_product", gallery_rows=rows)
    return scaled._replace(distances=scaled.distances + mean_cosine(others)[:, None])


def augmented_local_scaling(first: FirstSearch, *, k: Count = 4, alpha: Finite = 3.0, scale_k: Count = 4) -> Neighbours:
    """``database_augmentation`` (``k``, ``alpha``), then ``local_scaling`` (``scale_k``) of the new vectors.

    Args:
      first: the first search.
      k: how many vectors are summed up.
      alpha: 0 is the average; the larger, the less a distant neighbour weighs.
      scale_k: how many neighbours a mean of ``local_scaling`` is over.

    Returns:
      Neighbours as deep as the first search, with the distances of ``local_scaling``.

    Raises:
      ValueError: see the module.
    """
    require(augmented_local_scaling, k=k, alpha=alpha, scale_k=scale_k)
    queries, vectors = _augmented(first, k, alpha)
    return local_scaling(first_search(queries, vectors, _depth(first), "cosine", first.gallery_rows), k=scale_k)


def k_reciprocal(
    first: FirstSearch, *, k1: Count = 6, k2: Count = 3, weight: Share = 0.3, candidates: Count = 100
) -> Neighbours:
    """The first ``candidates`` by (1 − λ) Jaccard(V_q, V_x) + λ (1 − cos(q, x)), λ the ``weight``.

    V_v has exp(cos(v, j) − 1) at every j in v's expanded ``k1``-reciprocal neighbours and sums to 1; it is then
    averaged over the ``k2`` nearest of v, v included. j and v are reciprocal where either is as near to the other as
    the other's ``k1``-th neighbour. The set is expanded by the k1/2-reciprocal neighbours of its members, where more
    than 2/3 of them lie in it. Jaccard = 1 − Σ min / Σ max, and 1 where a vector has no reciprocal neighbour. Sets are
    those of gallery members: a query that is none of them has no entry for itself, where the reference puts all queries
    in one gallery.

    Args:
      first: the first search.
      k1: neighbours among which reciprocal ones are looked for.
      k2: vectors that a code is averaged over; 1 averages nothing.
      weight: of the cosine distance: 0 is the Jaccard distance alone, 1 the cosine alone.
      candidates: how many neighbours are ordered again, at least as many as the first search is deep.

    Returns:
      Neighbours as deep as the first search; distances lie in [0, 2].

    Raises:
      ValueError: see the module.

    Reference: Zhong, Zheng, Cao and Li, Re-ranking person re-identification with k-reciprocal encoding, CVPR 2017.
    """
    require(k_reciprocal, k1=k1, k2=k2, weight=weight, candidates=candidates)
    queries, vectors = _directions(first)
    size, half = len(vectors), max(1, int(np.around(k1 / 2)))
    k1, k2, half = min(k1, size), min(k2, size + 1), min(half, size)
    candidates = min(max(candidates, _depth(first)), size)
    listed, cosines = nearest_of_members(vectors, first.gallery_rows, max(k1 + 1, k2))
    halves = reciprocal(listed, cosines, cosines[:, half], half)
    codes = encode(vectors, vectors, reciprocal(listed, cosines, cosines[:, k1], k1), halves)
    averaged = mean_codes(codes, listed, (cosines > 0) & (np.arange(listed.shape[1]) < k2))
    places, near = _nearest_of_queries(first, queries, vectors, max(candidates, k1 + 1, k2))
    own = encode(queries, vectors, reciprocal(places, near, cosines[:, k1], k1), halves)
    rank = np.arange(places.shape[1]) - is_member(near)[:, None]  # of a query that is a member, the first is itself
    own = mean_codes(codes, places, (near > 0) & (rank >= 0) & (rank < k2 - 1), own)
    places, near = places[:, :candidates], near[:, :candidates]
    there = places >= 0
    keys = (1 - weight) * jaccard_distances(own, averaged, places) + weight * (1 - np.where(there, near, 0))
    keys, rows = np.where(there, keys, np.inf), np.where(there, first.gallery_rows[places], -1)
    return first_by_key(keys.astype(np.float32), rows, _depth(first))


def diffusion(first: FirstSearch, *, k: Count = 5, alpha: ShareBelowOne = 0.5, gamma: Finite = 3.0) -> Neighbours:
    """The gallery by −f, (I − αS) f = y: what spreads from a query's ``k`` nearest over mutual neighbours.

    S = D^−½ A D^−½, A_ij = max(cos(x_i, x_j), 0)^γ where i and j are among the ``k`` nearest of each other, D its row
    sums; y_i = max(cos(q, x_i), 0)^γ at the ``k`` nearest of q (itself included, if it is a member), 0 elsewhere.
    Solved by conjugate gradients to a residual of 1e-6 ‖y‖. Images without mutual neighbours keep f = y.

    Args:
      first: the first search.
      k: neighbours of a query, and of a member of the gallery.
      alpha: how much is passed on along the graph; 0 is the first search alone.
      gamma: the larger, the less a distant neighbour weighs.

    Returns:
      Neighbours as deep as the first search. Distances below 0 are −f. Images with f = 0, which the graph does not
      connect to the query, follow in the order of the first search, with its distances 1 − cos, as far as it is deep.

    Raises:
      ValueError: see the module.

    Reference: Iscen, Tolias, Avrithis, Furon and Chum, Efficient diffusion on region manifolds, CVPR 2017; Zhou,
    Bousquet, Lal, Weston and Schölkopf, Learning with local and global consistency, NIPS 2003.
    """
    require(diffusion, k=k, alpha=alpha, gamma=gamma)
    queries, vectors = _directions(first)
    depth, k = _depth(first), min(k, len(vectors))
    graph = mutual_graph(*nearest_of_members(vectors, first.gallery_rows, k, own=False), gamma)
    places, cosines = _nearest_of_queries(first, queries, vectors, max(k, depth))
    sources = sparse_rows(places[:, :k], cosines[:, :k] > 0, len(vectors), powers(cosines[:, :k], gamma))
    rows = np.append(first.gallery_rows, -1)  # the last: for places that are empty
    ranked = []
    for start in range(0, max(len(queries), 1), COLUMNS):
        here, near = places[start : start + COLUMNS, :depth], cosines[start : start + COLUMNS, :depth]
        flow = diffuse(graph, alpha, sources[start : start + COLUMNS].toarray())
        keys = np.full((len(here), len(rows)), np.inf, np.float32)
        np.put_along_axis(keys, here, 1 - near, axis=1)
        keys[:, :-1] = np.where(flow > 0, -flow, keys[:, :-1])
        ranked.append(first_by_key(keys, np.where(np.isinf(keys), -1, rows), depth))
    return Neighbours(*(np.concatenate(parts) for parts in zip(*ranked, strict=True)))


# Every method by name; what a configuration may set are its keyword-only parameters.
RERANKERS: dict[str, Callable[..., Neighbours]] = {
    "average_query_expansion": average_query_expansion,
    "weighted_query_expansion": weighted_query_expansion,
    "database_augmentation": database_augmentation,
    "local_scaling": local_scaling,
    "augmented_local_scaling": augmented_local_scaling,
    "k_reciprocal": k_reciprocal,
    "diffusion": diffusion,
}


def _depth(first: FirstSearch) -> int:
    return first.neighbours.rows.shape[1]


def _directions(first: FirstSearch) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery as unit vectors; ``ValueError`` where the distance compares anything but directions."""
    if first.distance not in DIRECTIONS:
        raise ValueError(
            f"distance: {first.distance!r} found; re-ranking compares directions, choose {' or '.join(DIRECTIONS)}"
        )
    return prepare_queries(first.queries, "cosine"), prepare_queries(first.gallery, "cosine", "gallery")


def _nearest_of_queries(
    first: FirstSearch, queries: np.ndarray, vectors: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gallery places [q, n] of the nearest of each query, and their cosines; -1 and -inf where there is none.

    Those of the first search, where it ranks by cosine distances and is deep enough.
    """
    neighbours, n = first.neighbours, min(n, len(vectors) + 1)
    if first.distance != "cosine" or _depth(first) < n:
        neighbours = search(queries, vectors, n, gallery_rows=first.gallery_rows)
    rows = neighbours.rows[:, :n]
    places = find_places(rows, first.gallery_rows)
    if ((places < 0) & (rows >= 0)).any():
        raise ValueError("first: neighbours of another gallery found; one of their rows is not in gallery_rows")
    return places, 1 - neighbours.distances[:, :n]


def _augmented(first: FirstSearch, k: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery, every vector replaced by the weighted sum of its ``k`` nearest, itself included."""
    queries, vectors = _directions(first)
    k = min(k, len(vectors) + 1)  # a query that is no member, and the whole gallery
    places, cosines = nearest_of_members(vectors, first.gallery_rows, k)
    augmented = to_unit(weighted_sums(vectors, places, powers(cosines, alpha)))
    places, cosines = _nearest_of_queries(first, queries, vectors, k)
    weights, member = powers(cosines, alpha), is_member(cosines)[:, None]
    weights[:, -1:] *= member  # a query that is no member comes first itself, and k - 1 of the gallery behind it
    return to_unit(weighted_sums(vectors, places, weights, start=np.where(member, 0, queries))), augmented
