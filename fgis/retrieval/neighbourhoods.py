"""What the neighbours of a gallery's own members tell: graphs of mutual neighbours, and sets of reciprocal ones.

Neighbours come as ``places`` [q, k] in the gallery, nearest first, -1 where there is none, and their ``cosines``
[q, k], -inf there. Sets and sparse vectors over the gallery are rows of SciPy's CSR arrays, [q, g]. SciPy is imported
where it is needed, since it takes as long to import as JAX does and re-ranking alone needs it.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from fgis.base import Neighbours
from fgis.retrieval.measures import MEASURES
from fgis.retrieval.search import find_places, search

Places = Int[np.ndarray, "q k"]
Cosines = Float[np.ndarray, "q k"]
Sparse = Any  # scipy.sparse.csr_array

RESIDUAL = 1e-6  # of the length of the right side: where solving a system of equations stops
MANY = 4  # times as many keys as are wanted, from which on they are not all sorted
NEAR = 0.6  # the largest α for which few images are reached
ENTRIES = 1 << 12  # pairs of vectors that are compared at a time
PAIRS_OF_ROWS = 1 << 13  # pairs of sparse vectors that are compared at a time


def is_member(cosines: Cosines) -> Bool[np.ndarray, " q"]:
    """Whether the gallery holds the query itself: a vector equal to it, up to rounding."""
    return cosines[:, 0] == 1


def powers(cosines: Cosines, alpha: float) -> Cosines:
    """cos^α, and 0 where cos is not above 0, also for α = 0."""
    return np.where(cosines > 0, np.where(cosines > 0, cosines, 1) ** np.float32(alpha), 0)


def mean_cosine(cosines: Cosines) -> Float[np.ndarray, " q"]:
    """The mean of the finite numbers of each row; 0 where there is none."""
    there = np.isfinite(cosines)
    return np.where(there, cosines, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1).astype(np.float32)


def weighted_sums(
    vectors: Float[np.ndarray, "g d"], places: Places, weights: Cosines, start: Float[np.ndarray, "#q d"] | float = 0.0
) -> Float[np.ndarray, "q d"]:
    """start + Σ_i weights[:, i] · vectors[places[:, i]], one term after the other: in O(q d) memory."""
    total = start + np.zeros((len(places), vectors.shape[1]), vectors.dtype)
    term = np.empty_like(total)
    for place, weight in zip(places.T, weights.T, strict=True):
        np.take(vectors, place, axis=0, out=term, mode="wrap")  # -1 is some vector, of weight 0
        term *= weight[:, None]
        total += term
    return total


def nearest_of_members(
    vectors: np.ndarray, rows: np.ndarray, n: int, own: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Gallery places [g, n] of the nearest of each member, and their cosines; without the member itself if not ``own``.

    -1 and -inf where there is none.
    """
    neighbours = search(vectors, vectors, n, query_rows=None if own else rows, gallery_rows=rows)
    return find_places(neighbours.rows, rows), 1 - neighbours.distances


def sparse_rows(places: Places, chosen: Bool[np.ndarray, "q k"], size: int, values: Any = 1.0) -> Sparse:
    """The sparse array [q, size] that holds ``values`` (of every place, or one for all) at the ``chosen`` places."""
    from scipy import sparse

    values = np.broadcast_to(np.asarray(values, np.float64), places.shape)[chosen]
    starts = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))])
    rows = sparse.csr_array((values, places[chosen], starts), shape=(len(places), size))
    rows.sort_indices()
    return rows


def reciprocal(places: Places, cosines: Cosines, radius: Float[np.ndarray, " g"], k: int) -> Sparse:
    """R(v, k): of the ``k`` nearest of each v (and v itself), those of cosine above 0 to which v is near as well.

    ``radius`` holds the cosine of every gallery member and its own ``k``-th neighbour; v, which may be no member, is
    near where it is at least as near as that.

    Returns:
      [q, g], 1 at the members of each set.
    """
    within = np.arange(places.shape[1]) < k + is_member(cosines)[:, None]
    return sparse_rows(places, within & (cosines > 0) & (cosines >= radius[places]), len(radius))


def encode(
    queries: Float[np.ndarray, "q d"], vectors: Float[np.ndarray, "g d"], sets: Sparse, halves: Sparse
) -> Sparse:
    """exp(cos(v, j) − 1) at every j in the expanded set of v, divided by the sum; nothing where the set is empty.

    The set R(v) of a row of ``sets`` [q, g] grows by the row ``halves[j]`` [g, g] of each j in it, where more than 2/3
    of that row lie in R(v).

    Returns:
      [q, g], rows of sum 1.
    """
    from scipy import sparse

    common = (sets @ halves.T).multiply(sets).tocsr()  # [q, g]: how much of halves[j] lies in R(v), for j in R(v)
    common.data = (3 * common.data > 2 * np.diff(halves.indptr)[common.indices]).astype(np.float64)
    expanded = (sets + common @ halves).tocsr()
    expanded.eliminate_zeros()
    expanded.sort_indices()
    exact, place = MEASURES["cosine"].exact, np.repeat(np.arange(len(queries)), np.diff(expanded.indptr))
    for start in range(0, len(place), ENTRIES):
        here = slice(start, start + ENTRIES)
        expanded.data[here] = np.exp(-exact(queries[place[here]], vectors[expanded.indices[here]]))
    sums = expanded.sum(axis=1)
    return (sparse.diags_array(1 / np.where(sums > 0, sums, 1)) @ expanded).tocsr()


def mean_codes(codes: Sparse, places: Places, chosen: Bool[np.ndarray, "q k"], own: Sparse | None = None) -> Sparse:
    """The mean of the rows of ``codes`` [g, g] at the ``chosen`` places, and of the row of ``own`` [q, g] if given.

    Returns:
      [q, g]; an empty row where there is nothing to average.
    """
    from scipy import sparse

    total, counts = sparse_rows(places, chosen, codes.shape[0]) @ codes, chosen.sum(axis=1)
    if own is not None:
        total, counts = total + own, counts + 1
    means = (sparse.diags_array(1 / np.maximum(counts, 1)) @ total).tocsr()
    means.sort_indices()
    return means


def jaccard_distances(codes: Sparse, others: Sparse, places: Places) -> Float[np.ndarray, "q k"]:
    """1 − Σ min(a, c) / Σ max(a, c) of the row a of ``codes`` [q, g] and the rows c of ``others`` [g, g] at its places.

    1 where a and c have nothing in common, and where there is no place.
    """
    distances = np.ones(places.shape, np.float32)
    sums, other_sums = codes.sum(axis=1), others.sum(axis=1)
    block = max(1, PAIRS_OF_ROWS // max(1, places.shape[1]))
    for start in range(0, len(places), block):
        query, rank = np.nonzero(places[start : start + block] >= 0)
        query += start
        place = places[query, rank]
        shared = codes[query].minimum(others[place]).sum(axis=1)
        either = sums[query] + other_sums[place] - shared
        distances[query, rank] -= shared / np.where(shared > 0, either, 1)
    return distances


def mutual_graph(places: Int[np.ndarray, "g k"], cosines: Float[np.ndarray, "g k"], gamma: float) -> Sparse:
    """S = D^−½ A D^−½: A_ij = cos^γ where i and j list each other and cos > 0, D its row sums.

    ``places`` are the neighbours of the gallery's members, a member not among its own.

    Returns:
      [g, g], symmetric; a member without mutual neighbours has an empty row.
    """
    from scipy import sparse

    listed = sparse_rows(places, cosines > 0, len(places), powers(cosines, gamma))
    affinity = listed.minimum(listed.T).tocsr()  # cosines are symmetric, bit for bit
    degrees = affinity.sum(axis=1)
    scale = sparse.diags_array(1 / np.sqrt(np.where(degrees > 0, degrees, 1)))
    return (scale @ affinity @ scale).tocsr()


def diffuse(graph: Sparse, alpha: float, sources: Sparse) -> Sparse:
    """f of (I − αS) f = y, for each row y of ``sources``: S as of ``mutual_graph``, 0 ≤ α < 1.

    Up to α = ``NEAR`` what y spreads is soon too little to count, and only images that it reaches are computed with:
    the residual r = y − (I − αS) f is added to f wherever it is above 1e-6 ‖y‖, until it is nowhere. Beyond, conjugate
    gradients go on until ‖r‖ is at most 1e-6 ‖y‖. What the graph does not connect to y is not in f.

    Returns:
      [q, g], the entries above 0.
    """
    from scipy import sparse
    from scipy.sparse.linalg import cg

    if alpha > NEAR:
        system = (sparse.eye_array(graph.shape[0], format="csr") - alpha * graph).tocsr()
        solved = [cg(system, row.toarray().ravel(), rtol=RESIDUAL, atol=0.0)[0] for row in sources]
        return sparse.csr_array(np.maximum(np.reshape(solved, sources.shape), 0))
    limits = RESIDUAL * np.sqrt(sources.multiply(sources).sum(axis=1))
    flow, residual = sparse.csr_array(sources.shape), sources
    while True:
        counts = residual.data > limits.repeat(np.diff(residual.indptr))
        if not counts.any():
            flow.sort_indices()
            return flow
        added, left = residual.copy(), residual.copy()
        added.data, left.data = np.where(counts, residual.data, 0), np.where(counts, 0, residual.data)
        added.eliminate_zeros()
        left.eliminate_zeros()
        flow, residual = flow + added, left + alpha * (added @ graph)


def entries(rows: Sparse) -> tuple[Int[np.ndarray, "q m"], Float[np.ndarray, "q m"]]:
    """The places and values of sparse rows, as wide as the longest of them; -1 and 0 behind them."""
    counts = np.diff(rows.indptr)
    there = np.arange(counts.max(initial=0)) < counts[:, None]
    places, values = np.full(there.shape, -1), np.zeros(there.shape)
    places[there], values[there] = rows.indices, rows.data
    return places, values


def first_by_key(keys: Float[np.ndarray, "q m"], rows: Int[np.ndarray, "q m"], k: int) -> Neighbours:
    """The first ``k`` of each line by (key, row); lines shorter than ``k`` are filled up, as in ``search``."""
    missing = ((0, 0), (0, max(0, k + 1 - keys.shape[1])))
    keys, rows = np.pad(keys, missing, constant_values=np.inf), np.pad(rows, missing, constant_values=-1)
    if len(keys) and keys.shape[1] > MANY * (
        k + 1
    ):  # most need not be sorted: only what may be among the first, with all that tie
        last = np.partition(keys, k, axis=1)[:, k, None]
        width = int((keys <= last).sum(axis=1).max())
        first = np.argpartition(keys, width - 1, axis=1)[:, :width]
        keys, rows = np.take_along_axis(keys, first, axis=1), np.take_along_axis(rows, first, axis=1)
    order = np.lexsort((rows, keys))[:, : k + 1]
    keys, rows = np.take_along_axis(keys, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return Neighbours(rows[:, :k], keys[:, :k], np.isfinite(keys[:, k]) & (keys[:, k] == keys[:, k - 1]))
