"""From distances and masks to triplets: O(B²) memory, static shapes, no NaN on an empty batch.

``MINERS`` list triplets as indices. ``SELECTORS`` are for the strategies that use every triplet of a kind: they never
list them, but weigh all negatives of one positive per anchor at a time (``objectives.summed`` walks the positives).
Ties are broken by the lowest candidate index everywhere.

The ``key`` of a miner is one typed key, or an array [a] of keys, one per anchor; one key is folded with the index of
the anchor. With a key per anchor, what is drawn does not depend on how the anchors are split over devices.

A miner that lists pairs takes ``max_positives``, a bound on the positives of an anchor: K − 1 in a P×K batch. An anchor
that has more uses those of lowest index; None handles any batch, with c slots. Slot by slot, it returns
a · max_positives triplets.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fgis.base import Key, Triplets
from fgis.errors import UserError


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
    positive, has_positive = _farthest(distances, positives)
    negative, has_negative = _nearest(distances, negatives)
    weight = (has_positive & has_negative).astype(distances.dtype)
    return Triplets(jnp.arange(len(distances)), positive, negative, weight)


def easy_semi_hard(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
) -> Triplets:
    """The nearest positive of each anchor, and the nearest negative with d_an > d_ap (Xuan 2020, arXiv:1904.04370).

    An image need only resemble the most similar one of its class. Returns a triplets, in the order of the anchors; an
    anchor without a positive, or without a negative beyond it, has weight 0. ``key`` is not used.
    """
    del key
    positive, has_positive = _nearest(distances, positives)
    d_ap = jnp.take_along_axis(distances, positive[:, None], axis=1)
    negative, has_negative = _nearest(distances, negatives & (distances > d_ap))
    weight = (has_positive & has_negative).astype(distances.dtype)
    return Triplets(jnp.arange(len(distances)), positive, negative, weight)


def semi_hard(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    margin: float = 0.2,
    fallback: str = "drop",
    max_positives: int | None = None,
) -> Triplets:
    """For every anchor–positive pair, the nearest negative with d_ap < d_an < d_ap + margin (arXiv:1503.03832).

    A pair without a semi-hard negative takes the ``fallback``: "drop" leaves it out (weight 0), "hardest" takes the
    nearest negative of all, "easiest" the farthest. TensorFlow's ``triplet_semihard_loss`` is "easiest": the largest
    d_an where no negative is farther than the positive. (It has no upper bound; under a hinge with the same margin that
    makes no difference, as whatever lies beyond the bound costs nothing.) An anchor without negatives has weight 0.
    ``key`` is not used.
    """
    del key
    if fallback not in FALLBACKS:
        raise UserError(f"config.miner.semi_hard.fallback: {fallback!r} found; write one of {', '.join(FALLBACKS)}")
    other, has_other = FALLBACKS[fallback](distances, negatives)

    def choose(d_ap: Float[Array, "a 1"], _: None) -> tuple[Array, Array]:
        nearest, found = _nearest(distances, negatives & (distances > d_ap) & (distances < d_ap + margin))
        return jnp.where(found, nearest, other), found | has_other

    return _one_per_pair(distances, positives, max_positives, choose)


def hard_negatives(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    max_positives: int | None = None,
) -> Triplets:
    """For every anchor–positive pair, the nearest negative of the anchor: argmin d_an, whatever d_ap is.

    Kept to show collapse: on fine-grained data all embeddings shrink to one point (Xuan 2020, arXiv:2007.12749). An
    anchor without negatives has weight 0. ``key`` is not used.
    """
    del key
    nearest = _nearest(distances, negatives)
    return _one_per_pair(distances, positives, max_positives, lambda *_: nearest)


def random_negatives(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    max_positives: int | None = None,
) -> Triplets:
    """For every anchor–positive pair, one negative of the anchor, all equally likely: the baseline.

    An anchor without negatives has weight 0.
    """
    return _one_drawn_per_pair(key, negatives.astype(jnp.float32), distances, positives, max_positives)


def distance_weighted(
    key: Key,
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    dimensions: int,
    minimum: float = 0.5,
    maximum: float = 1.4,
    max_positives: int | None = None,
) -> Triplets:
    """For every anchor–positive pair, one negative drawn with weight 1 / q(d_an) (Wu 2017, arXiv:1706.07567).

    q(d) ∝ dⁿ⁻² (1 − d²/4)^((n−3)/2) is how often two random unit vectors of n = ``dimensions`` lie d apart, so that
    distances, not images, are drawn evenly: log w = (2 − n) ln d − (n − 3)/2 · ln(1 − d²/4). Distances are Euclidean
    between unit vectors; those below ``minimum`` count as ``minimum``, negatives with d ≥ ``maximum`` are left out.

    A pair whose negatives are all left out has weight 0. So it has in PyTorch Metric Learning 2.9; Wu's code draws
    from the whole batch instead, positives included. Both scale weights by the largest of the whole batch, also where
    that belongs to no admissible negative, and lose the anchors that underflow beside it (log w reaches 184 at n = 256,
    and more beyond ``maximum``): here every anchor is scaled by its own largest.
    """
    if not 0 < minimum < maximum:
        raise UserError(
            f"config.miner.distance_weighted.minimum: {minimum!r} found with maximum={maximum!r}; "
            "write 0 < minimum < maximum"
        )
    d = jnp.clip(distances.astype(jnp.float32), minimum, 2)
    apart = jnp.maximum(1 - d * d / 4, jnp.finfo(jnp.float32).eps)
    log_weights = (2 - dimensions) * jnp.log(d) - (dimensions - 3) / 2 * jnp.log(apart)
    admissible = negatives & (distances < maximum)
    largest = jnp.max(log_weights, axis=1, keepdims=True, where=admissible, initial=-jnp.inf)
    weights = jnp.where(admissible, jnp.exp(log_weights - largest), 0)
    return _one_drawn_per_pair(key, weights, distances, positives, max_positives)


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


def next_positive(
    remaining: Bool[Array, "a c"],
) -> tuple[Int[Array, " a"], Bool[Array, " a"], Bool[Array, "a c"]]:
    """The first remaining positive of each anchor, whether there is one, and the positives that remain after it."""
    first, found = _first(remaining)
    return first, found, remaining & (jnp.arange(remaining.shape[1]) != first[:, None])


def _one_per_pair(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    max_positives: int | None,
    choose: Callable[[Array, Any], tuple[Array, Array]],
    numbers: Float[Array, "s a"] | None = None,
) -> Triplets:
    """Walks the positives of all anchors at once, the j-th of each together, in O(a c) memory.

    ``choose(d_ap [a, 1], numbers[j])`` gives the negative of each anchor, and whether there is one.
    """
    a, c = distances.shape

    def one_slot(remaining: Array, number: Any) -> tuple[Array, tuple[Array, Array, Array]]:
        positive, valid, remaining = next_positive(remaining)
        negative, found = choose(jnp.take_along_axis(distances, positive[:, None], axis=1), number)
        return remaining, (positive, negative, (valid & found).astype(distances.dtype))

    slots = _slots(max_positives, c)
    _, found = jax.lax.scan(one_slot, positives, numbers, length=slots)
    return Triplets(jnp.tile(jnp.arange(a), slots), *(x.ravel() for x in found))


def _one_drawn_per_pair(
    key: Key,
    weights: Float[Array, "a c"],
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    max_positives: int | None,
) -> Triplets:
    """For every pair, one candidate with probability proportional to its weight, by inverting the cumulative weights.

    One uniform number per pair is enough, where Gumbel noise takes one per pair and candidate; and a candidate of
    weight 0 leaves the draw as it was, wherever it stands. No draw where all weights are 0.
    """
    a, c = weights.shape
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(a)) if key.ndim == 0 else key
    draw = lambda key: jax.random.uniform(key, (_slots(max_positives, c),), jnp.float32)
    # Rounding lets a cumulative sum move, even down, at a candidate of weight 0: only the others can be drawn.
    cumulative = jnp.where(weights > 0, _cumulative(weights), 0)
    total = cumulative.max(axis=1)

    def choose(_: Array, number: Float[Array, " a"]) -> tuple[Array, Array]:
        return _first(cumulative > (number * total)[:, None])

    return _one_per_pair(distances, positives, max_positives, choose, jax.vmap(draw, out_axes=1)(keys))


def _cumulative(weights: Float[Array, "a c"]) -> Float[Array, "a c"]:
    """``cumsum`` along each row, faster on a CPU: within every 32 entries by a product with a triangle of ones."""
    a, c = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -c % 32))).reshape(a, -1, 32)
    inside = jnp.matmul(blocks, jnp.triu(jnp.ones((32, 32))), precision="highest")
    before = jnp.cumsum(inside[:, :, -1], axis=1) - inside[:, :, -1]
    return (inside + before[:, :, None]).reshape(a, -1)[:, :c]


def _slots(max_positives: int | None, candidates: int) -> int:
    return min(max_positives or candidates, candidates)


def _first(mask: Bool[Array, "a c"]) -> tuple[Int[Array, " a"], Bool[Array, " a"]]:
    """The index of the first True of each row, and whether there is one (0 where not): faster than ``argmax``.

    Float32 holds every index below 2²⁴, and on a CPU its maxima are faster than those of integers.
    """
    c = mask.shape[1]
    index = -jnp.max(jnp.where(mask, -jnp.arange(c, dtype=jnp.float32), -c), axis=1).astype(jnp.int32)
    return jnp.where(index < c, index, 0), index < c


def _nearest(distances: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> tuple[Int[Array, " a"], Bool[Array, " a"]]:
    """The candidate at the smallest distance under ``mask``, and whether there is one: much faster than ``argmin``.

    A distance that is NaN is taken rather than lost, so that a loss shows it.
    """
    # Not a minimum: compared with all distances, XLA would write that out [a, c] on a CPU.
    smallest = -jnp.max(jnp.where(mask, -distances, -jnp.inf), axis=1)
    return _first(mask & ~(distances > smallest[:, None]))


def _farthest(distances: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> tuple[Int[Array, " a"], Bool[Array, " a"]]:
    return _nearest(-distances, mask)


def _no_candidate(distances: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> tuple[Array, Array]:
    return _first(jnp.zeros_like(mask))


FALLBACKS = {"drop": _no_candidate, "hardest": _nearest, "easiest": _farthest}
MINERS: dict[str, Callable[..., Triplets]] = {
    "batch_hard": batch_hard,
    "semi_hard": semi_hard,
    "easy_semi_hard": easy_semi_hard,
    "hard_negatives": hard_negatives,
    "random_negatives": random_negatives,
    "distance_weighted": distance_weighted,
}
SELECTORS: dict[str, Callable[..., Array]] = {"batch_all": all_negatives, "all_semi_hard": all_semi_hard_negatives}
