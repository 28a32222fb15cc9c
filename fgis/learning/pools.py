"""What a run draws its batches from: a table of its classes, or triplets drawn beforehand.

A pool is an array, or a record of arrays, of the same shape for all runs on the same images, so that the pools of
several runs can be stacked and mapped by ``vmap``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fgis.ranges import Count
from fgis.streams import Stream, stream_generator


class RunImages(NamedTuple):
    """The images of one run: ``rows`` says which of all ``labels`` it may see; the others are never looked at."""

    labels: Int[np.ndarray, " n"]  # any integers
    rows: Int[np.ndarray, " m"]  # in any order
    coarse: Int[np.ndarray, " n"] | None = None  # coarse labels, where there are such
    features: Callable[[Int[np.ndarray, " k"]], Any] | None = None  # rows -> prepared features, for pools by similarity
    pixels: tuple[int, ...] = ()  # sides of the copies of pixels that follow the features of a row


class ClassTable(NamedTuple):
    """The images of a run, class by class: classes and rows in ascending order, and all padding at the end."""

    rows: Int[Array, "... n"]  # of all images of the run, then -1
    starts: Int[Array, "... classes"]  # the place in ``rows`` of the first image of each class
    counts: Int[Array, "... classes"]  # images of each class; 0 for a padded one
    slots: Int[Array, "... members"]  # 0, 1, …: as many as the largest class of any run can have


def class_table(images: RunImages, seed: int = 0) -> ClassTable:
    """The table of the images of a run, as large as all labels together need.

    Args:
      images: the labels of all images, and the rows that the run may see.
      seed: not used; a table has nothing random.

    Returns:
      Rows [n], starts and counts [classes] and slots [members], where ``n`` is the number of labels, ``classes`` that
      of different labels and ``members`` the size of the largest class, all over all labels. A run without images has
      counts 0 everywhere.

    >>> table = class_table(RunImages(np.array([7, 7, 3, 3, 3]), np.array([1, 2, 4])))
    >>> table.rows.tolist(), table.starts.tolist(), table.counts.tolist()
    ([2, 4, 1, -1, -1], [0, 2], [2, 1])
    """
    del seed
    labels, rows = images.labels, np.sort(np.asarray(images.rows))
    everything, sizes = np.unique(labels, return_counts=True)
    _, index, counts = np.unique(labels[rows], return_inverse=True, return_counts=True)
    table = np.full(len(labels), -1, np.int32)
    table[: len(rows)] = rows[np.argsort(index, kind="stable")]
    padded, starts = np.zeros((2, len(everything)), np.int32)
    padded[: len(counts)] = counts
    starts[: len(counts)] = np.cumsum(counts) - counts
    return ClassTable(*map(jnp.asarray, (table, starts, padded, np.arange(sizes.max(initial=1), dtype=np.int32))))


def draw_published_triplets(images: RunImages, seed: int, *, triplets: Count = 1000) -> Int[np.ndarray, "t 3"]:
    """The published experiment's triplets, drawn once per run from the images that it may see.

    Two entries of the label *array* are drawn without replacement, so classes count by their images, and both entries
    may be of the same label. Anchor and positive are the first and the last image of the first label, the negative is
    the first image of the second.

    Args:
      images: the labels of all images, and the rows that the run may see (at least two).
      seed: of the run.
      triplets: how many are drawn.

    Returns:
      Rows (anchor, positive, negative), [triplets, 3].
    """
    labels, rows = images.labels, np.sort(np.asarray(images.rows))
    _, index = np.unique(labels[rows], return_inverse=True)
    first, last = (np.zeros(index.max() + 1, np.int32) for _ in range(2))
    first[index[::-1]], last[index] = rows[::-1], rows
    rng = stream_generator(seed, Stream.PUBLISHED_TRIPLETS)
    one = rng.integers(0, len(rows), triplets)
    other = (one + rng.integers(1, len(rows), triplets)) % len(rows)
    return np.stack([first[index[one]], last[index[one]], first[index[other]]], axis=1)
