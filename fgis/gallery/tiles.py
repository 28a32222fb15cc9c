"""Windows of large pictures: where they lie, and how those that a search finds become boxes on the pictures."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgis.base import Neighbours
from fgis.gallery.pictures import Box

MOST_WINDOWS = 4096  # of one picture
ALIKE = 0.75  # of a window that another one shares, so that their box is around both
DEEPER = 8  # windows that are looked at for each result: those that overlap become one


class Tiles(NamedTuple):
    """How pictures are divided."""

    size: int  # pixels, the side of a window
    stride: int  # pixels from one window to the next


class Windows(NamedTuple):
    """The rows of a gallery that has windows: first all whole pictures, then the windows of each."""

    image_of: Int[np.ndarray, " n"]  # the row of the picture
    boxes: Int[np.ndarray, "n 4"]  # x, y, width, height; zeros of a whole picture


class Found(NamedTuple):
    """What a search found, windows that overlap being one result."""

    rows: Int[np.ndarray, " k"]  # of the picture or window that is nearest
    images: Int[np.ndarray, " k"]  # the row of the picture
    distances: Float[np.ndarray, " k"]
    boxes: Sequence[Box | None]  # None of a whole picture


def parse_tiles(text: str) -> Tiles | None:
    """``SIZE,STRIDE`` in pixels; None of an empty text.

    Raises:
      ValueError: the text is none, or windows would leave gaps or lie closer than an eighth of their side.

    >>> parse_tiles("256,128")
    Tiles(size=256, stride=128)
    """
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d{1,5})\s*,\s*(\d{1,5})\s*", text)
    size, stride = map(int, match.groups()) if match else (0, 0)
    if not (size >= 32 and size <= 8 * stride <= 8 * size):
        raise ValueError(
            f"{text!r} found; write SIZE,STRIDE in pixels, such as 256,128: a SIZE of at least 32, a STRIDE from an "
            "eighth of it to all of it"
        )
    return Tiles(size, stride)


def window_boxes(width: int, height: int, tiles: Tiles) -> list[Box]:
    """The windows of a picture, row by row; the last of each row and column ends at the border.

    Args:
      width: of the upright picture, in pixels.
      height: likewise.
      tiles: how it is divided; a side that is shorter than a window is one window long.

    Returns:
      Boxes; none where the whole picture is no larger than a window.

    Raises:
      ValueError: there would be more than ``MOST_WINDOWS``.

    >>> window_boxes(250, 80, Tiles(100, 100))
    [(0, 0, 100, 80), (100, 0, 100, 80), (150, 0, 100, 80)]
    """
    if width <= tiles.size and height <= tiles.size:
        return []
    xs, ys = (_starts(side, tiles) for side in (width, height))
    if len(xs) * len(ys) > MOST_WINDOWS:
        raise ValueError(
            f"{len(xs) * len(ys)} windows in {width} x {height} pixels, more than {MOST_WINDOWS}; take larger --tiles"
        )
    return [(x, y, min(tiles.size, width), min(tiles.size, height)) for y in ys for x in xs]


def merge_windows(windows: Windows | None, neighbours: Neighbours, k: int) -> Found:
    """The first ``k`` results of one query, of windows that overlap the nearest one.

    From the nearest on, each window begins a result, or joins the first result of its picture whose nearest window it
    overlaps; the box of a result is the smallest around its nearest window and those that share at least
    ``ALIKE`` of it: more would make boxes much larger than objects. A whole picture that comes after a window of
    it says nothing new and is left out, and so are the windows that come after their whole picture.

    Args:
      windows: of the gallery; None where it has none: then every neighbour is a result.
      neighbours: of one query, nearest first; rows below 0 are left out.
      k: how many.

    Returns:
      At most ``k`` results, nearest first.
    """
    rows, distances = neighbours.rows[0], np.asarray(neighbours.distances[0])
    if windows is None:
        there = rows[:k] >= 0
        return Found(rows[:k][there], rows[:k][there], distances[:k][there], [None] * int(there.sum()))
    chosen: list[int] = []
    unions: list[Box | None] = []
    of_image: dict[int, list[int]] = {}  # the results of each picture
    for place in np.flatnonzero(rows >= 0).tolist():
        row = int(rows[place])
        image, box = int(windows.image_of[row]), _box(windows, row)
        earlier = of_image.setdefault(image, [])
        joined = next((one for one in earlier if _shared(_box(windows, int(rows[chosen[one]])), box)), None)
        if joined is not None:
            nearest = _box(windows, int(rows[chosen[joined]]))
            if box and nearest and _shared(nearest, box) >= ALIKE:
                unions[joined] = _union(unions[joined], box)
        elif len(chosen) < k:
            earlier.append(len(chosen))
            chosen.append(place)
            unions.append(box)
    kept = np.array(chosen, np.int64)
    return Found(rows[kept], windows.image_of[rows[kept]], distances[kept], unions)


def _starts(side: int, tiles: Tiles) -> list[int]:
    last = max(0, side - tiles.size)
    return sorted({*range(0, last + 1, tiles.stride), last})


def _box(windows: Windows, row: int) -> Box | None:
    x, y, width, height = windows.boxes[row].tolist()
    return (x, y, width, height) if width else None


def _shared(one: Box | None, other: Box | None) -> float:
    """The share of the first window that lies in the second; 1 where either is a whole picture."""
    if one is None or other is None:
        return 1.0
    (x, y, width, height), (a, b, c, d) = one, other
    across, down = min(x + width, a + c) - max(x, a), min(y + height, b + d) - max(y, b)
    return max(0, across) * max(0, down) / (width * height)


def _union(one: Box | None, other: Box) -> Box | None:
    """The smallest box around both."""
    if one is None:
        return one
    x, y = min(one[0], other[0]), min(one[1], other[1])
    return (x, y, max(one[0] + one[2], other[0] + other[2]) - x, max(one[1] + one[3], other[1] + other[3]) - y)
