"""Pooling: the last feature map of a network to one vector per image. A new pooling is a function and a table line."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgis.ranges import Count, Positive


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


def regional(x: Float[Array, "b h w c"], *, levels: Count = 3) -> Float[Array, "b c"]:
    """Regional maxima (R-MAC): the sum over square regions of m / ||m||_2, where m is the maximum in a region.

    Args:
      x: a feature map.
      levels: sizes of regions, see ``region_starts``; a map without a region at a level has none of it.

    Returns:
      One vector per image, which is not normalised again; a region without any positive or negative value adds nothing.

    Reference: Tolias, Sicre, Jégou: Particular object retrieval with integral max-pooling of CNN activations
    (arXiv:1511.05879); its whitening of regions is left out.
    """
    maxima = [
        x[:, top : top + side, left : left + side].max((1, 2))
        for side, tops, lefts in region_starts(x.shape[1], x.shape[2], levels)
        for top in tops
        for left in lefts
    ]
    return sum_normalised(tuple(maxima))


def region_starts(height: int, width: int, levels: int) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """(side, first rows, first columns) of the square regions of each level l = 1, 2, ...

    The side is 2 m / (l + 1), rounded down, for the shorter side m of the map. At level 1 there are as many regions
    along the longer side, 2 to 7, as make neighbours overlap by nearly 40 %, or one in a square map; each level has one
    more along both sides. Regions are spread evenly, their places rounded down.

    >>> region_starts(2, 3, 2)
    [(2, (0,), (0, 1)), (1, (0, 1), (0, 1, 2))]
    """
    short, long = sorted((height, width))
    overlaps = np.array([1 - (long - short) / (count - 1) / short for count in range(2, 8)])
    more = 0 if height == width else int(np.abs(overlaps - 0.4).argmin()) + 1
    found = []
    for level in range(1, levels + 1):
        side = 2 * short // (level + 1)
        counts = [level + (more if length > short else 0) for length in (height, width)]
        tops, lefts = (
            tuple(index * (length - side) // max(count - 1, 1) for index in range(count))
            for length, count in zip((height, width), counts, strict=True)
        )
        if side:
            found.append((side, tops, lefts))
    return found


def spatial(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Every position, unpooled, as the published experiment stores them."""
    return x


def only_place(x: Float[Array, "b 1 1 c"]) -> Float[Array, "b c"]:
    """The one vector that a network sums an image up in, such as the class token of a transformer."""
    return x[:, 0, 0]


POOLINGS: dict[str, Callable] = {
    "avg": average, "max": maximum, "gem": generalised_mean, "regional": regional, "spatial": spatial,
    "token": only_place,
}  # fmt: skip


def sum_normalised(scales: tuple[Float[Array, "b c"], ...]) -> Float[Array, "b c"]:
    """Features of several image sizes as one: the sum over sizes of x / ||x||_2.

    Args:
      scales: the features of the same images at each size; a zero vector adds nothing.

    Returns:
      The sums; they are not normalised again.
    """
    norms = [jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in scales]
    return jnp.sum(jnp.stack([x / norm for x, norm in zip(scales, norms, strict=True)]), axis=0)
