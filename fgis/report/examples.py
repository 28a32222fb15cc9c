"""Queries with their nearest neighbours: thumbnails where the images are at hand, names otherwise."""

import base64
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from fgis.base import Neighbours

ReadImage = Callable[[int], Image.Image | None]  # row -> image, None where there is none


class Tile(NamedTuple):
    """One image of a panel."""

    image_id: str
    label: int
    label_name: str  # "" where the label has no name
    rank: int  # from 1; 0 is the query
    relevant: bool  # it has the query's label
    counted: bool  # its rank is among the first R, with R the number of relevant images
    distance: float  # to the query
    picture: str  # data URI, "" where the image is not at hand


class QueryPanel(NamedTuple):
    """A query and its nearest neighbours, itself left out."""

    query: Tile
    neighbours: list[Tile]


class Examples(NamedTuple):
    """The worst and the best queries of one evaluation."""

    evaluation: str  # as in report.json
    metric: str  # that the queries were ordered by
    worst: Sequence[QueryPanel]
    best: Sequence[QueryPanel]


def name_label(label: int, label_names: Sequence[str] | None) -> str:
    """The name of ``label``, "" where there is none.

    >>> [name_label(label, ("apple", "pear")) for label in (1, 2)], name_label(1, None)
    (['pear', ''], '')
    """
    return label_names[label] if label_names is not None and 0 <= label < len(label_names) else ""


def show_label(label: int, label_name: str) -> str:
    """What people see of a label: its name, or its number where it has no name; a dash where there is no label (-1).

    >>> show_label(3, "pear"), show_label(3, ""), show_label(-1, "")
    ('pear', 'label 3', '–')
    """
    return label_name or (f"label {label}" if label >= 0 else "–")


def query_panel(
    query: int,
    neighbours: Neighbours,
    labels: Int[np.ndarray, " n"],
    image_ids: np.ndarray,
    label_names: Sequence[str] | None = None,
    read_image: ReadImage | None = None,
) -> QueryPanel:
    """The panel of the image in row ``query``.

    Args:
      query: row of the query.
      neighbours: of this one query, [1, k], the query itself left out; rows of -1 are not shown.
      labels: of all images; images with the query's label are relevant.
      image_ids: of all images, [n] str.
      label_names: the name of label 0, 1, ..., where labels have names.
      read_image: gives the thumbnails; None, or an image that it has not, leaves the name alone.
    """
    relevant_images = int((labels == labels[query]).sum()) - 1

    def tile(row: int, rank: int, distance: float) -> Tile:
        image, label = read_image(row) if read_image else None, int(labels[row])
        return Tile(
            image_id=str(image_ids[row]),
            label=label,
            label_name=name_label(label, label_names),
            rank=rank,
            relevant=bool(label == labels[query]),
            counted=rank <= relevant_images,
            distance=distance,
            picture=thumbnail(image) if image else "",
        )

    ranked = zip(neighbours.rows[0].tolist(), neighbours.distances[0].tolist(), strict=True)
    tiles = [tile(row, rank, distance) for rank, (row, distance) in enumerate(ranked, 1) if row >= 0]
    return QueryPanel(tile(query, 0, 0.0), tiles)


def worst_and_best(
    values: Float[np.ndarray, "s n"],
    frozen: Float[np.ndarray, " n"],
    complete: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    count: int,
) -> tuple[list[int], list[int]]:
    """The rows of the queries with the lowest and with the highest mean over seeds, at most one of an object in each.

    A query is either among the worst or among the best candidates, never among both: the best are complete, the worst
    are not. Ties go to those that lost, or gained, the most against the frozen features, then to the lowest row.

    Args:
      values: of a metric per seed and image; NaN where an image is no query or has no relevant image.
      frozen: the same of the frozen features.
      complete: whether the first R neighbours of an image are its R relevant images, in the rankings of all seeds.
      labels: of all images; images of one object have one label.
      count: at most this many of each.

    Returns:
      (worst, best); an empty list where every query, or no query, is complete.
    """
    scored = np.isfinite(values)
    mean = np.where(scored, values, 0).sum(axis=0) / np.maximum(scored.sum(axis=0), 1)
    is_query = scored.any(axis=0)

    def one_per_object(order: Int[np.ndarray, " n"], candidates: Bool[np.ndarray, " n"]) -> list[int]:
        order = order[candidates[order]]
        _, first = np.unique(labels[order], return_index=True)
        return order[np.sort(first)][:count].tolist()

    worst = one_per_object(np.lexsort((mean - frozen, mean)), is_query & ~complete)
    return worst, one_per_object(np.lexsort((frozen - mean, -mean)), is_query & complete)


def thumbnail(image: Image.Image, side: int = 96) -> str:
    """A JPEG of an image, at most ``side`` pixels wide and high, as a data URI."""
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
