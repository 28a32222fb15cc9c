"""From distances and masks to triplets: O(B²) memory, static shapes, no NaN on an empty batch.

``MINERS`` list triplets as indices. ``SELECTORS`` are for the strategies that use every triplet of a kind: they never
list them, but weigh all negatives of one positive per anchor at a time (``objectives.summed`` goes from one positive to
the next). Ties are broken by the lowest candidate index everywhere.

The ``key`` of a miner is one typed key, or an array [a] of keys, one per anchor; one key is folded with the index of
the anchor. With a key per anchor, what is drawn does not depend on how the anchors are split over devices.

A miner that lists pairs reads ``info.max_positives``, a bound on the positives of an anchor: K − 1 in a P×K batch. An
anchor that has more uses those of lowest index; None handles any batch, with c slots. Slot by slot, it returns
a · max_positives triplets.
"""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fgis.base import BatchInfo, Key, Triplets
from fgis.distances import wide_type
from fgis.learning.candidates import (
    NO_INFO,
    farthest_candidate,
    first_true,
    nearest_candidate,
    one_drawn_per_pair,
    one_per_pair,
)
from fgis.ranges import Positive, require


def relations(
    anchor_labels: Int[Array, " a"],
    anchor_rows: Int[Array, " a"],
    labels: Int[Array, " c"],
    rows: Int[Array, " c"],
) -> tuple[Bool[Array, "a c"], Bool[Array, "a c"]]:
    """Which candidates are positives and which are negatives of each anchor.

    positive: same label, another image (by row id, so an image drawn twice is no positive of itself).
    negative: another label. Padding (row -1) is neither, on either side.

    Args:
      anchor_labels: of the anchors.
      anchor_rows: of the anchors; -1 for padding.
      labels: of the candidates.
      rows: of the candidates; -1 for padding.

    Returns:
      Two masks [a, c] that are nowhere both True.

    >>> labels, rows = jnp.array([7, 7, 3]), jnp.array([0, 1, 2])
    >>> positives, negatives = relations(labels, rows, labels, rows)
    >>> positives.astype(int).tolist(), negatives.astype(int).tolist()
    ([[0, 1, 0], [1, 0, 0], [0, 0, 0]], [[0, 0, 1], [0, 0, 1], [1, 1, 0]])
    """
    valid = (anchor_rows >= 0)[:, None] & (rows >= 0)[None, :]
    same = anchor_labels[:, None] == labels[None, :]
    return valid & same & (anchor_rows[:, None] != rows[None, :]), valid & ~same


def batch_hard(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    info: BatchInfo = NO_INFO,
) -> Triplets:
    """The farthest positive and the nearest negative of each anchor (Hermans 2017, arXiv:1703.07737).

    Args:
      key: not used.
      distances: from anchors to candidates.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      info: not used.

    Returns:
      a triplets, in the order of the anchors; an anchor without a positive or without a negative has weight 0.

    >>> import jax
    >>> distances = jnp.array([[0.0, 0.3, 0.9, 0.5, 0.6]])
    >>> positives, negatives = jnp.array([[0, 1, 1, 0, 0]]) > 0, jnp.array([[0, 0, 0, 1, 1]]) > 0
    >>> found = batch_hard(jax.random.key(0), distances, positives, negatives)
    >>> int(found.anchor[0]), int(found.positive[0]), int(found.negative[0])
    (0, 2, 3)
    """
    del key, info
    positive, has_positive = farthest_candidate(distances, positives)
    negative, has_negative = nearest_candidate(distances, negatives)
    weight = (has_positive & has_negative).astype(distances.dtype)
    return Triplets(np.arange(len(distances)), positive, negative, weight)


def easy_semi_hard(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    info: BatchInfo = NO_INFO,
) -> Triplets:
    """The nearest positive of each anchor, and the nearest negative with d_an > d_ap (Xuan 2020, arXiv:1904.04370).

    An image need only resemble the most similar one of its class.

    Args:
      key: not used.
      distances: from anchors to candidates.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      info: not used.

    Returns:
      a triplets, in the order of the anchors; an anchor without a positive, or without a negative beyond it, has
      weight 0.
    """
    del key, info
    positive, has_positive = nearest_candidate(distances, positives)
    d_ap = jnp.take_along_axis(distances, positive[:, None], axis=1)
    negative, has_negative = nearest_candidate(distances, negatives & (distances > d_ap))
    weight = (has_positive & has_negative).astype(distances.dtype)
    return Triplets(np.arange(len(distances)), positive, negative, weight)


def semi_hard(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    info: BatchInfo = NO_INFO,
    *,
    margin: Positive = 0.2,
    fallback: Literal["drop", "hardest", "easiest"] = "drop",
) -> Triplets:
    """For every anchor–positive pair, the nearest negative with d_ap < d_an < d_ap + margin (arXiv:1503.03832).

    A pair without a semi-hard negative takes the ``fallback``. TensorFlow's ``triplet_semihard_loss`` is "easiest": the
    largest d_an where no negative is farther than the positive. (It has no upper bound; under a hinge with the same
    margin that makes no difference, as whatever lies beyond the bound costs nothing.)

    Args:
      key: not used.
      distances: from anchors to candidates.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      info: ``max_positives`` bounds the pairs of an anchor.
      margin: in units of the distance.
      fallback: "drop" leaves such a pair out (weight 0), "hardest" takes the nearest negative of all, "easiest" the
        farthest.

    Returns:
      a · max_positives triplets; a slot without a positive or without a negative has weight 0.

    Raises:
      ValueError: ``margin`` is not above 0, or ``fallback`` is none of the three.
    """
    del key
    require(semi_hard, margin=margin, fallback=fallback)
    other, has_other = _FALLBACKS[fallback](distances, negatives)

    def choose(d_ap: Float[Array, "a 1"], _: None) -> tuple[Array, Array]:
        nearest, found = nearest_candidate(distances, negatives & (distances > d_ap) & (distances < d_ap + margin))
        return jnp.where(found, nearest, other), found | has_other

    return one_per_pair(distances, positives, info, choose)


def hard_negatives(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    info: BatchInfo = NO_INFO,
) -> Triplets:
    """For every anchor–positive pair, the nearest negative of the anchor: argmin d_an, whatever d_ap is.

    Kept to show collapse: on fine-grained data all embeddings shrink to one point (Xuan 2020, arXiv:2007.12749).

    Args:
      key: not used.
      distances: from anchors to candidates.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      info: ``max_positives`` bounds the pairs of an anchor.

    Returns:
      a · max_positives triplets; a slot without a positive or without a negative has weight 0.
    """
    del key
    nearest = nearest_candidate(distances, negatives)
    return one_per_pair(distances, positives, info, lambda *_: nearest)


def random_negatives(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    info: BatchInfo = NO_INFO,
) -> Triplets:
    """For every anchor–positive pair, one negative of the anchor, all equally likely: the baseline.

    Args:
      key: what negatives are drawn with.
      distances: not read.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      info: ``max_positives`` bounds the pairs of an anchor.

    Returns:
      a · max_positives triplets; a slot without a positive or without a negative has weight 0.
    """
    return one_drawn_per_pair(key, negatives.astype(jnp.float32), distances, positives, info)


def distance_weighted(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    info: BatchInfo = NO_INFO,
    *,
    minimum: Positive = 0.5,
    maximum: Positive = 1.4,
) -> Triplets:
    """For every anchor–positive pair, one negative drawn with weight 1 / q(d_an) (Wu 2017, arXiv:1706.07567).

    q(d) ∝ dⁿ⁻² (1 − d²/4)^((n−3)/2) is how often two random unit vectors of n = ``info.dimensions`` lie d apart, so
    that distances, not images, are drawn evenly: log w = (2 − n) ln d − (n − 3)/2 · ln(1 − d²/4).

    A pair whose negatives are all left out has weight 0. So it has in PyTorch Metric Learning 2.9; Wu's code draws
    from the whole batch instead, positives included. Both scale weights by the largest of the whole batch, also where
    that belongs to no admissible negative, and lose the anchors that underflow beside it (log w reaches 184 at n = 256,
    and more beyond ``maximum``): here every anchor is scaled by its own largest.

    Args:
      key: what negatives are drawn with.
      distances: from anchors to candidates, Euclidean between unit vectors.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      info: ``dimensions`` of the embeddings is needed; ``max_positives`` bounds the pairs of an anchor.
      minimum: smaller distances count as this one.
      maximum: negatives that are as far or farther are left out.

    Returns:
      a · max_positives triplets; a slot without a positive or without an admissible negative has weight 0.

    Raises:
      ValueError: not 0 < minimum < maximum, or ``info.dimensions`` is None.
    """
    require(distance_weighted, minimum=minimum, maximum=maximum)
    if minimum >= maximum:
        raise ValueError(f"minimum: {minimum!r} found with maximum={maximum!r}; write 0 < minimum < maximum")
    if info.dimensions is None:
        raise ValueError("info.dimensions: None found; distance_weighted needs the dimensions of the embeddings")
    n = info.dimensions
    d = jnp.clip(distances.astype(wide_type(distances)), minimum, 2)
    apart = jnp.maximum(1 - d * d / 4, jnp.finfo(jnp.float32).eps)
    log_weights = (2 - n) * jnp.log(d) - (n - 3) / 2 * jnp.log(apart)
    admissible = negatives & (distances < maximum)
    largest = jnp.max(log_weights, axis=1, keepdims=True, where=admissible, initial=-jnp.inf)
    weights = jnp.where(admissible, jnp.exp(log_weights - largest), 0)
    return one_drawn_per_pair(key, weights, distances, positives, info)


def all_negatives(
    d_ap: Float[Array, " a"], distances: Float[Array, "a c"], negatives: Bool[Array, "a c"]
) -> Float[Array, "a c"]:
    """Weight 1 for every negative: with every positive, all valid triplets of the batch ("batch all").

    Args:
      d_ap: not used.
      distances: from anchors to candidates; their type is that of the weights.
      negatives: which candidates are negatives of each anchor.

    Returns:
      Weights [a, c] of the triplets (anchor, the positive at ``d_ap``, candidate).
    """
    del d_ap
    return negatives.astype(distances.dtype)


def all_semi_hard_negatives(
    d_ap: Float[Array, " a"],
    distances: Float[Array, "a c"],
    negatives: Bool[Array, "a c"],
    *,
    margin: Positive = 0.2,
) -> Float[Array, "a c"]:
    """Weight 1 for every negative with d_ap < d_an < d_ap + margin.

    Args:
      d_ap: from each anchor to one of its positives.
      distances: from anchors to candidates.
      negatives: which candidates are negatives of each anchor.
      margin: in units of the distance.

    Returns:
      Weights [a, c] of the triplets (anchor, the positive at ``d_ap``, candidate).
    """
    semi_hard_negatives = negatives & (distances > d_ap[:, None]) & (distances < d_ap[:, None] + margin)
    return semi_hard_negatives.astype(distances.dtype)


def _no_candidate(distances: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> tuple[Array, Array]:
    return first_true(jnp.zeros_like(mask))


_FALLBACKS = {"drop": _no_candidate, "hardest": nearest_candidate, "easiest": farthest_candidate}
# Defined on one distance alone, which such a miner is given whatever distance the loss is computed from.
MINED_ON = {"distance_weighted": "unit_euclidean"}
MINERS: dict[str, Callable[..., Triplets]] = {
    "batch_hard": batch_hard,
    "semi_hard": semi_hard,
    "easy_semi_hard": easy_semi_hard,
    "hard_negatives": hard_negatives,
    "random_negatives": random_negatives,
    "distance_weighted": distance_weighted,
}
SELECTORS: dict[str, Callable[..., Array]] = {"batch_all": all_negatives, "all_semi_hard": all_semi_hard_negatives}
