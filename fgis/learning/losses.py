"""Losses per triplet, not reduced, and the reductions that come after them.

A loss maps the distances of t triplets, d_ap and d_an, to t values. A reduction maps the sums over a (global) batch,
``LossSum(total, valid, active)``, to the scalar that is minimised.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fgis.types import LossSum


def triplet_loss(d_ap: Float[Array, " t"], d_an: Float[Array, " t"], margin: float = 0.2) -> Float[Array, " t"]:
    """max(0, margin + d_ap − d_an): the triplet hinge. ``margin`` is in units of the distance."""
    return jax.nn.relu(margin + d_ap - d_an)


def soft_margin(d_ap: Float[Array, " t"], d_an: Float[Array, " t"], temperature: float = 1.0) -> Float[Array, " t"]:
    """softplus((d_ap − d_an) / temperature): the hinge without a margin to choose (Hermans 2017).

    Never 0, so every valid triplet counts as active.
    """
    return jax.nn.softplus((d_ap - d_an) / temperature)


def difference(d_ap: Float[Array, " t"], d_an: Float[Array, " t"]) -> Float[Array, " t"]:
    """d_ap − d_an: the published loss before its hinge, which ``hinge_of_mean`` applies to the batch mean."""
    return d_ap - d_an


def mean(sums: LossSum) -> Float[Array, ""]:
    """total / valid: the mean over valid triplets; 0 where there is none."""
    return sums.total / jnp.where(sums.valid > 0, sums.valid, 1.0)


def mean_active(sums: LossSum) -> Float[Array, ""]:
    """total / active: the mean over triplets with a loss above 0; 0 where there is none."""
    return sums.total / jnp.where(sums.active > 0, sums.active, 1.0)


def hinge_of_mean(sums: LossSum, margin: float = 1.0) -> Float[Array, ""]:
    """max(0, margin + total / valid): the published experiment's hinge, applied after the batch mean.

    Easy triplets pay for hard ones, and the whole batch stops learning at once; 0 where there is no triplet.
    """
    return jnp.where(sums.valid > 0, jax.nn.relu(margin + mean(sums)), 0.0)


LOSSES = {"triplet": triplet_loss, "soft_margin": soft_margin, "difference": difference}
REDUCTIONS = {"mean": mean, "mean_active": mean_active, "hinge_of_mean": hinge_of_mean}
