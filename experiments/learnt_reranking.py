"""Learnt re-ranking: a logistic regression over what two images' neighbourhoods say, learnt on objects of their own.

For a query q and a candidate c of its first search: their cosine, the rank of each in the other's list, how many
neighbours they share, the cosine less the mean cosines of both to their own nearest (local scaling), and the mean
cosine of each to the nearest of the other. The probability that both show the same object orders the candidates.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fgis.base import Neighbours
from fgis.retrieval.first_search import FirstSearch

NAMES = (
    "cosine", "rank", "reciprocal rank", "shared of 4", "shared of 8", "locally scaled", "query's nearest",
    "candidate's nearest",
)  # fmt: skip
NEAREST = 3  # of an image, itself left out: an object of UKBench has so many other views
ROUNDS, RIDGE = 30, 1e-3  # of Newton's method; the ridge is a share of the number of pairs


class Weights(NamedTuple):
    """A learnt regression."""

    mean: Float[np.ndarray, " f"]  # of every feature of a pair
    scale: Float[np.ndarray, " f"]  # its deviation
    slopes: Float[np.ndarray, " f"]  # of the standardised features
    intercept: float


def pair_features(first: FirstSearch) -> Float[np.ndarray, "n k f"]:
    """The features ``NAMES`` of each query with each of its candidates, in a gallery that is the queries themselves.

    Args:
      first: the first search of n unit vectors among themselves, k deep.

    Returns:
      Ranks are log₂(1 + rank), with 0 for the image itself; shared neighbours are a share of those of both.
    """
    vectors, places = np.asarray(first.queries, np.float32), np.asarray(first.neighbours.rows)
    cosines = vectors @ vectors.T
    own = cosines.copy()
    np.fill_diagonal(own, np.inf)  # the image itself comes first, whatever is equal to it
    order = np.argsort(-own, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(len(order))[None], axis=1)
    queries = np.arange(len(places))[:, None]
    near = order[:, 1 : NEAREST + 1]
    density = np.take_along_axis(cosines, near, axis=1).mean(axis=1)
    towards = cosines[near].mean(axis=1)  # [n, n]: the mean cosine of the nearest of a row's image to each image
    features = [
        cosines[queries, places],
        np.log2(1 + ranks[queries, places]),
        np.log2(1 + ranks[places, queries]),
        *(_shared(ranks < depth)[queries, places] for depth in (4, 8)),
        cosines[queries, places] - (density[queries] + density[places]) / 2,
        towards[queries, places],
        towards[places, queries],
    ]
    return np.stack(features, axis=-1).astype(np.float64)


def _shared(member: Bool[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """|A ∩ B| / |A ∪ B| of the nearest of two images; ``member[i, j]``: j is one of the nearest of i."""
    sets = member.astype(np.float32)
    both, sizes = sets @ sets.T, sets.sum(axis=1)
    return both / (sizes[:, None] + sizes - both)


def learn_weights(features: Float[np.ndarray, "m f"], same: Bool[np.ndarray, " m"]) -> Weights:
    """The logistic regression of ``same`` on standardised features, with a small ridge, by Newton's method.

    Minimises Σ log(1 + exp(−y (w · z + b))) + RIDGE m ‖w‖² / 2 with y = ±1.

    Args:
      features: of m pairs.
      same: whether both images of a pair show the same object.
    """
    mean, scale = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
    z = np.concatenate([(features - mean) / scale, np.ones((len(features), 1))], axis=1)
    ridge = np.diag([RIDGE * len(z)] * (z.shape[1] - 1) + [1e-9])
    weights = np.zeros(z.shape[1])
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(z @ weights, -30, 30)))
        gradient = z.T @ (p - same) + ridge @ weights
        step = np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + ridge, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return Weights(mean, scale, weights[:-1], float(weights[-1]))


def pairs_of(
    first: FirstSearch, labels: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"] | None = None
) -> tuple[Float[np.ndarray, "p f"], Bool[np.ndarray, " p"]]:
    """What there is to learn from in a gallery: the features of pairs, and whether they show the same object.

    Args:
      first: the first search of n images among themselves.
      labels: their objects.
      rows: the queries whose pairs are taken; all without it. No image is a candidate of its own.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    places = np.asarray(first.neighbours.rows)[rows]
    others = places != rows[:, None]
    return pair_features(first)[rows][others], (labels[places] == labels[rows][:, None])[others]


def reorder(first: FirstSearch, weights: Weights) -> Neighbours:
    """The candidates of each query by the probability that they show its object; the query itself stays first.

    Distances are −(w · z + b), the negative log odds; ties keep the order of the first search.
    """
    places = np.asarray(first.neighbours.rows)
    odds = ((pair_features(first) - weights.mean) / weights.scale) @ weights.slopes + weights.intercept
    distances = np.where(places == np.arange(len(places))[:, None], -np.inf, -odds)
    order = np.argsort(distances, axis=1, kind="stable")
    take = lambda values: np.take_along_axis(values, order, axis=1)
    return Neighbours(rows=take(places), distances=take(distances).astype(np.float32))
