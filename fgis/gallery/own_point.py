"""When the object of a query counts as known, judged by the images of a gallery alone, a block of them at a time."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Float, Int

from fgis.distances import pairwise_distances
from fgis.gallery.search import SAMPLED
from fgis.retrieval.operating_point import OperatingPoint, choose_operating_point

_block_distances = jax.jit(pairwise_distances, static_argnums=2)
MISSED = 0.05  # of the gallery's own images: the share whose nearest other image lies beyond the limit
USEFUL = (
    0.1  # the least share of images that are recognised by their label; else labels are years or places, not objects
)

Blocks = Callable[[], Iterable[tuple[int, Float[np.ndarray, "b f"]]]]  # (first row, prepared features) of each block


def number_labels_of(labels: list[str]) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """A number for each label; every image without a label ("") gets one of its own, whose name is "".

    >>> number_labels_of(["pear", "", "apple", "pear", ""])
    (array([1, 2, 0, 1, 3]), ('apple', 'pear', '', ''))
    """
    names = sorted(set(labels) - {""})
    place = {name: number for number, name in enumerate(names)}
    free = iter(range(len(names), len(names) + len(labels)))
    numbers = np.array([place[label] if label else next(free) for label in labels], np.int64)
    return numbers, (*names, *[""] * labels.count(""))


def own_operating_point(
    blocks: Blocks,
    labels: Int[np.ndarray, " n"],
    contents: Int[np.ndarray, " n"],
    distance: str,
    seed: int,
) -> OperatingPoint | None:
    """The operating point of a gallery from the distances between its own images.

    With labels, as ``fgis.gallery.search.compute_operating_point`` chooses it. Where labels do not say what images
    show, every image counts as an object of its own: the threshold is the distance within which at most a tenth of the
    images have another one, and the limit the distance within which all but ``MISSED`` of them have one. That is so
    where no two images share a label, where all do, and where fewer than ``USEFUL`` of the images would be recognised.

    Args:
      blocks: called for each pass over the prepared features of all images.
      labels: the object of each image, [n].
      contents: [n]; images of the same content (copies of a file) are not compared with each other.
      distance: what features are compared by.
      seed: which ``SAMPLED`` images are queries, where there are more.

    Returns:
      The operating point; detection and missed are NaN where every image is an object. None of fewer than two contents.
    """
    names, sizes = np.unique(labels, return_counts=True)
    if len(np.unique(contents)) < 2:
        return None
    queries = np.sort(np.random.default_rng(seed).permutation(len(labels))[:SAMPLED])
    vectors = np.concatenate([block[queries[_within(queries, start, block)] - start] for start, block in blocks()])
    if len(names) > 1 and sizes.max() > 1:
        other, unknown, mates = _nearest(blocks, vectors, queries, labels, contents, distance)
        point = choose_operating_point(np.where(mates, other, np.nan)[None], unknown[None], labels[queries])
        if point is not None and point.detection >= USEFUL:  # not of NaN: no label has two images that differ
            return point
    _, unknown, _ = _nearest(blocks, vectors, queries, contents, contents, distance)
    point = choose_operating_point(np.full((1, len(queries)), np.nan), unknown[None], contents[queries])
    if point is None:
        return None
    limit = float(np.quantile(unknown, 1 - MISSED, method="higher"))
    return point._replace(limit=max(point.threshold, limit))


def _nearest(
    blocks: Blocks, vectors: np.ndarray, queries: np.ndarray, objects: np.ndarray, contents: np.ndarray, distance: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances of queries to the nearest other image and to that of another object; who has one of its own object."""
    other, unknown = np.full((2, len(queries)), np.inf)
    mates = np.zeros(len(queries), bool)
    for start, block in blocks():
        here = slice(start, start + len(block))
        distances = np.array(_block_distances(vectors, block, distance), np.float64)
        distances[contents[queries][:, None] == contents[here]] = np.inf
        alike = objects[queries][:, None] == objects[here]
        mates |= (alike & np.isfinite(distances)).any(axis=1)
        other = np.minimum(other, distances.min(axis=1))
        unknown = np.minimum(unknown, np.where(alike, np.inf, distances).min(axis=1))
    return other, unknown, mates


def _within(rows: Int[np.ndarray, " q"], start: int, block: np.ndarray) -> np.ndarray:
    return (rows >= start) & (rows < start + len(block))
