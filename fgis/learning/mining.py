"""From distances and masks to triplets: O(B²) memory, static shapes, no NaN on an empty batch.

``MINERS`` list triplets as indices. ``SELECTORS`` are for the strategies that use every triplet of a kind: they never
list them, but weigh all negatives of one positive per anchor at a time (``objectives.summed`` walks the positives).
Ties are broken by the lowest candidate index everywhere.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fgis.types import Key, Triplets


def relations(
    anchor_labels: Int[Array, " a"],
    anchor_rows: Int[Array, " a"],
    labels: Int[Array, " c"],
    rows: Int[Array, " c"],
) -> tuple[Bool[Array, "a c"], Bool[Array, "a c"]]:
    """Which candidates are positives and which are negatives of each anchor.

    positive: same label, another image (by row id, so an image drawn twice is no positive of itself).
    negative: another label. Padding (row -1) is neither, on either side.
    """
    valid = (anchor_rows >= 0)[:, None] & (rows >= 0)[None, :]
    same = anchor_labels[:, None] == labels[None, :]
    return valid & same & (anchor_rows[:, None] != rows[None, :]), valid & ~same


def batch_hard(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
) -> Triplets:
    """The farthest positive and the nearest negative of each anchor (Hermans 2017, arXiv:1703.07737).

    Returns a triplets, in the order of the anchors; an anchor that lacks either side has weight 0. ``key`` is not used.
    """
    del key
    hardest_positive = jnp.argmax(jnp.where(positives, distances, -jnp.inf), axis=1)
    hardest_negative = jnp.argmin(jnp.where(negatives, distances, jnp.inf), axis=1)
    valid = positives.any(axis=1) & negatives.any(axis=1)
    return Triplets(jnp.arange(len(distances)), hardest_positive, hardest_negative, valid.astype(distances.dtype))


def semi_hard(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    margin: float = 0.2,
    max_positives: int | None = None,
) -> Triplets:
    """For every anchor–positive pair, the nearest negative with d_ap < d_an < d_ap + margin (arXiv:1503.03832).

    A pair without a semi-hard negative is dropped: weight 0. ``max_positives`` bounds the positives of an anchor (K −
    1 in a P×K batch; without it any batch is handled, with c − 1 slots). Returns a · max_positives triplets. ``key``
    is not used.
    """
    del key
    a, c = distances.shape
    slots = min(max_positives or c, c)

    def one_slot(remaining: Bool[Array, "a c"], _: None) -> tuple[Bool[Array, "a c"], tuple[Array, Array, Array]]:
        positive, valid, remaining = next_positive(remaining)
        d_ap = jnp.take_along_axis(distances, positive[:, None], axis=1)
        semi_hard_negatives = negatives & (distances > d_ap) & (distances < d_ap + margin)
        negative = jnp.argmin(jnp.where(semi_hard_negatives, distances, jnp.inf), axis=1)
        weight = (valid & semi_hard_negatives.any(axis=1)).astype(distances.dtype)
        return remaining, (positive, negative, weight)

    _, found = jax.lax.scan(one_slot, positives, None, length=slots)
    return Triplets(jnp.tile(jnp.arange(a), slots), *(x.ravel() for x in found))


def next_positive(
    remaining: Bool[Array, "a c"],
) -> tuple[Int[Array, " a"], Bool[Array, " a"], Bool[Array, "a c"]]:
    """The first remaining positive of each anchor, whether there is one, and the positives that remain after it."""
    first = jnp.argmax(remaining, axis=1)
    rest = remaining & (jnp.arange(remaining.shape[1]) != first[:, None])
    return first, remaining.any(axis=1), rest


def all_negatives(
    d_ap: Float[Array, " a"], distances: Float[Array, "a c"], negatives: Bool[Array, "a c"]
) -> Float[Array, "a c"]:
    """Weight 1 for every negative: with every positive, all valid triplets of the batch ("batch all")."""
    del d_ap
    return negatives.astype(distances.dtype)


def all_semi_hard_negatives(
    d_ap: Float[Array, " a"], distances: Float[Array, "a c"], negatives: Bool[Array, "a c"], margin: float = 0.2
) -> Float[Array, "a c"]:
    """Weight 1 for every negative with d_ap < d_an < d_ap + margin."""
    semi_hard_negatives = negatives & (distances > d_ap[:, None]) & (distances < d_ap[:, None] + margin)
    return semi_hard_negatives.astype(distances.dtype)


MINERS = {"batch_hard": batch_hard, "semi_hard": semi_hard}
SELECTORS = {"batch_all": all_negatives, "all_semi_hard": all_semi_hard_negatives}
