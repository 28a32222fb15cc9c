"""Pooling: the last feature map of a network to one vector per image. A new pooling is a function and a table line."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from fgis.ranges import Positive


def average(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Mean over positions."""
    return x.mean((1, 2))


def maximum(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Maximum over positions."""
    return x.max((1, 2))


def generalised_mean(x: Float[Array, "b h w c"], *, p: Positive = 3.0) -> Float[Array, "b c"]:
    """Generalised mean over positions (GeM): mean(max(x, 1e-6)^p)^(1/p).

    Args:
      x: a feature map; values below 1e-6 count as 1e-6.
      p: the exponent; 1 gives the mean, infinity would give the maximum.

    Returns:
      One vector per image, finite for finite ``x``.

    Reference: Radenović, Tolias, Chum: Fine-tuning CNN image retrieval with no human annotation (arXiv:1711.02512).
    """
    x = jnp.maximum(x, 1e-6)
    # Divided by the maximum first: cubes of features above 1e12 or below 1e-13 would leave float32.
    top = x.max((1, 2), keepdims=True)
    return top[:, 0, 0] * ((x / top) ** p).mean((1, 2)) ** (1 / p)


def spatial(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Every position, unpooled, as the published experiment stores them."""
    return x


POOLINGS: dict[str, Callable] = {"avg": average, "max": maximum, "gem": generalised_mean, "spatial": spatial}


def sum_normalised(scales: tuple[Float[Array, "b c"], ...]) -> Float[Array, "b c"]:
    """Features of several image sizes as one: the sum over sizes of x / ||x||_2.

    Args:
      scales: the features of the same images at each size; a zero vector adds nothing.

    Returns:
      The sums; they are not normalised again.
    """
    norms = [jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in scales]
    return jnp.sum(jnp.stack([x / norm for x, norm in zip(scales, norms, strict=True)]), axis=0)
