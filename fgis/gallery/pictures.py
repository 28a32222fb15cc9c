"""Pictures to search with: a file, or the image files of a folder; upright, and cropped where that is wanted."""

import re
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from PIL import Image

from fgis.errors import UserError
from fgis.features.images import SUFFIXES, read_image
from fgis.gallery.scan import MORE_SUFFIXES, register_plugins

Box = tuple[int, int, int, int]  # x, y, width and height in pixels of the upright picture


class QueryPicture(NamedTuple):
    """A picture to search with, upright and cropped."""

    path: Path
    image: Image.Image
    milliseconds: float  # of decoding


def parse_crop(text: str) -> Box | None:
    """The box of ``x,y,w,h``; None of an empty text.

    Raises:
      ValueError: the text is no such box, or the box is empty.

    >>> parse_crop("10, 20, 60, 40")
    (10, 20, 60, 40)
    """
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*", text)
    if not match or not int(match[3]) or not int(match[4]):
        raise ValueError("not x,y,w,h in whole pixels, w and h above 0; such as 120,80,200,150")
    x, y, width, height = map(int, match.groups())
    return x, y, width, height


def picture_paths(place: str | Path) -> list[Path]:
    """The file ``place``, or the image files of the folder ``place`` by name; hidden files are left out.

    Raises:
      UserError: the folder holds no image file.
    """
    place = Path(place).expanduser()
    if not place.is_dir():
        return [place]
    files = (path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    paths = sorted(path for path in files if path.suffix.lower() in (*SUFFIXES, *MORE_SUFFIXES))
    if not paths:
        raise UserError(f"{place}: no image in this folder; name one with files such as photo.jpg")
    return paths


def read_picture(path: Path, crop: Box | None = None) -> QueryPicture:
    """One picture, upright and cropped.

    Raises:
      UserError: the file is missing or cannot be decoded, or the box does not lie within the picture.
    """
    began = perf_counter()
    if not path.exists():
        raise UserError(f"{path}: no such file; name a picture, or a folder of pictures")
    register_plugins()
    try:
        image = read_image(path)
    except Exception as error:  # decoders raise whatever the damage leads them to
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"{path}: cannot be decoded ({reason}); repair it, or name another picture") from error
    if crop:
        x, y, width, height = crop
        if x + width > image.width or y + height > image.height:
            raise UserError(
                f"{path}: the box {x},{y},{width},{height} is not within the picture, which is {image.width} x "
                f"{image.height} pixels upright; write x,y,w,h inside it"
            )
        image = image.crop((x, y, x + width, y + height))
    return QueryPicture(path, image, 1000 * (perf_counter() - began))


def usable_pictures(paths: list[Path], crop: Box | None, left_out: list[UserError]) -> Iterator[QueryPicture]:
    """The pictures that can be used, one at a time; why others cannot be is appended to ``left_out``."""
    for path in paths:
        try:
            yield read_picture(path, crop)
        except UserError as error:
            left_out.append(error)
