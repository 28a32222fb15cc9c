"""``explore.html``: embeddings as points on a plane, in one page that needs no other file.

Numbers are little-endian arrays in base64: coordinates in 65,536 steps, rows of neighbours and tiles in 16 bits.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fgis.base import Neighbours
from fgis.report.fonts import visible
from fgis.report.map_atlas import COLUMNS, Atlas
from fgis.report.pages import render_template

MOST = 20_000  # images of a page: what a browser draws at once, and what a row of 16 bits can name
NONE = 65_535  # in place of a row or a tile, where there is none
STEPS = 65_535  # of a coordinate
NEIGHBOURS = 8  # of each image that the page can show


class MapView(NamedTuple):
    """One embedding of the images of a map."""

    name: str  # in a few words, such as "frozen features"
    note: str  # a sentence about it; may be empty
    layouts: Mapping[str, Float[np.ndarray, "n 2"]]  # by name: "PCA", "t-SNE"
    neighbours: Neighbours  # of each image, itself left out: rows [n, k] among the n, -1 where there is none
    unseen: Bool[np.ndarray, " n"] | None = None  # images of objects that the head was not trained on


class MapImages(NamedTuple):
    """The images of a map: row ``i`` of every array describes the same one."""

    image_ids: Sequence[str]
    labels: Int[np.ndarray, " n"]  # indices of ``label_names``; -1 where an image has no label
    label_names: Sequence[str]
    atlas: Atlas


def map_html(images: MapImages, views: Sequence[MapView], *, title: str, notes: Sequence[str], distance: str) -> str:
    """The page of one map.

    Args:
      images: what the points show.
      views: at least one; the first two are shown side by side.
      title: what the images are.
      notes: sentences about the whole, such as that it is a sample.
      distance: what neighbours were found by, in words.

    Returns:
      A self-contained page; its bytes depend on the arguments alone.

    Raises:
      ValueError: no image, or more than ``MOST``.
    """
    count = len(images.image_ids)
    if not 1 <= count <= MOST:
        raise ValueError(f"images: {count} found; a map shows 1 to {MOST} of them")
    return render_template(
        "map.html", data=_data(images, views), title=title, count=count, notes=notes, distance=distance
    )


def _data(images: MapImages, views: Sequence[MapView]) -> dict[str, Any]:
    """What the script of the page reads."""
    atlas = images.atlas
    return {
        "names": [visible(str(image_id)) for image_id in images.image_ids],
        "labels": _packed(np.where(images.labels < 0, NONE, images.labels), "<u2"),
        "labelNames": [visible(name) for name in images.label_names],
        "atlas": {
            "side": atlas.side,
            "columns": COLUMNS,
            "sheets": atlas.sheets,
            "tiles": _packed(np.where(atlas.tiles < 0, NONE, atlas.tiles), "<u2"),
            "sizes": _packed(atlas.sizes, "u1"),
        },
        "views": [_view(view) for view in views],
    }


def _view(view: MapView) -> dict[str, Any]:
    rows, distances = view.neighbours.rows, view.neighbours.distances
    return {
        "name": view.name,
        "note": view.note,
        "layouts": [{"name": name, "points": _packed(fit_square(xy), "<u2")} for name, xy in view.layouts.items()],
        "depth": rows.shape[1],
        "rows": _packed(np.where(rows < 0, NONE, rows), "<u2"),
        "distances": _packed(np.where(rows < 0, 0, distances), "<f4"),
        "unseen": "" if view.unseen is None else _packed(view.unseen, "u1"),
    }


def fit_square(points: Float[np.ndarray, "n 2"]) -> Int[np.ndarray, "n 2"]:
    """Coordinates in whole steps from 0 to ``STEPS``, both axes by one scale, the shorter one in the middle.

    >>> fit_square(np.array([[-1.0, 0.0], [1.0, 1.0]])).tolist()
    [[0, 16384], [65535, 49151]]
    """
    low, high = points.min(axis=0), points.max(axis=0)
    widest = float((high - low).max())
    scaled = (points - (low + high) / 2) / (widest if widest > 0 else 1)
    return np.rint(scaled * STEPS + STEPS / 2).clip(0, STEPS).astype(np.int64)


def _packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()
