"""Thumbnails of many images in few files: square tiles, a thousand to a sheet, as WebP in data URIs."""

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

COLUMNS = 32  # tiles in a row of a sheet, and rows of a full one
THREADS = 2  # that decode
QUALITY = 70  # of WebP: 48 pixels take about 450 bytes
SMALL_SIDE, LARGE_SIDE = 48, 96  # pixels of a tile
FEW = 2000  # images, at most, that have large tiles

ReadPicture = Callable[[int], Image.Image | None]  # row -> picture, None where there is none


class Atlas(NamedTuple):
    """The thumbnails of images: tile ``t`` lies at column t % COLUMNS and row t // COLUMNS of sheet t // COLUMNS²."""

    sheets: list[str]  # data URIs
    side: int  # of a tile
    tiles: Int[np.ndarray, " n"]  # the tile of each image; -1 where it has no picture
    sizes: UInt8[np.ndarray, "n 2"]  # width and height of each thumbnail, which lies in the upper left of its tile


def tile_side(count: int) -> int:
    """The side of the tiles of ``count`` images: large ones where the page stays small."""
    return LARGE_SIDE if count <= FEW else SMALL_SIDE


def make_atlas(
    read: ReadPicture, count: int, side: int = SMALL_SIDE, progress: Callable[[int], object] = lambda done: None
) -> Atlas:
    """The atlas of ``count`` images.

    Args:
      read: gives each picture; called by several threads.
      count: how many images there are.
      side: of a tile in pixels; pictures keep their proportions.
      progress: told how many images are done.

    Returns:
      The atlas; without sheets where no picture is at hand. The same pictures give the same bytes.
    """
    tiles, sizes = np.full(count, -1), np.zeros((count, 2), np.uint8)
    sheets: list[str] = []
    waiting: list[Image.Image] = []
    made = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for row, small in enumerate(pool.map(lambda row: _make_thumbnail(read(row), side), range(count))):
            progress(row + 1)
            if small is None:
                continue
            tiles[row], sizes[row] = made, small.size
            waiting.append(small)
            made += 1
            if len(waiting) == COLUMNS**2:
                sheets.append(_make_sheet(waiting, side))
                waiting = []
    if waiting:
        sheets.append(_make_sheet(waiting, side))
    return Atlas(sheets, side, tiles, sizes)


def _make_thumbnail(picture: Image.Image | None, side: int) -> Image.Image | None:
    """A thumbnail whose longer side is ``side``."""
    if picture is None:
        return None
    scale = side / max(picture.size)
    width, height = (max(1, round(scale * length)) for length in picture.size)
    return picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _make_sheet(thumbnails: list[Image.Image], side: int) -> str:
    rows = -(-len(thumbnails) // COLUMNS)
    sheet = Image.new("RGB", (side * min(COLUMNS, len(thumbnails)), side * rows), (128, 128, 128))
    for tile, small in enumerate(thumbnails):
        sheet.paste(small, (tile % COLUMNS * side, tile // COLUMNS * side))
    buffer = io.BytesIO()
    sheet.save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
