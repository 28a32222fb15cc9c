"""Small copies of an image that are kept beside its features: what a head with shallow paths sees of the pixels.

In a feature file each side is a dataset ``pixels_SIDE`` [n, side, side, 3] uint8. In memory they follow the features of
a row, flattened and divided by 255, in the order of the sides.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

LARGE = 224  # pixels of the square that maxima are taken of


def shrink_image(image: Image.Image, side: int, how: str = "mean") -> UInt8[np.ndarray, "s s 3"]:
    """An image squashed to a square.

    Args:
      image: RGB.
      side: of the copy, in pixels.
      how: "mean", by a filter that sees every pixel; or "max", the maxima of cells of the image at ``LARGE`` pixels,
        each of ``LARGE // side`` pixels.

    Returns:
      The copy.

    Raises:
      ValueError: "max" of a side that does not divide ``LARGE``.
    """
    if how == "mean":
        return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    require_divisor(side)
    cell = LARGE // side
    large = np.asarray(image.resize((LARGE, LARGE), Image.Resampling.BILINEAR))
    return large.reshape(side, cell, side, cell, 3).max(axis=(1, 3))


def require_divisor(side: int) -> None:
    """Raises ``ValueError`` where ``LARGE`` pixels do not divide into ``side`` cells to take maxima of."""
    if LARGE % side:
        raise ValueError(f"pixels: maxima of cells need sides that divide {LARGE}, and {side} does not; write 56 or 28")


def pixel_count(sides: Sequence[int]) -> int:
    """How many numbers the copies of one image are.

    >>> pixel_count((57, 29))
    12270
    """
    return sum(3 * side**2 for side in sides)


def dataset_name(side: int) -> str:
    """What a feature file calls the copies of a side."""
    return f"pixels_{side}"


def join_pixels(
    features: Float[Array | np.ndarray, "b f"], copies: Sequence[UInt8[Array | np.ndarray, "b _ _ 3"]]
) -> Float[Array, "b g"]:
    """Features and copies in one row."""
    flat = [jnp.asarray(copy, jnp.float32).reshape(len(copy), -1) / 255 for copy in copies]
    return jnp.concatenate([jnp.asarray(features, jnp.float32), *flat], axis=1)


def split_pixels(tail: UInt8[np.ndarray, "n p"], sides: Sequence[int]) -> dict[str, UInt8[np.ndarray, "n _ _ 3"]]:
    """The datasets of copies that lie one after the other in rows."""
    ends = np.cumsum([3 * side**2 for side in sides])
    parts = np.split(tail, ends[:-1], axis=1)
    return {dataset_name(side): part.reshape(-1, side, side, 3) for side, part in zip(sides, parts, strict=True)}
