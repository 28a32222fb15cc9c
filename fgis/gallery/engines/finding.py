"""An engine as the search of a gallery: what it finds, as rows of the gallery."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from fgis.base import Neighbours
from fgis.errors import UserError
from fgis.gallery.engines import Engine
from fgis.gallery.search import Find


def make_finder(engine: Engine, image_ids: Sequence[str], name: str) -> Find:
    """A function that searches an engine which holds the images of a gallery.

    Args:
      engine: what ``--mode=export`` filled.
      image_ids: [n] of the gallery, ascending: of equally near images the first id is the lowest row.
      name: of the engine, for messages.

    Returns:
      A function (embedded query [1, d], k, filter or None) -> rows and distances [1, k], nearest first; fewer where
      fewer pass the filter.

    Raises:
      UserError: the engine holds another number of images; when called, also where it finds one that the gallery does
        not have.
    """
    row_of = {image_id: row for row, image_id in enumerate(image_ids)}
    if (held := engine.count()) != len(row_of):
        raise UserError(
            f"{name}: holds {held} images and the gallery {len(row_of)}; bring it up to date by --mode=export"
        )

    def find(query: Float[np.ndarray, "1 d"], k: int, where: Mapping[str, Sequence[str]] | None) -> Neighbours:
        hits = engine.search(query[0], k, where)
        unknown = next((hit.image_id for hit in hits if hit.image_id not in row_of), None)
        if unknown is not None:
            raise UserError(f"{name}: holds {unknown!r}, which the gallery does not; export the gallery again")
        rows = np.array([[row_of[hit.image_id] for hit in hits]], np.int64)
        return Neighbours(rows, np.array([[hit.distance for hit in hits]], np.float32))

    return find
