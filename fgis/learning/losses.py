"""Losses per triplet, not reduced, and the reductions that come after them.

A loss maps the distances of t triplets, d_ap and d_an, to t values; or to [t, 2], where it has one value for the pair
(anchor, positive) and one for (anchor, negative), each counted on its own. A reduction maps the sums over a (global)
batch, ``LossSum(total, valid, active)``, to the scalar that is minimised.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fgis.base import LossSum
from fgis.ranges import Finite, NonNegative, Positive, require


def triplet_loss(d_ap: Float[Array, " t"], d_an: Float[Array, " t"], *, margin: Finite = 0.2) -> Float[Array, " t"]:
    """max(0, margin + d_ap − d_an): the triplet hinge (Schroff 2015, arXiv:1503.03832).

    Args:
      d_ap: from anchors to positives.
      d_an: from anchors to negatives.
      margin: in units of the distance.

    Returns:
      A value of at least 0 per triplet; NaN where a distance is.

    >>> triplet_loss(jnp.array([0.5, 0.5]), jnp.array([0.625, 0.875]), margin=0.25).tolist()
    [0.125, 0.0]
    """
    return jax.nn.relu(margin + d_ap - d_an)


def soft_margin(
    d_ap: Float[Array, " t"], d_an: Float[Array, " t"], *, temperature: Positive = 1.0
) -> Float[Array, " t"]:
    """softplus((d_ap − d_an) / temperature): the hinge without a margin to choose (Hermans 2017, arXiv:1703.07737).

    Args:
      d_ap: from anchors to positives.
      d_an: from anchors to negatives.
      temperature: in units of the distance; a smaller one is nearer to a hinge.

    Returns:
      A value per triplet, never 0, so that every valid triplet counts as active.

    Raises:
      ValueError: ``temperature`` is not above 0.
    """
    require(soft_margin, temperature=temperature)
    return jax.nn.softplus((d_ap - d_an) / temperature)


def difference(d_ap: Float[Array, " t"], d_an: Float[Array, " t"]) -> Float[Array, " t"]:
    """d_ap − d_an: the published loss before its hinge, which ``hinge_of_mean`` applies to the batch mean.

    Args:
      d_ap: from anchors to positives.
      d_an: from anchors to negatives.

    Returns:
      A value of either sign per triplet.
    """
    return d_ap - d_an


def margin_loss(
    d_ap: Float[Array, " t"], d_an: Float[Array, " t"], beta: Float[Array, ""], *, margin: Finite = 0.2
) -> Float[Array, "t 2"]:
    """[max(0, margin + d_ap − beta), max(0, margin + beta − d_an)]: positives inside beta, negatives outside it.

    The published loss divides by the number of pairs of either sort with a loss above 0: sum both columns and take
    ``mean_active`` (Wu 2017, arXiv:1706.07567).

    Args:
      d_ap: from anchors to positives.
      d_an: from anchors to negatives.
      beta: a learned scalar (it starts at 1.2, on Euclidean distances between unit vectors).
      margin: in units of the distance.

    Returns:
      Two values of at least 0 per triplet. A pair beyond its margin has loss 0 and no gradient, neither for its
      distance nor for ``beta``.
    """
    return jnp.stack([jax.nn.relu(margin + d_ap - beta), jax.nn.relu(margin + beta - d_an)], axis=-1)


def selectively_contrastive(
    d_ap: Float[Array, " t"],
    d_an: Float[Array, " t"],
    *,
    weight: NonNegative = 1.0,
    temperature: Positive = 0.1,
) -> Float[Array, " t"]:
    """weight · S_an where S_an > S_ap, −log(e^(S_ap/T) / (e^(S_ap/T) + e^(S_an/T))) elsewhere; S = 1 − cosine distance.

    Where the negative is nearer than the positive, the loss pushes the negative away with the constant gradient
    −weight and leaves the positive alone: pulling both at once is what makes hard negatives collapse. A tie takes the
    second branch, which is ``soft_margin`` (Xuan 2020, arXiv:2007.12749; the authors' code also takes the first branch
    wherever S_an > 0.8, which the paper does not say).

    Args:
      d_ap: cosine distances from anchors to positives.
      d_an: cosine distances from anchors to negatives.
      weight: of the first branch.
      temperature: T, of the second branch.

    Returns:
      A value per triplet. The first branch is below 0 where the negative is more than a right angle away and the
      positive farther still: it is pushed like any other, but does not count as active.

    Raises:
      ValueError: ``temperature`` is not above 0.
    """
    return jnp.where(d_an < d_ap, weight * (1 - d_an), soft_margin(d_ap, d_an, temperature=temperature))


def _mean_of_each_kind(total: Float[Array, "..."], count: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(count > 0, total / jnp.where(count > 0, count, 1.0), 0.0))


def mean(sums: LossSum) -> Float[Array, ""]:
    """Σ over kinds of total / valid: the mean over valid terms; a kind without one adds 0."""
    return _mean_of_each_kind(sums.total, sums.valid)


def mean_active(sums: LossSum) -> Float[Array, ""]:
    """Σ over kinds of total / active: the mean over terms with a loss above 0; a kind without one adds 0."""
    return _mean_of_each_kind(sums.total, sums.active)


def hinge_of_mean(sums: LossSum, *, margin: Finite = 1.0) -> Float[Array, ""]:
    """max(0, margin + ``mean``): the published experiment's hinge, applied after the batch mean.

    Easy triplets make up for hard ones, and the whole batch stops learning at once.

    Args:
      sums: over the batch.
      margin: in units of the loss.

    Returns:
      A scalar of at least 0; 0 where there is no valid term.
    """
    return jnp.where((sums.valid > 0).any(), jax.nn.relu(margin + mean(sums)), 0.0)


LOSSES: dict[str, Callable[..., Array]] = {
    "triplet": triplet_loss,
    "soft_margin": soft_margin,
    "difference": difference,
    "margin": margin_loss,
    "selectively_contrastive": selectively_contrastive,
}
REDUCTIONS: dict[str, Callable[..., Array]] = {
    "mean": mean,
    "mean_active": mean_active,
    "hinge_of_mean": hinge_of_mean,
}
