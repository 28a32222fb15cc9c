"""Queries and their answers as pictures: thumbnails where the images are at hand, names otherwise."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from fgis.base import Neighbours

ReadImage = Callable[[int], Image.Image | None]  # row -> picture, if there is one


class Tile(NamedTuple):
    """One image of a gallery: its name, whether it bears the query's label, its distance, and a data URI or nothing."""

    name: str
    hit: bool
    distance: float
    picture: str


class Answers(NamedTuple):
    """A query and its nearest images, the query itself left out."""

    query: Tile
    tiles: list[Tile]


def answers(
    query_rows: Sequence[int],
    neighbours: Neighbours,
    labels: Int[np.ndarray, " n"],
    image_ids: np.ndarray,
    read_image: ReadImage | None,
) -> list[Answers]:
    """The queries and their ranked neighbours, ready to be drawn."""

    def tile(row: int, hit: bool, distance: float) -> Tile:
        picture = read_image(row) if read_image else None
        return Tile(str(image_ids[row]), hit, distance, thumbnail(picture) if picture else "")

    shown = []
    for query, rows, distances in zip(query_rows, neighbours.rows, neighbours.distances, strict=True):
        found = [(row, d) for row, d in zip(rows.tolist(), distances.tolist(), strict=True) if row >= 0]
        tiles = [tile(row, bool(labels[row] == labels[query]), d) for row, d in found]
        shown.append(Answers(tile(query, True, 0.0), tiles))
    return shown


def worst_and_best(
    values: Float[np.ndarray, "s n"], frozen: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"], count: int
) -> tuple[list[int], list[int]]:
    """The queries with the lowest and with the highest mean over seeds, at most one of an object.

    Ties go to those that lost, or gained, the most against the frozen features, then to the lowest row. Images
    without a value are neither.
    """
    asked = np.isfinite(values)
    mean = np.where(asked, values, 0).sum(axis=0) / np.maximum(asked.sum(axis=0), 1)
    worst = np.lexsort((mean - frozen, mean))
    best = np.lexsort((frozen - mean, -mean))

    def one_per_object(order: Int[np.ndarray, " n"]) -> list[int]:
        order = order[asked.any(axis=0)[order]]
        _, first = np.unique(labels[order], return_index=True)
        return order[np.sort(first)][:count].tolist()

    return one_per_object(worst), one_per_object(best)


def thumbnail(image: Image.Image, side: int = 96) -> str:
    """A small JPEG of an image as a data URI."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
