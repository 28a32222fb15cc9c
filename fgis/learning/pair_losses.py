"""Losses that are no sum over triplets: they read one anchor's distances to all candidates at once.

``loss(distances [a, c], positives [a, c], negatives [a, c], *, ...) -> LossSum``. Every term belongs to one anchor, so
sums over anchors add up over devices; memory is O(a c), also under gradients. Distances of any float type are read as
float32, and those of a candidate that is neither positive nor negative are not read at all. S is 1 − d, the cosine of
the angle where ``d`` is the cosine distance. A set without a member contributes value 0 and gradient 0.

``PAIR_LOSSES`` take images as anchors, ``PROXY_LOSSES`` one learned vector per class, and ``GRADED_LOSSES`` a third
mask of candidates that must lie farther away than other negatives.
"""

import math
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fgis.base import LossSum, PairLoss
from fgis.learning.candidates import next_positive
from fgis.learning.masked import log_one_plus_sum_exp, log_sum_exp, mean_of_rows, read_distances, sum_kinds
from fgis.ranges import Finite, Positive, Range, require


def contrastive(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    *,
    positive_margin: Finite = 0.0,
    negative_margin: Finite = 0.5,
) -> LossSum:
    """Positive pairs: max(0, d − positive_margin). Negative pairs: max(0, negative_margin − d).

    (Hadsell 2006, without its square, as in Musgrave 2020, arXiv:2003.08505.)

    Args:
      distances: from anchors to candidates.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      positive_margin: in units of the distance.
      negative_margin: in units of the distance.

    Returns:
      Kinds [positive pairs, negative pairs]; a pair at its margin has loss 0. With reduction ``mean_active`` each kind
      is averaged over the pairs that still learn.
    """
    distances = read_distances(distances, positives | negatives)
    return sum_kinds(
        (jax.nn.relu(distances - positive_margin), positives), (jax.nn.relu(negative_margin - distances), negatives)
    )


def nt_xent(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    *,
    temperature: Positive = 0.1,
) -> LossSum:
    """Per positive pair: −log(e^(−d_ap/T) / (e^(−d_ap/T) + Σ over negatives n of e^(−d_an/T))).

    The other positives of the anchor stay out of the denominator. With the cosine distance this is the N-pair loss
    with a temperature (Sohn 2016; Chen 2020, arXiv:2002.05709).

    Args:
      distances: from anchors to candidates.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      temperature: T, in units of the distance.

    Returns:
      One kind; its terms are the positive pairs whose anchor has a negative.

    Raises:
      ValueError: ``temperature`` is not above 0.
    """
    require(nt_xent, temperature=temperature)
    distances = read_distances(distances, positives | negatives)
    # The same quotient as log(1 + Σ e^((d_ap − d_an)/T)): neither overflows nor loses a small loss to rounding.
    all_negatives = log_sum_exp(-distances / temperature, negatives)
    losses = jax.nn.softplus(distances / temperature + all_negatives[:, None])
    return sum_kinds((losses, positives & negatives.any(axis=1, keepdims=True)))


def sup_con(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    *,
    temperature: Positive = 0.1,
) -> LossSum:
    """Per anchor: −1/|P| Σ over positives p of log(e^(−d_ap/T) / Σ over all positives and negatives j of e^(−d_aj/T)).

    At least log|P|, reached where all positives are equally near and all negatives far (L_out of Khosla 2020,
    arXiv:2004.11362).

    Args:
      distances: from anchors to candidates.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      temperature: T, in units of the distance.

    Returns:
      One kind; its terms are the anchors with a positive and a negative: without a negative the loss would do nothing
      but make the positives equally near.

    Raises:
      ValueError: ``temperature`` is not above 0.
    """
    require(sup_con, temperature=temperature)
    others = positives | negatives
    logits = -read_distances(distances, others) / temperature
    losses = log_sum_exp(logits, others) - mean_of_rows(logits, positives)
    return sum_kinds((losses, positives.any(axis=1) & negatives.any(axis=1)))


def multi_similarity(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    *,
    positive_scale: Positive = 2.0,
    negative_scale: Positive = 50.0,
    threshold: Finite = 0.5,
    epsilon: Annotated[float, Range(0)] | None = 0.1,
) -> LossSum:
    """Per anchor: 1/α log(1 + Σ over positives of e^(−α(S − λ))) + 1/β log(1 + Σ over negatives of e^(β(S − λ))).

    Before that, without gradient, only the pairs that compete are kept: positives with S − epsilon < the largest S of a
    negative, and negatives with S + epsilon > the smallest S of a positive; ties are dropped, and so is everything
    where one side is empty (Wang 2019, arXiv:1904.06627).

    Args:
      distances: from anchors to candidates.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      positive_scale: α.
      negative_scale: β.
      threshold: λ, a similarity.
      epsilon: a similarity; None or infinite keeps all pairs, and then one side may stand alone.

    Returns:
      One kind; its terms are the anchors with a positive or a negative, counted before that selection.

    Raises:
      ValueError: a scale is not above 0.
    """
    require(multi_similarity, positive_scale=positive_scale, negative_scale=negative_scale)
    anchors = (positives | negatives).any(axis=1)
    distances = read_distances(distances, positives | negatives)
    if epsilon is not None and not math.isinf(epsilon):
        nearest_negative = jnp.min(distances, axis=1, keepdims=True, where=negatives, initial=jnp.inf)
        farthest_positive = jnp.max(distances, axis=1, keepdims=True, where=positives, initial=-jnp.inf)
        positives = positives & (distances + epsilon > nearest_negative)
        negatives = negatives & (distances - epsilon < farthest_positive)
    above = 1 - distances - threshold
    from_positives = log_one_plus_sum_exp(-positive_scale * above, positives) / positive_scale
    from_negatives = log_one_plus_sum_exp(negative_scale * above, negatives) / negative_scale
    return sum_kinds((from_positives + from_negatives, anchors))


def smooth_ap(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    *,
    temperature: Positive = 0.01,
) -> LossSum:
    """Per anchor: 1 − 1/|P| Σ over positives p of rank(p among positives) / rank(p among all candidates).

    The rank of p is 1 + Σ over the others j of sigmoid((d_ap − d_aj)/T): as the temperature goes to 0, the loss goes to
    1 − average precision, and a tie counts as half a rank. The anchor is no candidate of its own; PyTorch Metric
    Learning and the authors' code count it as its own first positive (Brown 2020, arXiv:2007.12163).

    Args:
      distances: from anchors to candidates.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      temperature: T, in units of the distance.

    Returns:
      One kind; its terms are the anchors with a positive and a negative.

    Raises:
      ValueError: ``temperature`` is not above 0.
    """
    require(smooth_ap, temperature=temperature)
    distances = read_distances(distances, positives | negatives)
    missed = _missed_precision(temperature)(distances, positives, negatives)
    terms = positives.any(axis=1) & negatives.any(axis=1)
    return sum_kinds((missed / jnp.maximum(jnp.sum(positives, axis=1), 1), terms))


def _missed_precision(temperature: float) -> Callable[[Array, Array, Array], Float[Array, " a"]]:
    """Σ over positives p of 1 − rank(p among positives) / rank(p among all), per anchor.

    Takes the j-th positives of all anchors together, for as long as any anchor has one left, and gathers the gradient
    in the same loop: O(a c) memory, and no work for positives that are not there.
    """

    def value_and_gradient(distances: Array, positives: Array, negatives: Array) -> tuple[Array, Array]:
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
        return value_and_gradient(distances, positives, negatives)[0]

    def backward(gradient: Array, cotangent: Array) -> tuple[Array, None, None]:
        return cotangent[:, None] * gradient, None, None

    total.defvjp(value_and_gradient, backward)
    return total


def proxy_anchor(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    *,
    margin: Finite = 0.1,
    scale: Positive = 32.0,
) -> LossSum:
    """Per proxy: log(1 + Σ over positives of e^(−s (S − margin))) and log(1 + Σ over negatives of e^(s (S + margin))).

    The anchors are the proxies, one learned vector per class; the candidates are the batch, positive where they are of
    that class (Kim 2020, arXiv:2003.13911).

    Args:
      distances: cosine distances from proxies to candidates.
      positives: which candidates are of the class of each proxy.
      negatives: which candidates are of another class.
      margin: a similarity.
      scale: s.

    Returns:
      Kinds [pull, push]: the first is averaged over the proxies with a positive in the batch, the second over all
      proxies (that have a candidate: an empty batch has no term).

    Raises:
      ValueError: ``scale`` is not above 0.
    """
    require(proxy_anchor, scale=scale)
    distances = read_distances(distances, positives | negatives)
    pull = log_one_plus_sum_exp(-scale * (1 - distances - margin), positives)
    push = log_one_plus_sum_exp(scale * (1 - distances + margin), negatives)
    return sum_kinds((pull, positives.any(axis=1)), (push, (positives | negatives).any(axis=1)))


def opposites(
    distances: Float[Array, "a c"],
    positives: Bool[Array, "a c"],
    negatives: Bool[Array, "a c"],
    opposite: Bool[Array, "a c"],
    *,
    margin: Finite = 0.3,
    opposite_margin: Finite = 0.6,
) -> LossSum:
    """Positives: d. Other negatives: max(0, margin − d). Opposites: max(0, opposite_margin − d).

    The loss that "Building a Reverse Image Search Engine" names as the next step, without a formula; this one is ours.

    Args:
      distances: cosine distances from anchors to candidates: a margin of 1 is a right angle.
      positives: which candidates are positives of each anchor.
      negatives: which candidates are negatives of each anchor.
      opposite: which negatives must be far, not merely different; where it marks no negative it is ignored.
      margin: in units of the distance.
      opposite_margin: in units of the distance, above ``margin``.

    Returns:
      Kinds [positive pairs, other negative pairs, opposite pairs], each averaged by itself, so that rare opposites
      weigh as much as frequent negatives.

    Raises:
      ValueError: ``opposite_margin`` is not above ``margin``.
    """
    if opposite_margin <= margin:
        raise ValueError(
            f"opposite_margin: {opposite_margin!r} found with margin={margin!r}; write a larger one, since an opposite "
            "has to lie farther away than what merely does not match"
        )
    distances = read_distances(distances, positives | negatives)
    return sum_kinds(
        (distances, positives),
        (jax.nn.relu(margin - distances), negatives & ~opposite),
        (jax.nn.relu(opposite_margin - distances), negatives & opposite),
    )


PAIR_LOSSES: dict[str, PairLoss] = {
    "contrastive": contrastive,
    "nt_xent": nt_xent,
    "sup_con": sup_con,
    "multi_similarity": multi_similarity,
    "smooth_ap": smooth_ap,
}
PROXY_LOSSES: dict[str, PairLoss] = {"proxy_anchor": proxy_anchor}
GRADED_LOSSES: dict[str, PairLoss] = {"opposites": opposites}
