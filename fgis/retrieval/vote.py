"""Neighbours as a classifier: the label that the nearest images vote for."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from fgis.ranges import nearest

NO_LABEL = np.iinfo(np.int64).min  # the vote of a query without neighbours; no data set labels an image so
Weighting = Literal["majority", "dudani"]


def majority(distances: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
    """Weight 1 for every neighbour."""
    return np.ones(distances.shape)


def dudani(distances: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
    """Weights (d_k − d_i) / (d_k − d_1), from 1 for the nearest to 0 for the last; 1 where all are equally far.

    Args:
      distances: of the neighbours of each query, [q, k]; infinite where there is none.

    Returns:
      Weights [q, k]; those of absent neighbours mean nothing.

    Reference: Dudani, The distance-weighted k-nearest-neighbor rule, IEEE SMC 1976.

    >>> print(dudani(np.array([[1.0, 2.0, 5.0]])))
    [[1.   0.75 0.  ]]
    """
    there = np.isfinite(distances)
    near = np.min(distances, axis=1, keepdims=True, initial=np.inf, where=there)
    far = np.max(distances, axis=1, keepdims=True, initial=-np.inf, where=there)
    with np.errstate(invalid="ignore"):
        span = far - near
        weights = (far - distances) / np.where(span > 0, span, 1)
    return np.where(span > 0, weights, 1.0)


# What a neighbour's vote weighs, by name: distances [q, k] -> weights [q, k].
WEIGHTINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"majority": majority, "dudani": dudani}


def vote(
    labels: Int[np.ndarray, "q k"], distances: Float[np.ndarray, "q k"], *, weighting: str = "majority"
) -> Int[np.ndarray, " q"]:
    """The label with the largest sum of weights among the neighbours of each query.

    Needs O(q k) memory.

    Args:
      labels: of the neighbours, by ascending distance, [q, k]; any 64-bit integers: they are compared, never counted.
      distances: of the neighbours, [q, k]; those at an infinite distance are absent and do not vote.
      weighting: a key of ``WEIGHTINGS``.

    Returns:
      Labels [q]. A tie goes to the label whose nearest neighbour is nearer; ``NO_LABEL`` for a query without
      neighbours.

    Raises:
      ValueError: an unknown weighting.

    >>> vote(np.array([[7, 5, 5]]), np.array([[0.1, 0.2, 0.3]]))
    array([5])
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting: {weighting!r} found; {nearest(str(weighting), WEIGHTINGS)}")
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
