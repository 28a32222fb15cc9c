"""Sums and means of [a, c] arrays over the candidates that a mask marks, safe under gradients where it marks none."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fgis.base import LossSum
from fgis.distances import wide_type


def read_distances(distances: Float[Array, "a c"], candidates: Bool[Array, "a c"]) -> Float[Array, "a c"]:
    """Float32 (or float64), and 0 without a gradient where nothing may be read."""
    return jnp.where(candidates, distances, 0).astype(wide_type(distances))


def sum_kinds(*kinds: tuple[Float[Array, "..."], Bool[Array, "..."]]) -> LossSum:
    """One (losses, which of them are terms) per kind; the fields are scalars where there is one kind."""

    def each(of: tuple[Float[Array, "..."], Bool[Array, "..."]]) -> LossSum:
        losses, terms = of
        total = jnp.sum(jnp.where(terms, losses, 0.0))
        count, active = jnp.sum(terms), jnp.sum(terms & (losses > 0))  # exact: integers
        return LossSum(total, count.astype(total.dtype), active.astype(total.dtype))

    if len(kinds) == 1:
        return each(kinds[0])
    return LossSum(*(jnp.stack(field) for field in zip(*map(each, kinds), strict=True)))


def mean_of_rows(x: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> Float[Array, " a"]:
    """The mean of each row over ``mask``; 0 where it is empty."""
    return jnp.sum(jnp.where(mask, x, 0.0), axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)


def log_sum_exp(x: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> Float[Array, " a"]:
    """log Σ e^x of each row over ``mask``; 0 with a zero gradient where it is empty, instead of −∞ and NaN."""
    some = mask.any(axis=1)
    largest = jnp.max(x, axis=1, where=mask, initial=-jnp.inf)
    largest = jax.lax.stop_gradient(jnp.where(some, largest, 0.0))
    total = jnp.sum(jnp.exp(jnp.where(mask, x - largest[:, None], -jnp.inf)), axis=1)
    return jnp.where(some, largest + jnp.log(jnp.where(some, total, 1.0)), 0.0)


def log_one_plus_sum_exp(x: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> Float[Array, " a"]:
    """log(1 + Σ e^x) of each row over ``mask``, exact where the sum is tiny; 0 where it is empty."""
    return jnp.where(mask.any(axis=1), jax.nn.softplus(log_sum_exp(x, mask)), 0.0)
