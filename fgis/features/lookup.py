"""Rows and pictures by image id."""

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from fgis.features.collection import Collection


def row_finder(image_ids: Sequence[str] | np.ndarray) -> Callable[[str], int | None]:
    """Look up rows by image id.

    An id that is not there as written is looked up in the other normalisation of Unicode: file systems and archives
    differ in whether they write ``é`` as one character or as ``e`` and an accent.

    Args:
      image_ids: [n] texts.

    Returns:
      A function from an image id to its row; None where there is none. Of several ids that differ in nothing but
      normalisation, one in yet another normalisation finds the first.

    >>> find = row_finder(["caf\\u00e9.jpg", "tea.jpg"])
    >>> find("tea.jpg"), find("cafe\\u0301.jpg"), find("milk.jpg")
    (1, 0, None)
    """
    rows = {str(image_id): row for row, image_id in enumerate(image_ids)}
    composed: dict[str, int] = {}
    for image_id, row in rows.items():
        composed.setdefault(unicodedata.normalize("NFC", image_id), row)
    return lambda image_id: rows.get(image_id, composed.get(unicodedata.normalize("NFC", image_id)))


def picture_finder(collection: Collection) -> Callable[[str], Image.Image | None]:
    """Look up pictures by image id, as ``row_finder`` looks up rows.

    Returns:
      A function from an image id to the whole decoded image; None where the id is unknown, or where the image can no
      longer be decoded.
    """
    find = row_finder(collection.image_ids)

    def picture(image_id: str) -> Image.Image | None:
        row = find(image_id)
        if row is None:
            return None
        try:
            return collection.read(row)
        except Exception:  # decoders raise whatever the damage leads them to
            return None

    return picture
