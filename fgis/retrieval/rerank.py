"""Re-ranking: what the gallery knows about itself, used to order the answers to a query again. No label is looked at.

Every method is one function of one type: ``method(queries, gallery, neighbours, distance, gallery_rows, **params)``.
``neighbours`` is the first search of these queries in this gallery, nobody left out; the answer is as deep. A method
that reads further than that searches again, so the depth cuts the answer off and changes nothing else in it. One query
is answered as if it were the only one.

All methods compare directions: ``cos`` is the cosine of two vectors, of 1 − cos the first search is made. A gallery
vector equal to the query counts as the query itself: queries that are members of the gallery are answered like its
other members, and no row id is needed to tell. Zero vectors have the cosine 0 with everything and are never expanded.

Counts of neighbours decide more than the method does: they should not exceed the images of an object. The defaults suit
objects of about four images; the references, with tens of images each, take k = 50 (diffusion), k1 = 20, k2 = 6.
``choose_on_other_folds`` chooses among several.
"""

from collections.abc import Callable, Hashable, Mapping

import numpy as np
from jaxtyping import Array, Float, Int

from fgis.base import Neighbours
from fgis.errors import UserError
from fgis.retrieval.measures import to_unit
from fgis.retrieval.neighbourhoods import (
    average,
    encode,
    is_member,
    mutual_graph,
    padded,
    powers,
    reciprocal,
    solve,
    weighted_sums,
)
from fgis.retrieval.search import prepare_queries, search

Rerank = Callable[..., Neighbours]  # (queries [q, d], gallery [g, d], neighbours, distance, gallery_rows [g], **params)
Queries = Float[Array | np.ndarray, "q d"]
GalleryVectors = Float[Array | np.ndarray, "g d"]
Rows = Int[np.ndarray, " g"]

DIRECTIONS = ("cosine", "unit_euclidean")  # distances that rank by the cosine
COLUMNS = 64  # queries whose equations are solved together


def average_query_expansion(
    queries: Queries, gallery: GalleryVectors, neighbours: Neighbours, distance: str, gallery_rows: Rows, n: int = 3
) -> Neighbours:
    """Search again with q + Σ_{i ≤ n} x_i, x_i the ``n`` nearest of cosine above 0: unit vectors, weighted alike.

    A query that is a member of the gallery is one of its own ``n``. Distances are 1 − cos to the new query. With fewer
    than ``n`` in the gallery, these.

    Raises:
      UserError: a distance that does not rank by the cosine, or ``n`` below 1.

    Reference: Chum, Philbin, Sivic, Isard and Zisserman, Total Recall, ICCV 2007.
    """
    return weighted_query_expansion(queries, gallery, neighbours, distance, gallery_rows, n=n, alpha=0.0)


def weighted_query_expansion(
    queries: Queries, gallery: GalleryVectors, neighbours: Neighbours, distance: str, gallery_rows: Rows,
    n: int = 3, alpha: float = 3.0,
) -> Neighbours:  # fmt: skip
    """αQE: search again with q + Σ_{i ≤ n} cos(q, x_i)^α x_i over the ``n`` nearest of cosine above 0.

    ``alpha`` 0 is the average; the larger, the less a distant neighbour weighs. Otherwise as
    ``average_query_expansion``.

    Reference: Radenović, Tolias and Chum, Fine-tuning CNN image retrieval with no human annotation, TPAMI 2018.
    """
    _at_least_one(n=n)
    asked, vectors = _directions(queries, gallery, distance)
    places, cosines = _nearest(asked, vectors, gallery_rows, n, neighbours, distance)
    expanded = weighted_sums(vectors, places, powers(cosines, alpha), start=asked)
    return search(expanded, vectors, neighbours.rows.shape[1], gallery_rows=gallery_rows)


def database_augmentation(
    queries: Queries, gallery: GalleryVectors, neighbours: Neighbours, distance: str, gallery_rows: Rows,
    k: int = 4, alpha: float = 3.0,
) -> Neighbours:  # fmt: skip
    """Search again, every vector v on both sides replaced by Σ_j cos(v, x_j)^α x_j: its ``k`` nearest, itself first.

    Distances are 1 − cos between the new vectors. ``k`` 1 changes nothing; of a gallery smaller than ``k`` all count.

    Raises:
      UserError: a distance that does not rank by the cosine, or ``k`` below 1.

    Reference: Turcot and Lowe, Better matching with fewer features, ICCV workshops 2009; weights of Gordo, Almazán,
    Revaud and Larlus, End-to-end learning of deep visual representations for image retrieval, IJCV 2017.
    """
    augmented = _augmented(queries, gallery, neighbours, distance, gallery_rows, k, alpha)
    return search(*augmented, neighbours.rows.shape[1], gallery_rows=gallery_rows)


def local_scaling(
    queries: Queries, gallery: GalleryVectors, neighbours: Neighbours, distance: str, gallery_rows: Rows, k: int = 10
) -> Neighbours:
    """CSLS: the whole gallery by r(q) + r(x) − 2 cos(q, x), with r(v) the mean cosine of v and its ``k`` nearest.

    The nearest are members of the gallery other than v itself, on both sides (the reference takes those of x among the
    queries, so that an answer depends on what else is asked). Where there are fewer than ``k``, the mean is over these;
    r is 0 where there is none. Distances lie in [−4, 4]: below 0 where two are nearer than is usual around them.

    Raises:
      UserError: a distance that does not rank by the cosine, or ``k`` below 1.

    Reference: Conneau, Lample, Ranzato, Denoyer and Jégou, Word translation without parallel data, ICLR 2018.
    """
    _at_least_one(k=k)
    asked, vectors = _directions(queries, gallery, distance)
    _, cosines = _nearest(vectors, vectors, gallery_rows, k, query_rows=gallery_rows)
    around = _mean(cosines)
    _, cosines = _nearest(asked, vectors, gallery_rows, k + 1, neighbours, distance)
    others = np.where(is_member(cosines)[:, None], cosines[:, 1:], cosines[:, :-1])
    # One product gives 2 cos(q, x) − r(x): one more column on either side, and the search is exact.
    asked = np.concatenate([2 * asked, np.full((len(asked), 1), -1, np.float32)], axis=1)
    vectors = np.concatenate([vectors, around[:, None]], axis=1)
    found = search(asked, vectors, neighbours.rows.shape[1], "inner_product", gallery_rows=gallery_rows)
    return found._replace(distances=found.distances + _mean(others)[:, None])


def augmented_local_scaling(
    queries: Queries, gallery: GalleryVectors, neighbours: Neighbours, distance: str, gallery_rows: Rows,
    k: int = 4, alpha: float = 3.0, scale_k: int = 4,
) -> Neighbours:  # fmt: skip
    """``database_augmentation`` (``k``, ``alpha``), then ``local_scaling`` (``scale_k``) of the new vectors."""
    asked, vectors = _augmented(queries, gallery, neighbours, distance, gallery_rows, k, alpha)
    found = search(asked, vectors, neighbours.rows.shape[1], gallery_rows=gallery_rows)
    return local_scaling(asked, vectors, found, "cosine", gallery_rows, k=scale_k)


def k_reciprocal(
    queries: Queries, gallery: GalleryVectors, neighbours: Neighbours, distance: str, gallery_rows: Rows,
    k1: int = 6, k2: int = 3, weight: float = 0.3, candidates: int = 100,
) -> Neighbours:  # fmt: skip
    """The first ``candidates`` by (1 − λ) Jaccard(V_q, V_x) + λ (1 − cos(q, x)), λ the ``weight``.

    V_v has exp(cos(v, j) − 1) at every j in v's expanded ``k1``-reciprocal neighbours and sums to 1; it is then
    averaged over the ``k2`` nearest of v, v included. j and v are reciprocal where either is as near to the other as
    the other's ``k1``-th neighbour. The set is expanded by the k1/2-reciprocal neighbours of its members, where more
    than 2/3 of them lie in it. Jaccard = 1 − Σ min / Σ max, and 1 where a vector has no reciprocal neighbour.

    As many candidates are looked at as the answer is deep, at least. Distances lie in [0, 2]. Sets are those of gallery
    members: a query that is none of them has no entry for itself, where the reference puts all queries in one gallery.

    Raises:
      UserError: a distance that does not rank by the cosine, a count below 1, or a weight outside [0, 1].

    Reference: Zhong, Zheng, Cao and Li, Re-ranking person re-identification with k-reciprocal encoding, CVPR 2017.
    """
    _at_least_one(k1=k1, k2=k2, candidates=candidates)
    if not 0 <= weight <= 1:
        raise UserError(f"weight: {weight} found; write a number between 0 (Jaccard alone) and 1 (cosine alone)")
    asked, vectors = _directions(queries, gallery, distance)
    depth = neighbours.rows.shape[1]
    candidates, half = max(candidates, depth), max(1, int(np.around(k1 / 2)))
    listed, cosines = _nearest(vectors, vectors, gallery_rows, max(k1 + 1, k2))
    halves = reciprocal(listed, cosines, cosines[:, half], half)
    codes = encode(vectors, vectors, reciprocal(listed, cosines, cosines[:, k1], k1), halves)
    smooth = [average([codes[j] for j in one]) for one in _related(listed[:, :k2], cosines[:, :k2])]
    columns, weights = padded(smooth, len(vectors))
    places, near = _nearest(asked, vectors, gallery_rows, max(candidates, k1 + 1, k2), neighbours, distance)
    own = encode(asked, vectors, reciprocal(places, near, cosines[:, k1], k1), halves)
    answers = places[:, :candidates]
    there, jaccard = answers >= 0, np.ones(answers.shape, np.float32)
    code = np.zeros(len(vectors) + 1, np.float32)  # of one query, with a place for padded columns
    for i, (member, others) in enumerate(zip(is_member(near).tolist(), _related(places, near), strict=True)):
        here, values = average([own[i], *(codes[j] for j in others[member : member + k2 - 1])])
        code[here] = values
        shared = np.minimum(code[columns[answers[i]]], weights[answers[i]]).sum(axis=1)
        either = values.sum() + weights[answers[i]].sum(axis=1) - shared
        jaccard[i] -= shared / np.where(shared > 0, either, 1)
        code[here] = 0
    keys = (1 - weight) * jaccard + weight * (1 - np.where(there, near[:, :candidates], 0))
    keys, rows = np.where(there, keys, np.inf), np.where(there, gallery_rows[answers], -1)
    return _ranked(keys.astype(np.float32), rows, depth)


def diffusion(
    queries: Queries, gallery: GalleryVectors, neighbours: Neighbours, distance: str, gallery_rows: Rows,
    k: int = 5, alpha: float = 0.5, gamma: float = 3.0,
) -> Neighbours:  # fmt: skip
    """The gallery by −f, (I − αS) f = y: a walk from the query's ``k`` nearest along the graph of mutual neighbours.

    S = D^−½ A D^−½, A_ij = max(cos(x_i, x_j), 0)^γ where i and j are among the ``k`` nearest of each other, D its row
    sums; y_i = max(cos(q, x_i), 0)^γ at the ``k`` nearest of q (itself included, if it is a member), 0 elsewhere.
    Solved by conjugate gradients to a residual of 1e-6 ‖y‖.

    Where the walk does not arrive, f is 0: those follow in the order of the first search, with its distances 1 − cos,
    as far as that was deep. So distances below 0 are −f, and others cosine distances. Images without mutual neighbours
    keep f = y.

    Raises:
      UserError: a distance that does not rank by the cosine, ``k`` below 1, or ``alpha`` outside [0, 1).

    Reference: Iscen, Tolias, Avrithis, Furon and Chum, Efficient diffusion on region manifolds, CVPR 2017; Zhou,
    Bousquet, Lal, Weston and Schölkopf, Learning with local and global consistency, NIPS 2003.
    """
    _at_least_one(k=k)
    if not 0 <= alpha < 1:
        raise UserError(
            f"alpha: {alpha} found; write a number of at least 0 and below 1, where the walk would never end"
        )
    asked, vectors = _directions(queries, gallery, distance)
    depth = neighbours.rows.shape[1]
    edges, strengths = mutual_graph(*_nearest(vectors, vectors, gallery_rows, k, query_rows=gallery_rows), gamma)
    places, cosines = _nearest(asked, vectors, gallery_rows, max(k, depth), neighbours, distance)
    rows = np.append(gallery_rows, -1)  # the last: for places that are empty
    found = []
    for start in range(0, max(len(asked), 1), COLUMNS):
        here, near = places[start : start + COLUMNS], cosines[start : start + COLUMNS]
        queried = np.arange(len(here))[:, None]
        sources = np.zeros((len(here), len(rows)))
        sources[queried, here[:, :k]] = powers(near[:, :k], gamma)
        walked = solve(edges, strengths, alpha, sources[:, :-1].T).T
        keys = np.full(sources.shape, np.inf, np.float32)
        keys[queried, here[:, :depth]] = 1 - near[:, :depth]
        keys[:, :-1] = np.where(walked > 0, -walked, keys[:, :-1])
        found.append(_ranked(keys, np.where(np.isinf(keys), -1, rows), depth))
    return Neighbours(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


RERANKERS: dict[str, Rerank] = {
    "average_query_expansion": average_query_expansion,
    "weighted_query_expansion": weighted_query_expansion,
    "database_augmentation": database_augmentation,
    "local_scaling": local_scaling,
    "augmented_local_scaling": augmented_local_scaling,
    "k_reciprocal": k_reciprocal,
    "diffusion": diffusion,
}


def choose_on_other_folds(
    values: Mapping[Hashable, Float[np.ndarray, " n"]], folds: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], dict[int, Hashable]]:
    """(values [n], {fold: key}): each fold has the values of the key that has the best mean on all other folds.

    ``values[key]`` holds one value per query, the higher the better; NaN marks queries that count nowhere. Ties go to
    the first key, and so does the choice where the other folds hold no value.
    """
    keys, table = list(values), np.stack([np.asarray(one, np.float64) for one in values.values()])
    asked = np.isfinite(table)
    chosen: dict[int, Hashable] = {}
    found = np.full(table.shape[1], np.nan)
    for fold in np.unique(folds).tolist():
        others = asked & (folds != fold)
        counts = others.sum(axis=1)
        means = np.where(others, table, 0).sum(axis=1) / np.maximum(counts, 1)
        best = int(np.argmax(np.where(counts > 0, means, -np.inf)))
        chosen[fold] = keys[best]
        found[folds == fold] = table[best, folds == fold]
    return found, chosen


def _at_least_one(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise UserError(f"{name}: {value} found; write a whole number of at least 1")


def _directions(queries: Queries, gallery: GalleryVectors, distance: str) -> tuple[np.ndarray, np.ndarray]:
    """Both as unit vectors; ``UserError`` where ``distance`` compares anything but directions."""
    if distance not in DIRECTIONS:
        raise UserError(
            f"distance: re-ranking compares directions, and {distance!r} does not; take {' or '.join(DIRECTIONS)}, "
            "or no re-ranking"
        )
    return prepare_queries(queries, "cosine"), prepare_queries(gallery, "cosine", "gallery")


def _nearest(
    asked: np.ndarray, vectors: np.ndarray, rows: np.ndarray, n: int, neighbours: Neighbours | None = None,
    distance: str = "cosine", query_rows: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Gallery places [q, n] of the nearest, and their cosines; -1 and -inf where there is none.

    Those of ``neighbours``, where it is a search by cosine and deep enough.
    """
    if neighbours is None or distance != "cosine" or neighbours.rows.shape[1] < n:
        neighbours = search(asked, vectors, n, query_rows=query_rows, gallery_rows=rows)
    return _places(neighbours.rows[:, :n], rows), 1 - neighbours.distances[:, :n]


def _places(rows: np.ndarray, gallery_rows: np.ndarray) -> np.ndarray:
    order = np.argsort(gallery_rows, kind="stable")
    places = order[np.searchsorted(gallery_rows, rows, sorter=order).clip(max=len(order) - 1)]
    if (gallery_rows[places] != rows)[rows >= 0].any():
        raise ValueError("neighbours were searched in another gallery: a row of theirs is not in gallery_rows")
    return np.where(rows >= 0, places, -1)


def _augmented(
    queries: Queries, gallery: GalleryVectors, neighbours: Neighbours, distance: str, gallery_rows: Rows, k: int,
    alpha: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Queries and gallery, every vector replaced by the weighted sum of its ``k`` nearest, itself included."""
    _at_least_one(k=k)
    asked, vectors = _directions(queries, gallery, distance)
    places, cosines = _nearest(vectors, vectors, gallery_rows, k)
    augmented = to_unit(weighted_sums(vectors, places, powers(cosines, alpha)))
    places, cosines = _nearest(asked, vectors, gallery_rows, k, neighbours, distance)
    places, weights, member = places[:, :k], powers(cosines[:, :k], alpha), is_member(cosines)[:, None]
    weights[:, -1:] *= member  # a query that is no member comes first itself, and k - 1 of the gallery behind it
    return to_unit(weighted_sums(vectors, places, weights, start=np.where(member, 0, asked))), augmented


def _mean(cosines: np.ndarray) -> np.ndarray:
    """Row means of what there is; 0 where there is nothing."""
    there = np.isfinite(cosines)
    return np.where(there, cosines, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1).astype(np.float32)


def _related(places: np.ndarray, cosines: np.ndarray) -> list[list[int]]:
    """The places of each line whose cosine is above 0."""
    return [line[cosine > 0].tolist() for line, cosine in zip(places, cosines, strict=True)]


def _ranked(keys: np.ndarray, rows: np.ndarray, k: int) -> Neighbours:
    """The first ``k`` of each line by (key, row); lines shorter than ``k`` are filled up, as in ``search``."""
    missing = ((0, 0), (0, max(0, k + 1 - keys.shape[1])))
    keys, rows = np.pad(keys, missing, constant_values=np.inf), np.pad(rows, missing, constant_values=-1)
    order = np.lexsort((rows, keys))[:, : k + 1]
    keys, rows = np.take_along_axis(keys, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return Neighbours(rows[:, :k], keys[:, :k], np.isfinite(keys[:, k]) & (keys[:, k] == keys[:, k - 1]))
