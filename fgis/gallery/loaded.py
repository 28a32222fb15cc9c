"""A gallery that was indexed, in memory and ready to be searched: what commands and the page work with.

``fgis.experiment.galleries.load_gallery`` makes one from a folder that ``--mode=index`` wrote.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from fgis.gallery.search import SearchGallery
from fgis.gallery.store import ImageRecord
from fgis.retrieval.rerank import Rerank

FEATURES = "features"  # the name of the features as they are, among heads


def no_rerank(name: str) -> Rerank | None:
    """The nearest-first order, whatever the name."""
    return None


class LoadedGallery(NamedTuple):
    """The images of a gallery; row ``i`` of ``search``, ``records`` and ``search.labels`` is the same image."""

    search: SearchGallery  # ranked by the embeddings of ``head``, judged by features
    records: Sequence[ImageRecord]  # by image id
    label_names: tuple[str, ...]  # of label 0, 1, ...; an image without a label has one of its own, whose name is ""
    describe: Callable[[Image.Image], np.ndarray]  # an upright RGB picture -> its features [1, ...], not yet prepared
    thumbnail: Callable[[str], bytes]  # image id -> WebP, the longer side at most 320; KeyError of an unknown id
    find_picture: Callable[[str], Image.Image | None]  # image id -> the whole picture; None where it is gone or damaged
    made: str  # what was indexed and by which network, in words
    make_rerank: Callable[[str], Rerank | None] = no_rerank  # name -> re-ranking; None of "none" and ""
    head: str = FEATURES  # what ``search`` is ranked by: a key of ``heads``
    heads: Mapping[str, Callable[[], SearchGallery]] = {}  # by name: the same images, embedded when first asked for

    def search_by(self, head: str) -> SearchGallery:
        """The gallery ranked by a head; that of ``search`` for its own name."""
        return self.search if head == self.head else self.heads[head]()
