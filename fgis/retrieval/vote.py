"""Neighbours as a classifier: the label that the nearest images vote for."""

import numpy as np
from jaxtyping import Float, Int

from fgis.errors import UserError

NO_LABEL = np.iinfo(np.int64).min  # the vote of a query without neighbours; no data set labels an image so


def majority(distances: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
    """Weight 1 for every neighbour."""
    return np.ones(distances.shape)


def dudani(distances: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
    """Weight (d_k − d_i) / (d_k − d_1), from 1 for the nearest to 0 for the last; 1 where all are equally far.

    Reference: Dudani, The distance-weighted k-nearest-neighbor rule, IEEE SMC 1976.
    """
    there = np.isfinite(distances)
    near = np.min(distances, axis=1, keepdims=True, initial=np.inf, where=there)
    far = np.max(distances, axis=1, keepdims=True, initial=-np.inf, where=there)
    with np.errstate(invalid="ignore"):
        span = far - near
        weights = (far - distances) / np.where(span > 0, span, 1)
    return np.where(span > 0, weights, 1.0)


WEIGHTINGS = {"majority": majority, "dudani": dudani}


def vote(
    labels: Int[np.ndarray, "q k"], distances: Float[np.ndarray, "q k"], weighting: str = "majority"
) -> Int[np.ndarray, " q"]:
    """The label with the largest sum of weights among the neighbours of each query, given by ascending distance.

    A tie goes to the label whose nearest neighbour is nearer. Neighbours at an infinite distance are absent and do not
    vote; a query without any gets ``NO_LABEL``. Labels may be any 64-bit integers: they are compared, never counted.
    Needs O(q k) memory. Raises ``UserError`` for a weighting that is not in ``WEIGHTINGS``.
    """
    if weighting not in WEIGHTINGS:
        raise UserError(f"weighting: {weighting!r} is unknown; take one of {', '.join(WEIGHTINGS)}")
    if not labels.shape[1]:
        return np.full(len(labels), NO_LABEL)
    there = np.isfinite(distances)
    weights = np.where(there, WEIGHTINGS[weighting](distances), 0)
    sums = np.zeros(labels.shape)  # [q, k]: the votes for each neighbour's label, added up rank by rank to save memory
    for i in range(labels.shape[1]):
        sums += (labels == labels[:, i, None]) * weights[:, i, None]
    # Rounded, since the same sum in different parts may differ in its last bits.
    best = np.argmax(np.where(there, np.round(sums, 9), -1), axis=1)  # the first of the largest
    return np.where(there.any(axis=1), labels[np.arange(len(labels)), best], NO_LABEL)
