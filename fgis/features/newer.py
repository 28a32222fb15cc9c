"""Images that were replaced after they were described, as far as their files tell."""

import os
from contextlib import suppress

from fgis.features.collection import Collection


def finished_words(path: str, collection: Collection, images: int) -> str:
    """What is said of a finished feature file; it names an image whose file was modified later, if any.

    No pixel is compared: a copy of a folder may be newer than the features of its images as well. Images that are no
    files of their own are never newer.
    """
    words = f"already finished, {images} images; remove the file to extract again"
    if collection.find is None:
        return words
    newer, written = [], os.stat(path).st_mtime_ns
    for row, image_id in enumerate(collection.image_ids):
        with suppress(OSError):  # gone since
            if os.stat(collection.find(row)).st_mtime_ns > written:
                newer.append(str(image_id))
    return f"{words} if images were replaced: {len(newer)} are newer than it, {newer[0]!r} first" if newer else words
