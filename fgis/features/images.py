"""Image files to arrays: decoding by Pillow, and fitting an image of any size to the input of a network."""

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
FILL = (124, 116, 104)  # the mean colour of ImageNet: close to 0 after any preprocessing


def read_image(source: str | Path | io.BytesIO) -> Image.Image:
    """Decode one image file as ``to_rgb`` does.

    Args:
      source: the path of the file, or its bytes.

    Returns:
      The first frame, upright, RGB with 8 bits a channel.

    Raises:
      Exception: whatever Pillow raises for a missing or damaged file, and what ``to_rgb`` raises.
    """
    if isinstance(source, str | Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise OSError("no regular file")  # opening a pipe would wait for its other end
    with Image.open(source) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode the first frame of an opened image, upright, as RGB with 8 bits a channel.

    EXIF orientation is applied, 16-bit greys are divided by 257, transparency is composed on white.

    Args:
      image: an image as Pillow opens it, of any mode and not yet decoded.

    Returns:
      An RGB image that no longer needs its file.

    Raises:
      ValueError: the pixels are floating-point numbers, whose range is not known.
      Exception: whatever Pillow raises for a damaged file.
    """
    ImageOps.exif_transpose(image, in_place=True)  # a copy would cost as much time as decoding
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.clip(np.round(pixels / 257), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()  # before the file is closed
    return image


def squash(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to exactly ``size`` (height, width) by bilinear filtering, whatever the aspect ratio."""
    return image.resize(size[::-1], Image.Resampling.BILINEAR)


def pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the whole image into ``size`` (height, width), keep its aspect ratio, fill the rest with ``FILL``."""
    scale = min(size[0] / image.height, size[1] / image.width)
    height, width = (max(1, min(s, round(x * scale))) for s, x in zip(size, (image.height, image.width), strict=True))
    canvas = Image.new("RGB", size[::-1], FILL)
    canvas.paste(squash(image, (height, width)), ((size[1] - width) // 2, (size[0] - height) // 2))
    return canvas


def crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut out the largest centred part with the aspect ratio of ``size`` (height, width), and resize it to that."""
    scale = max(size[0] / image.height, size[1] / image.width)
    # One side is kept whole: divided and multiplied, it may come out longer by a rounding, which Pillow refuses.
    height, width = min(size[0] / scale, image.height), min(size[1] / scale, image.width)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize(size[::-1], Image.Resampling.BILINEAR, (left, top, left + width, top + height))


FITS: dict[str, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {"squash": squash, "pad": pad, "crop": crop}
