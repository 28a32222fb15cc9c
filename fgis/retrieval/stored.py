"""Embeddings that are larger than memory: read, or computed, in blocks whenever they are searched.

``searchable`` and ``search_in`` take them and arrays alike, and give the same neighbours, bit for bit.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from fgis.base import Neighbours
from fgis.retrieval.prepare import Gallery, prepare_gallery
from fgis.retrieval.search import search, search_stream

BLOCK_NUMBERS = 1 << 24  # of a gallery that are in memory at a time, 64 MiB: a few arrays of that size are
SHALLOW = 64  # lists up to this depth cost about the same
DEEPER = 4  # how much deeper each further group of lists may be than the one before
ENTRIES = 1 << 22  # of lists that are in memory at a time: some ten arrays of that size are


class StoredVectors:
    """Embeddings [n, d] that are never in memory as a whole; rows of them are read as those of an array.

    Args:
      shape: (n, d).
      read: rows [m] -> [m, d], float32; called for blocks of consecutive rows and for rows in any order.

    >>> StoredVectors((1000, 2), lambda rows: np.stack([rows, -rows], axis=1) / 2)[np.array([7, 3])].tolist()
    [[3.5, -3.5], [1.5, -1.5]]
    """

    ndim = 2

    def __init__(
        self, shape: tuple[int, int], read: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, "m d"]]
    ) -> None:
        """Reads nothing yet; see the class."""
        self.shape, self.read = shape, read

    def __len__(self) -> int:
        """How many rows there are."""
        return self.shape[0]

    def __getitem__(self, rows: Int[np.ndarray, " m"] | slice) -> Float[np.ndarray, "m d"]:
        """The rows of a slice or of an array of integers, read now."""
        return self.read(np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows in memory, for what cannot do with less."""
        whole = np.empty(self.shape, np.float32)
        for rows in row_blocks(len(self), self.shape[1]):
            whole[rows] = self[rows]
        return whole if dtype is None else whole.astype(dtype, copy=False)


class StoredGallery(NamedTuple):
    """A gallery that is made ready block by block, whenever it is searched."""

    vectors: StoredVectors
    rows: Int[np.ndarray, " g"]  # of ``vectors``, in the gallery
    distance: str

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, embeddings) of consecutive parts."""
        for here in row_blocks(len(self.rows), self.vectors.shape[1]):
            yield self.rows[here], self.vectors[self.rows[here]]


def row_blocks(count: int, width: int) -> Iterator[slice]:
    """Slices of consecutive rows, none of which holds more than about ``BLOCK_NUMBERS`` numbers."""
    step = max(1, BLOCK_NUMBERS // max(1, width))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


def searchable(
    embeddings: Float[Array | np.ndarray, "n d"] | StoredVectors, rows: Int[np.ndarray, " g"], distance: str
) -> Gallery | StoredGallery:
    """Some rows of embeddings as a gallery for ``search_in``.

    Args:
      embeddings: of all images, [n, d].
      rows: those in the gallery, [g].
      distance: a key of ``fgis.distances.DISTANCES``.

    Raises:
      ValueError: as ``prepare_gallery``.
    """
    if isinstance(embeddings, StoredVectors):
        return StoredGallery(embeddings, rows, distance)
    embeddings = np.asarray(embeddings)
    whole = len(rows) == len(embeddings) and np.array_equal(rows, np.arange(len(rows)))
    return prepare_gallery(embeddings if whole else embeddings[rows], distance, rows)


def search_in(
    queries: Float[np.ndarray, "q d"], gallery: Gallery | StoredGallery, k: int,
    query_rows: Int[np.ndarray, " q"] | None = None,
) -> Neighbours:  # fmt: skip
    """``search`` in either kind of gallery; ``query_rows`` as there."""
    if isinstance(gallery, Gallery):
        return search(queries, gallery, k, query_rows=query_rows)
    return search_stream(queries, gallery.blocks(), k, gallery.distance, query_rows)


def gallery_parts(gallery: Gallery | StoredGallery) -> Iterator[Gallery]:
    """The parts of a gallery that are in memory at a time, ready to be searched: the whole, or its blocks in turn."""
    if isinstance(gallery, Gallery):
        yield gallery
        return
    for rows, embeddings in gallery.blocks():
        yield prepare_gallery(embeddings, gallery.distance, rows)


def depth_groups(depths: Int[np.ndarray, " q"], width: int) -> Iterator[tuple[Int[np.ndarray, " m"], int]]:
    """Queries that are searched together, so that a list is not much deeper than its query needs.

    Depths up to ``SHALLOW`` form one group, and each further one reaches ``DEEPER`` times as deep; a group is divided
    where its lists or its queries would take too much memory.

    Args:
      depths: how many neighbours each query needs, [q].
      width: numbers of an embedding.

    Yields:
      (indices of queries, ascending, the depth that the deepest of them needs); every query once.

    >>> [(places.tolist(), depth) for places, depth in depth_groups(np.array([5, 900, 7, 600]), 8)]
    [([0, 2], 7), ([1, 3], 900)]
    """
    above, upto = -1, SHALLOW
    while above < depths.max(initial=-1):
        here = np.flatnonzero((depths > above) & (depths <= upto))
        above, upto = upto, upto * DEEPER
        deepest = int(depths[here].max(initial=1))
        size = max(1, min(ENTRIES // deepest, 4 * BLOCK_NUMBERS // width))
        for start in range(0, len(here), size):
            yield here[start : start + size], deepest
