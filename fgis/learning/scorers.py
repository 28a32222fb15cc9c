"""VisNet's triplets (Shankar 2017, arXiv:1703.02344): basic scorers of similarity stand in for labels.

The paper ranks its catalogue for a query by several scorers, among them features of a network and a colour histogram. A
positive is one of the first images of a scorer, an in-class negative lies some ranks behind, and an out-of-class
negative is any other image.

Here a scorer is a matrix of unit vectors, and similarity is their dot product. The deep scorer takes the features of a
run as they are prepared; the colour scorer takes the largest copy of pixels that follows them, where there is one.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from fgis.learning.pools import RunImages
from fgis.ranges import Count, Share, require
from fgis.streams import Stream, stream_generator

BINS = (16, 4, 4)  # of hue, saturation and value
BLOCK = 1024  # images that are described together
CELLS = 2**22  # queries × images that are ranked together: 100 MB


class _Ranks(NamedTuple):
    """Where the images of a triplet lie in the rankings of its query."""

    positive_ranks: int
    negative_ranks: tuple[int, int]
    out_of_class: float


def draw_scored_triplets(
    images: RunImages,
    seed: int,
    *,
    triplets: Count = 8192,
    positive_ranks: Count = 10,
    negative_ranks: tuple[Count, ...] = (25, 50),
    out_of_class: Share = 0.5,
) -> Int[np.ndarray, "t 3"]:
    """Triplets (query, positive, negative), drawn once per run by the ranks of its images under basic scorers.

    query     any image of the run.
    positive  any image at ranks 1 … ``positive_ranks`` of any scorer: labels are not looked at.
    negative  with probability ``out_of_class`` any image behind rank b of all scorers, else any image at ranks
              a + 1 … b of any scorer that is no possible positive, where (a, b) are ``negative_ranks``.

    The other kind of negative is taken where there is none of one kind. A query has no rank, and of images that are
    equally similar the lower row goes first. The ranks suit sets of some thousand images, tens to a class.

    Args:
      images: the rows that the run may see and what fetches their features; their labels are not used.
      seed: of the run.
      triplets: how many are drawn.
      positive_ranks: the last rank of a positive.
      negative_ranks: (a, b), the ranks that in-class negatives lie behind and end at. b may lie behind all images: then
        every negative is in class.
      out_of_class: share of negatives from the rest of the run, where there is a choice.

    Returns:
      Rows [triplets, 3], int32.

    Raises:
      ValueError: ranks do not ascend, the run has so few images that a query may be without a negative, or ``images``
        has no features.
    """
    require(draw_scored_triplets, positive_ranks=positive_ranks, negative_ranks=negative_ranks)
    if len(negative_ranks) != 2 or not positive_ranks <= negative_ranks[0] < negative_ranks[1]:
        raise ValueError(
            f"negative_ranks: {tuple(negative_ranks)!r} found; write two ascending ranks, the first of at least "
            f"positive_ranks, which is {positive_ranks}"
        )
    first, last = negative_ranks
    rows = np.sort(np.asarray(images.rows))
    scorers = describe_by_scorers(images._replace(rows=rows))
    needed = len(scorers) * first + 2  # then one image at least lies behind rank a of every scorer
    if len(rows) < needed:
        raise ValueError(
            f"negative_ranks: {tuple(negative_ranks)!r} found, but {needed} images are needed for ranks behind {first} "
            f"(scorers: {len(scorers)}), and a run sees {len(rows)}; write lower ranks"
        )
    rng = stream_generator(seed, Stream.SCORED_TRIPLETS)
    queries = rng.integers(0, len(rows), triplets)
    ranks, step = _Ranks(positive_ranks, (first, last), out_of_class), max(CELLS // len(rows), 1)
    drawn = [
        _complete_by_rank(scorers, queries[start : start + step], ranks, rng) for start in range(0, triplets, step)
    ]
    return rows[np.concatenate(drawn)].astype(np.int32)


def describe_by_scorers(images: RunImages) -> list[Float[np.ndarray, "m _"]]:
    """The unit vectors of the images of a run under each scorer, whose dot products are similarities.

    The deep scorer is the cosine of features, the colour scorer Σ √(h g) of two histograms h and g.

    Args:
      images: the rows that the run may see, what fetches their features, and the sides of the copies that follow these.

    Returns:
      One matrix, or two where there are copies, of float32. Features of length 0 have similarity 0 to all.

    Raises:
      ValueError: ``images`` has no features.
    """
    if images.features is None:
        raise ValueError("features: None found; give the images of the run a function that fetches their features")
    sizes, parts = [3 * side**2 for side in images.pixels], []
    for start in range(0, len(images.rows), BLOCK):
        block = np.asarray(images.features(images.rows[start : start + BLOCK]), np.float32)
        block = block.mean(axis=tuple(range(1, block.ndim - 1)))
        split = block.shape[1] - sum(sizes)
        deep = block[:, :split]
        length = np.linalg.norm(deep, axis=1, keepdims=True)
        part = [deep / np.where(length > 0, length, 1)]
        if images.pixels:
            side = max(images.pixels)
            copy = np.split(block[:, split:], np.cumsum(sizes)[:-1], axis=1)[images.pixels.index(side)]
            part.append(np.sqrt(colour_histograms(copy.reshape(-1, side, side, 3))))
        parts.append(part)
    return [np.concatenate(one) for one in zip(*parts, strict=True)]


def colour_histograms(copies: Float[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n bins"]:
    """The share of the pixels of each copy in each of 16 × 4 × 4 bins of hue, saturation and value.

    Args:
      copies: red, green and blue from 0 to 1.

    Returns:
      Float32, each row with the sum 1. Pixels without saturation have the hue 0, that of red.

    >>> red, grey = np.float32([1, 0, 0]), np.float32([0.5, 0.5, 0.5])
    >>> histogram = colour_histograms(np.stack([red, red, red, grey]).reshape(1, 2, 2, 3))
    >>> {int(place): float(histogram[0, place]) for place in np.flatnonzero(histogram)}
    {2: 0.25, 15: 0.75}
    """
    red, green, blue = np.moveaxis(copies, -1, 0)
    value = copies.max(axis=-1)
    chroma = value - copies.min(axis=-1)
    by = np.where(chroma > 0, chroma, 1)
    sector = np.select(
        [value == red, value == green], [(green - blue) / by % 6, (blue - red) / by + 2], (red - green) / by + 4
    )
    channels = sector / 6, chroma / np.where(value > 0, value, 1), value
    place = np.zeros(value.shape, np.int64)
    for channel, bins in zip(channels, BINS, strict=True):
        place = place * bins + np.clip(channel * bins, 0, bins - 1).astype(np.int64)
    count, pixels = int(np.prod(BINS)), value[0].size
    place += count * np.arange(len(copies))[:, None, None]
    histograms = np.bincount(place.ravel(), minlength=count * len(copies)).reshape(len(copies), count)
    return (histograms / pixels).astype(np.float32)


def _complete_by_rank(
    scorers: list[Float[np.ndarray, "m _"]], query: Int[np.ndarray, " t"], ranks: _Ranks, rng: np.random.Generator
) -> Int[np.ndarray, "t 3"]:
    """A positive and a negative for each query."""
    size = len(scorers[0])
    first, last = ranks.negative_ranks
    near, in_class = np.zeros((2, len(query), size), bool)
    behind = np.ones((len(query), size), bool)
    behind[np.arange(len(query)), query] = False
    for vectors in scorers:
        keys = _ordered_keys(vectors[query] @ vectors.T, query)
        places = [min(rank, size - 1) - 1 for rank in (ranks.positive_ranks, first, last)]
        one, other, end = np.partition(keys, places, axis=1)[:, places].T[:, :, None]
        near |= keys <= one
        in_class |= (keys > other) & (keys <= end)
        behind &= keys > end
    in_class &= ~near
    outside = (rng.random(len(query)) < ranks.out_of_class) | ~in_class.any(axis=1)
    outside &= behind.any(axis=1)
    negatives = np.where(outside[:, None], behind, in_class)
    return np.stack([query, _pick_allowed(rng, near), _pick_allowed(rng, negatives)], axis=1)


def _ordered_keys(similarity: Float[np.ndarray, "t m"], query: Int[np.ndarray, " t"]) -> UInt64[np.ndarray, "t m"]:
    """Keys, all different, in the order of ranks: the bits of a distance, which as floats ≥ 0 ascend with it, then row.

    So the image at a rank is found without sorting, and ties go by row. That of the query itself is the last.
    """
    distance = np.maximum(1 - similarity, 0).astype(np.float32)
    keys = distance.view(np.uint32).astype(np.uint64) << np.uint64(32) | np.arange(distance.shape[1], dtype=np.uint64)
    keys[np.arange(len(query)), query] = np.iinfo(np.uint64).max
    return keys


def _pick_allowed(rng: np.random.Generator, allowed: Bool[np.ndarray, "t m"]) -> Int[np.ndarray, " t"]:
    """One place of each row of ``allowed`` that is true, all alike."""
    place = rng.integers(0, allowed.sum(axis=1))
    return np.argmax(np.cumsum(allowed, axis=1, dtype=np.int32) > place[:, None], axis=1)
