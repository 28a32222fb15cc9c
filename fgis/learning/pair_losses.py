"""Losses that are no sum over triplets: they read one anchor's distances to all candidates at once.

``loss(distances [a, c], positives [a, c], negatives [a, c], ...) -> LossSum``. Every term belongs to one anchor, so
sums over anchors add up over devices; memory is O(a c), also under gradients. Distances of any float type are read as
float32, and those of a candidate that is neither positive nor negative are not read at all. S is 1 − d, the cosine of
the angle where ``d`` is the cosine distance. A set without a member contributes value 0 and gradient 0.

``PAIR_LOSSES`` take images as anchors, ``PROXY_LOSSES`` one learned vector per class, and ``GRADED_LOSSES`` a third
mask of candidates that must lie farther away than other negatives.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fgis.base import LossSum, PairLoss
from fgis.errors import UserError
from fgis.learning.miners import next_positive


def contrastive(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    positive_margin: float = 0.0,
    negative_margin: float = 0.5,
) -> LossSum:
    """Positive pairs: max(0, d − positive_margin). Negative pairs: max(0, negative_margin − d).

    Kinds [positive pairs, negative pairs]; a pair at its margin has loss 0. With reduction ``mean_active`` each kind is
    averaged over the pairs that still learn. The margins are in units of the distance (Hadsell 2006, without its
    square, as in Musgrave 2020, arXiv:2003.08505).
    """
    distances = _read(distances, positives | negatives)
    return _sums(
        (jax.nn.relu(distances - positive_margin), positives), (jax.nn.relu(negative_margin - distances), negatives)
    )


def nt_xent(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    temperature: float = 0.1,
) -> LossSum:
    """Per positive pair: −log(e^(−d_ap/T) / (e^(−d_ap/T) + Σ over negatives n of e^(−d_an/T))).

    The other positives of the anchor stay out of the denominator. Terms are the positive pairs whose anchor has a
    negative. With the cosine distance this is the N-pair loss with a temperature (Sohn 2016; Chen 2020,
    arXiv:2002.05709).
    """
    distances = _read(distances, positives | negatives)
    # The same quotient as log(1 + Σ e^((d_ap − d_an)/T)): neither overflows nor loses a small loss to rounding.
    all_negatives = _log_sum_exp(-distances / temperature, negatives)
    losses = jax.nn.softplus(distances / temperature + all_negatives[:, None])
    return _sums((losses, positives & negatives.any(axis=1, keepdims=True)))


def sup_con(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    temperature: float = 0.1,
) -> LossSum:
    """Per anchor: −1/|P| Σ over positives p of log(e^(−d_ap/T) / Σ over all positives and negatives j of e^(−d_aj/T)).

    At least log|P|, reached where all positives are equally near and all negatives far. Terms are the anchors with a
    positive and a negative: without a negative it would do nothing but make the positives equally near (L_out of
    Khosla 2020, arXiv:2004.11362).
    """
    others = positives | negatives
    logits = -_read(distances, others) / temperature
    losses = _log_sum_exp(logits, others) - _mean(logits, positives)
    return _sums((losses, positives.any(axis=1) & negatives.any(axis=1)))


def multi_similarity(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    positive_scale: float = 2.0,
    negative_scale: float = 50.0,
    threshold: float = 0.5,
    epsilon: float | None = 0.1,
) -> LossSum:
    """Per anchor: 1/α log(1 + Σ over positives of e^(−α(S − λ))) + 1/β log(1 + Σ over negatives of e^(β(S − λ))).

    α, β and λ are ``positive_scale``, ``negative_scale`` and ``threshold``. Before that, without gradient, only the
    pairs that compete are kept: positives with S − epsilon < the largest S of a negative, and negatives with S +
    epsilon > the smallest S of a positive; ties are dropped, and so is everything where one side is empty. ``epsilon``
    None or infinite keeps all, and then one side may stand alone. Terms are the anchors with a positive or a negative,
    counted before that selection (Wang 2019, arXiv:1904.06627).
    """
    anchors = (positives | negatives).any(axis=1)
    distances = _read(distances, positives | negatives)
    if epsilon is not None and not math.isinf(epsilon):
        nearest_negative = jnp.min(distances, axis=1, keepdims=True, where=negatives, initial=jnp.inf)
        farthest_positive = jnp.max(distances, axis=1, keepdims=True, where=positives, initial=-jnp.inf)
        positives = positives & (distances + epsilon > nearest_negative)
        negatives = negatives & (distances - epsilon < farthest_positive)
    above = 1 - distances - threshold
    from_positives = _log_one_plus_sum_exp(-positive_scale * above, positives) / positive_scale
    from_negatives = _log_one_plus_sum_exp(negative_scale * above, negatives) / negative_scale
    return _sums((from_positives + from_negatives, anchors))


def smooth_ap(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    temperature: float = 0.01,
) -> LossSum:
    """Per anchor: 1 − 1/|P| Σ over positives p of rank(p among positives) / rank(p among all candidates).

    The rank of p is 1 + Σ over the others j of sigmoid((d_ap − d_aj)/T): as the temperature goes to 0, the loss goes to
    1 − average precision, and a tie counts as half a rank. Terms are the anchors with a positive and a negative. The
    anchor is no candidate of its own; PyTorch Metric Learning and the authors' code count it as its own first positive
    (Brown 2020, arXiv:2007.12163).
    """
    distances = _read(distances, positives | negatives)
    missed = _missed_precision(temperature)(distances, positives, negatives)
    terms = positives.any(axis=1) & negatives.any(axis=1)
    return _sums((missed / jnp.maximum(jnp.sum(positives, axis=1), 1), terms))


def _missed_precision(temperature: float) -> Callable[[Array, Array, Array], Float[Array, " a"]]:
    """Σ over positives p of 1 − rank(p among positives) / rank(p among all), per anchor.

    Walks the positives of all anchors at once, the j-th of each together, for as long as any anchor has one left, and
    gathers the gradient on the same walk: O(a c) memory, and no work for positives that are not there.
    """

    def walk(distances: Array, positives: Array, negatives: Array) -> tuple[Array, Array]:
        columns = jnp.arange(distances.shape[1])

        def one_positive(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            remaining, total, gradient = carry
            positive, found, remaining = next_positive(remaining)

            def missed(distances: Array) -> Array:
                d_ap = jnp.take_along_axis(distances, positive[:, None], axis=1)
                nearer = jax.nn.sigmoid((d_ap - distances) / temperature)
                negatives_above = jnp.sum(jnp.where(negatives, nearer, 0.0), axis=1)
                positives_above = jnp.sum(jnp.where(positives & (columns != positive[:, None]), nearer, 0.0), axis=1)
                return jnp.where(found, negatives_above / (1 + positives_above + negatives_above), 0.0)

            more, backward = jax.vjp(missed, distances)
            return remaining, total + more, gradient + backward(jnp.ones_like(more))[0]

        start = positives, jnp.zeros(len(distances)), jnp.zeros_like(distances)
        _, total, gradient = jax.lax.while_loop(lambda carry: carry[0].any(), one_positive, start)
        return total, gradient

    @jax.custom_vjp
    def total(distances: Array, positives: Array, negatives: Array) -> Array:
        return walk(distances, positives, negatives)[0]

    def backward(gradient: Array, cotangent: Array) -> tuple[Array, None, None]:
        return cotangent[:, None] * gradient, None, None

    total.defvjp(walk, backward)
    return total


def proxy_anchor(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    margin: float = 0.1,
    scale: float = 32.0,
) -> LossSum:
    """Per proxy: log(1 + Σ over positives of e^(−s (S − margin))) and log(1 + Σ over negatives of e^(s (S + margin))).

    s is ``scale``. The anchors are the proxies, one learned vector per class; the candidates are the batch, positive
    where they are of that class. Kinds [pull, push]: the first is averaged over the proxies with a positive in the
    batch, the second over all proxies (that have a candidate: an empty batch has no term). ``distances`` are cosine
    distances (Kim 2020, arXiv:2003.13911).
    """
    distances = _read(distances, positives | negatives)
    pull = _log_one_plus_sum_exp(-scale * (1 - distances - margin), positives)
    push = _log_one_plus_sum_exp(scale * (1 - distances + margin), negatives)
    return _sums((pull, positives.any(axis=1)), (push, (positives | negatives).any(axis=1)))


def opposites(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    opposites: Bool[Array, "a c"],
    margin: float = 0.3,
    opposite_margin: float = 0.6,
) -> LossSum:
    """Positives: d. Other negatives: max(0, margin − d). Opposites: max(0, opposite_margin − d).

    ``opposites`` marks the negatives that must be far, not merely different; where it marks no negative it is ignored.
    Kinds [positive pairs, other negative pairs, opposite pairs], each averaged by itself, so that rare opposites weigh
    as much as frequent negatives. ``distances`` are cosine distances: a margin of 1 is a right angle. The loss that
    "Building a Reverse Image Search Engine" names as the next step, without a formula; this one is ours.
    """
    if opposite_margin <= margin:
        raise UserError(
            f"config.loss.opposites.opposite_margin: {opposite_margin} is not above margin ({margin}); "
            "an opposite has to lie farther away than what merely does not match"
        )
    distances = _read(distances, positives | negatives)
    return _sums(
        (distances, positives),
        (jax.nn.relu(margin - distances), negatives & ~opposites),
        (jax.nn.relu(opposite_margin - distances), negatives & opposites),
    )


def _read(distances: Float[Array, "a c"], candidates: Bool[Array, "a c"]) -> Float[Array, "a c"]:
    """Float32, and 0 without a gradient where nothing may be read."""
    return jnp.where(candidates, distances, 0).astype(jnp.float32)


def _sums(*kinds: tuple[Float[Array, "..."], Bool[Array, "..."]]) -> LossSum:
    """One (losses, which of them are terms) per kind; the fields are scalars where there is one kind."""

    def each(of: tuple[Float[Array, "..."], Bool[Array, "..."]]) -> LossSum:
        losses, terms = of
        total = jnp.sum(jnp.where(terms, losses, 0.0))
        count, active = jnp.sum(terms), jnp.sum(terms & (losses > 0))  # exact: integers
        return LossSum(total, count.astype(jnp.float32), active.astype(jnp.float32))

    if len(kinds) == 1:
        return each(kinds[0])
    return LossSum(*(jnp.stack(field) for field in zip(*map(each, kinds), strict=True)))


def _mean(x: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> Float[Array, " a"]:
    """The mean of each row over ``mask``; 0 where it is empty."""
    return jnp.sum(jnp.where(mask, x, 0.0), axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)


def _log_sum_exp(x: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> Float[Array, " a"]:
    """log Σ e^x of each row over ``mask``; 0 with a zero gradient where it is empty, instead of −∞ and NaN."""
    some = mask.any(axis=1)
    largest = jnp.max(x, axis=1, where=mask, initial=-jnp.inf)
    largest = jax.lax.stop_gradient(jnp.where(some, largest, 0.0))
    total = jnp.sum(jnp.exp(jnp.where(mask, x - largest[:, None], -jnp.inf)), axis=1)
    return jnp.where(some, largest + jnp.log(jnp.where(some, total, 1.0)), 0.0)


def _log_one_plus_sum_exp(x: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> Float[Array, " a"]:
    """log(1 + Σ e^x) of each row over ``mask``, exact where the sum is tiny; 0 where it is empty."""
    return jnp.where(mask.any(axis=1), jax.nn.softplus(_log_sum_exp(x, mask)), 0.0)


PAIR_LOSSES: dict[str, PairLoss] = {
    "contrastive": contrastive,
    "nt_xent": nt_xent,
    "sup_con": sup_con,
    "multi_similarity": multi_similarity,
    "smooth_ap": smooth_ap,
}
PROXY_LOSSES: dict[str, PairLoss] = {"proxy_anchor": proxy_anchor}
GRADED_LOSSES: dict[str, PairLoss] = {"opposites": opposites}
