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

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from fgis.base import Neighbours
from fgis.ranges import Count, Finite, Share, ShareBelowOne, require
from fgis.retrieval.first_search import (
    DIRECTIONS,
    FirstSearch,
    Rerank,
    depth_of,
    first_search,
    gallery_part,
    nearest_in_graph,
    nearest_of_queries,
    prepare_members,
    prepared_gallery,
    to_directions,
)
from fgis.retrieval.graph import GalleryGraph
from fgis.retrieval.measures import to_unit
from fgis.retrieval.neighbourhoods import (
    NEAR,
    diffuse,
    encode,
    entries,
    first_by_key,
    is_member,
    jaccard_distances,
    mean_codes,
    mean_cosine,
    mutual_graph,
    powers,
    reciprocal,
    sparse_rows,
    weighted_sums,
)
from fgis.retrieval.search import Gallery, search

__all__ = ["DIRECTIONS", "RERANKERS", "FirstSearch", "Rerank", "first_search"]

SOLVED = 1 << 22  # numbers at a time, 32 MiB: of the solutions of equations, if they are dense
SOLVED_NEAR = 1 << 10  # queries at a time where they are sparse


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
    queries, vectors = to_directions(first)
    places, cosines = nearest_of_queries(first, queries, vectors, n)
    expanded = weighted_sums(vectors, places, powers(cosines, alpha), start=queries)
    return search(expanded, prepared_gallery(first, vectors), depth_of(first))


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
    queries, vectors = _augmented(first, k, alpha)
    gallery = gallery_part(first, ("augmented gallery", k, alpha), lambda: prepare_members(first, vectors, "cosine"))
    return search(queries, gallery, depth_of(first))


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
    queries, vectors = to_directions(first)
    k = min(k, len(vectors))

    def scale_gallery() -> Gallery:
        """One product gives 2 cos(q, x) − r(x): one more column on either side, and the search is exact."""
        around = mean_cosine(nearest_in_graph(first, vectors, k, own=False)[1])
        return prepare_members(first, np.concatenate([vectors, around[:, None]], axis=1), "inner_product")

    _, cosines = nearest_of_queries(first, queries, vectors, k + 1)
    others = np.where(is_member(cosines)[:, None], cosines[:, 1:], cosines[:, :-1])
    queries = np.concatenate([2 * queries, np.full((len(queries), 1), -1, np.float32)], axis=1)
    scaled = search(queries, gallery_part(first, ("scaled gallery", k), scale_gallery), depth_of(first))
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
    gallery = gallery_part(first, ("augmented gallery", k, alpha), lambda: prepare_members(first, vectors, "cosine"))
    graph = gallery_part(first, ("augmented graph", k, alpha), GalleryGraph) if first.graph else None
    neighbours = search(queries, gallery, depth_of(first))
    again = FirstSearch(queries, vectors, first.gallery_rows, "cosine", neighbours, graph)
    return local_scaling(again, k=scale_k)


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
    queries, vectors = to_directions(first)
    size, half = len(vectors), max(1, int(np.around(k1 / 2)))
    k1, k2, half = min(k1, size), min(k2, size + 1), min(half, size)
    candidates = min(max(candidates, depth_of(first)), size)

    def encode_members() -> tuple[Any, Any, Any, np.ndarray]:
        listed, cosines = nearest_in_graph(first, vectors, max(k1 + 1, k2))
        halves = reciprocal(listed, cosines, cosines[:, half], half)
        codes = encode(vectors, vectors, reciprocal(listed, cosines, cosines[:, k1], k1), halves)
        averaged = mean_codes(codes, listed, (cosines > 0) & (np.arange(listed.shape[1]) < k2))
        return codes, averaged, halves, cosines[:, k1]

    codes, averaged, halves, radius = gallery_part(first, ("codes", k1, k2), encode_members)
    places, near = nearest_of_queries(first, queries, vectors, max(candidates, k1 + 1, k2))
    own = encode(queries, vectors, reciprocal(places, near, radius, k1), halves)
    rank = np.arange(places.shape[1]) - is_member(near)[:, None]  # of a query that is a member, the first is itself
    own = mean_codes(codes, places, (near > 0) & (rank >= 0) & (rank < k2 - 1), own)
    places, near = places[:, :candidates], near[:, :candidates]
    there = places >= 0
    keys = (1 - weight) * jaccard_distances(own, averaged, places) + weight * (1 - np.where(there, near, 0))
    keys, rows = np.where(there, keys, np.inf), np.where(there, first.gallery_rows[places], -1)
    return first_by_key(keys.astype(np.float32), rows, depth_of(first))


def diffusion(first: FirstSearch, *, k: Count = 5, alpha: ShareBelowOne = 0.5, gamma: Finite = 3.0) -> Neighbours:
    """The gallery by −f, (I − αS) f = y: what spreads from a query's ``k`` nearest over mutual neighbours.

    S = D^−½ A D^−½, A_ij = max(cos(x_i, x_j), 0)^γ where i and j are among the ``k`` nearest of each other, D its row
    sums; y_i = max(cos(q, x_i), 0)^γ at the ``k`` nearest of q (itself included, if it is a member), 0 elsewhere.
    Solved to a residual of 1e-6 ‖y‖ (``fgis.retrieval.neighbourhoods.diffuse``). Images without mutual neighbours keep
    f = y.

    Args:
      first: the first search.
      k: neighbours of a query, and of a member of the gallery.
      alpha: how much is passed on along the graph; 0 is the first search alone.
      gamma: the larger, the less a distant neighbour weighs.

    Returns:
      Neighbours as deep as the first search. Distances below 0 are −f. Images with f = 0, which are not reached,
      follow in the order of the first search, with its distances 1 − cos, as far as it is deep.

    Raises:
      ValueError: see the module.

    Reference: Iscen, Tolias, Avrithis, Furon and Chum, Efficient diffusion on region manifolds, CVPR 2017; Zhou,
    Bousquet, Lal, Weston and Schölkopf, Learning with local and global consistency, NIPS 2003.
    """
    require(diffusion, k=k, alpha=alpha, gamma=gamma)
    queries, vectors = to_directions(first)
    depth, k = depth_of(first), min(k, len(vectors))
    flow_graph = lambda: mutual_graph(*nearest_in_graph(first, vectors, k, own=False), gamma)
    graph = gallery_part(first, ("flow graph", k, gamma), flow_graph)
    places, cosines = nearest_of_queries(first, queries, vectors, max(k, depth))
    sources = sparse_rows(places[:, :k], cosines[:, :k] > 0, len(vectors), powers(cosines[:, :k], gamma))
    rows = np.append(first.gallery_rows, -1)  # the last: for places that are empty

    def rank(here: slice) -> Neighbours:
        flow, near = diffuse(graph, alpha, sources[here]), places[here, :depth]
        reached, flows = entries(flow)
        # The first search lists what is not reached, too: here with the keys of an empty place where it is.
        far = (near >= 0) & (flow[np.arange(len(near))[:, None], near].toarray() == 0)
        keys = np.concatenate(
            [np.where(flows > 0, -flows, np.inf), np.where(far, 1 - cosines[here, :depth], np.inf)], axis=1
        ).astype(np.float32)
        listed = np.where(np.isinf(keys), -1, np.concatenate([reached, near], axis=1))
        return first_by_key(keys, rows[listed], depth)

    step = SOLVED_NEAR if alpha <= NEAR else max(1, SOLVED // len(vectors))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # products of sparse matrices let other threads run
        ranked = list(pool.map(rank, (slice(at, at + step) for at in range(0, max(len(queries), 1), step))))
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


def _augmented(first: FirstSearch, k: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery, every vector replaced by the weighted sum of its ``k`` nearest, itself included."""
    queries, vectors = to_directions(first)
    k = min(k, len(vectors) + 1)  # a query that is no member, and the whole gallery

    def augment() -> np.ndarray:
        places, cosines = nearest_in_graph(first, vectors, k)
        return to_unit(weighted_sums(vectors, places, powers(cosines, alpha)))

    augmented = gallery_part(first, ("augmented", k, alpha), augment)
    places, cosines = nearest_of_queries(first, queries, vectors, k)
    weights, member = powers(cosines, alpha), is_member(cosines)[:, None]
    weights[:, -1:] *= member  # a query that is no member comes first itself, and k - 1 of the gallery behind it
    return to_unit(weighted_sums(vectors, places, weights, start=np.where(member, 0, queries))), augmented
