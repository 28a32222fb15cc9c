"""What a gallery's own neighbours tell: graphs of mutual neighbours, and sets of reciprocal ones.

Neighbours come as ``places`` [q, k] in the gallery, nearest first, -1 where there is none, and their ``cosines``
[q, k], -inf there. Sparse vectors over the gallery come as pairs of arrays: ascending places, and the weights at these.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from fgis.retrieval.measures import MEASURES

Places = Int[np.ndarray, "q k"]
Cosines = Float[np.ndarray, "q k"]
Sparse = tuple[Int[np.ndarray, " _"], Float[np.ndarray, " _"]]

SOLVED = 1e-6  # of the length of the right side: where conjugate gradients stop
ITERATIONS = 500


def is_member(cosines: Cosines) -> Bool[np.ndarray, " q"]:
    """Whether the gallery holds the query itself: a vector equal to it, up to rounding."""
    return cosines[:, 0] == 1


def powers(cosines: Cosines, alpha: float) -> Cosines:
    """cos^α, and 0 where cos is not above 0, also for α = 0."""
    return np.where(cosines > 0, np.where(cosines > 0, cosines, 1) ** np.float32(alpha), 0)


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


def reciprocal(
    places: Places, cosines: Cosines, radius: Float[np.ndarray, " g"], k: int
) -> list[Int[np.ndarray, " _"]]:
    """R(v, k): of the ``k`` nearest of each v (and v itself), those of cosine above 0 to which v is near as well.

    ``radius`` holds the cosine of every gallery member and its own ``k``-th neighbour; v, which may be no member, is
    near where it is at least as near as that.
    """
    within = np.arange(places.shape[1]) < k + is_member(cosines)[:, None]
    mutual = within & (cosines > 0) & (cosines >= radius[places])
    return [line[ok] for line, ok in zip(places, mutual, strict=True)]


def encode(
    asked: Float[np.ndarray, "q d"], vectors: Float[np.ndarray, "g d"], sets: Sequence[Int[np.ndarray, " _"]],
    halves: Sequence[Int[np.ndarray, " _"]],
) -> list[Sparse]:  # fmt: skip
    """exp(cos(v, j) − 1) at every j in the expanded set of v, divided by the sum; nothing where the set is empty.

    The set R(v) grows by ``halves[j]`` of each j in it, where more than 2/3 of ``halves[j]`` lie in R(v).
    """
    exact, codes = MEASURES["cosine"].exact, []
    for one, members in zip(asked, sets, strict=True):
        inside = set(members.tolist())
        near = (halves[j] for j in members)
        more = [half for half in near if 3 * sum(j in inside for j in half.tolist()) > 2 * len(half)]
        columns = np.unique(np.concatenate([members, *more]))
        weights = np.exp(-exact(one[None], vectors[columns]))
        codes.append((columns, weights / weights.sum() if len(weights) else weights))
    return codes


def average(codes: Sequence[Sparse]) -> Sparse:
    """The mean of sparse vectors; nothing of nothing."""
    if not codes:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    columns, index = np.unique(np.concatenate([column for column, _ in codes]), return_inverse=True)
    weights = np.bincount(index, np.concatenate([weight for _, weight in codes]), len(columns)) / len(codes)
    return columns, weights.astype(np.float32)


def padded(codes: Sequence[Sparse], missing: int) -> tuple[Int[np.ndarray, "g m"], Float[np.ndarray, "g m"]]:
    """Sparse vectors as two rectangles: columns, filled up with ``missing``, and weights, filled up with 0."""
    width = max(len(column) for column, _ in codes)
    columns, weights = np.full((len(codes), width), missing), np.zeros((len(codes), width), np.float32)
    for i, (column, weight) in enumerate(codes):
        columns[i, : len(column)], weights[i, : len(column)] = column, weight
    return columns, weights


def mutual_graph(
    places: Int[np.ndarray, "g k"], cosines: Float[np.ndarray, "g k"], gamma: float
) -> tuple[Int[np.ndarray, "g m"], Float[np.ndarray, "g m"]]:
    """S = D^−½ A D^−½ as (places, weights): A_ij = cos^γ where i and j list each other and cos > 0; 0 fills up.

    ``places`` are the neighbours of the gallery's members, a member not among its own. D holds the row sums of A; a
    member without mutual neighbours has an empty row.
    """
    size, own = len(places), np.arange(len(places))[:, None]
    mutual = (cosines > 0) & np.isin(places * size + own, np.where(places >= 0, own * size + places, -1))
    width = max(1, int(mutual.sum(axis=1).max()))
    first = np.argsort(~mutual, axis=1, kind="stable")[:, :width]
    places = np.take_along_axis(places, first, axis=1)
    weights = np.take_along_axis(np.where(mutual, powers(cosines, gamma), 0), first, axis=1).astype(np.float64)
    degrees = weights.sum(axis=1)
    scale = 1 / np.sqrt(np.where(degrees > 0, degrees, 1))
    return places, weights * scale[:, None] * scale[places]


def solve(
    places: Int[np.ndarray, "g m"], weights: Float[np.ndarray, "g m"], alpha: float, right: Float[np.ndarray, "g q"]
) -> Float[np.ndarray, "g q"]:
    """F of (I − αS) F = right, S as of ``mutual_graph``, 0 ≤ α < 1: conjugate gradients, all columns at once.

    Ends where every residual is at most 1e-6 of its right side; what the graph does not connect to it stays exactly 0.
    """
    target = SOLVED**2 * (right**2).sum(axis=0)
    solution, residual, direction = np.zeros_like(right), right.copy(), right.copy()
    squares = (residual**2).sum(axis=0)
    for _ in range(ITERATIONS):
        if (squares <= target).all():
            break
        image = direction - alpha * weighted_sums(direction, places, weights)
        curvature = (direction * image).sum(axis=0)
        step = squares / np.where(curvature > 0, curvature, 1)  # a column that is solved has no direction left
        solution += step * direction
        residual -= step * image
        before, squares = squares, (residual**2).sum(axis=0)
        direction = residual + squares / np.where(before > 0, before, 1) * direction
    return solution
