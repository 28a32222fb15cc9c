"""Landmarks and Holidays: relevant and junk images from their public ground-truth files, and how they are scored.

A junk image is neither right nor wrong: it is taken out of the ranking, so that whatever is behind it moves up.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from fgis.errors import UserError
from fgis.ranges import nearest
from fgis.retrieval.metrics import average_precision, average_precision_trapezoid
from fgis.retrieval.ranks import ABSENT_RANK, count_ranks

PRECISION_DEPTHS = (1, 5, 10)
# What is relevant at each difficulty, and what is junk besides the junk itself.
DIFFICULTIES = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


class QueryLists(NamedTuple):
    """The queries of a benchmark, with gallery places that are relevant or junk."""

    query_ids: list[str]  # [q]
    gallery_ids: list[str]  # [g]
    relevant: list[list[int]]  # [q] lists of gallery places
    junk: list[list[int]]  # [q] lists of gallery places


def revisited(ground_truth: Mapping[str, Any], difficulty: str) -> QueryLists:
    """The queries of revisited Oxford or Paris at one difficulty.

    Easy: the easy images are relevant, hard ones are junk. Medium: both are relevant. Hard: the hard ones are, easy
    ones are junk. A query without relevant images stays, with an empty list.

    Args:
      ground_truth: as of ``read_revisited``.
      difficulty: a key of ``DIFFICULTIES``.

    Returns:
      Queries and their lists.

    Raises:
      ValueError: an unknown difficulty.

    Reference: Radenović, Iscen, Tolias, Avrithis and Chum, Revisiting Oxford and Paris, CVPR 2018, arXiv:1803.11285.
    """
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty: {difficulty!r} found; {nearest(str(difficulty), DIFFICULTIES)}")
    right, left_out = DIFFICULTIES[difficulty]
    take = lambda keys: [[int(i) for key in keys for i in one[key]] for one in ground_truth["gnd"]]
    names = lambda key: [str(name) for name in ground_truth[key]]
    return QueryLists(names("qimlist"), names("imlist"), take(right), take(left_out))


def read_landmarks(directory: str | Path, gallery_ids: Sequence[str]) -> QueryLists:
    """Oxford 5k or Paris 6k from their text files; good and ok images are relevant.

    Args:
      directory: holds NAME_query.txt, NAME_good.txt, NAME_ok.txt and NAME_junk.txt for every query.
      gallery_ids: names of the gallery images, with or without folder and ending.

    Returns:
      Queries, by the names of their files, and their lists.

    Raises:
      UserError: an image that the gallery lacks, or a file that is missing, cannot be read or names no query.
    """
    place = {Path(name).stem: i for i, name in enumerate(gallery_ids)}
    files = sorted(Path(directory).glob("*_query.txt"))
    if not files:
        raise UserError(f"{directory}: no *_query.txt; name the folder of the ground-truth files")
    lists = QueryLists([], list(gallery_ids), [], [])
    for file in files:
        words = _read_words(file)
        if not words:
            raise UserError(f"{file}: names no query; unpack the ground truth again")
        lists.query_ids.append(words[0].removeprefix("oxc1_"))
        # A list that is missing is no empty one: it would change the score unseen.
        good, ok, junk = (
            _read_places(file.with_name(file.name.replace("_query.txt", f"_{kind}.txt")), place)
            for kind in ("good", "ok", "junk")
        )
        lists.relevant.append(good + ok)
        lists.junk.append(junk)
    return lists


def _read_places(file: Path, place: Mapping[str, int]) -> list[int]:
    names = _read_words(file)
    missing = next((name for name in names if name not in place), None)
    if missing is not None:
        raise UserError(f"{file}: image {missing!r} is not in the gallery; extract all images of the data set")
    return [place[name] for name in names]


def _read_words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: cannot be read ({reason}); unpack the ground truth again") from error


def holidays(image_ids: Sequence[str]) -> QueryLists:
    """INRIA Holidays: number // 100 is the group; the image with number % 100 = 0 is the query, and its own junk.

    Args:
      image_ids: names that end in a six-digit number and a suffix, of queries and gallery alike.

    Returns:
      Queries and their lists; a query alone in its group has an empty list.

    Raises:
      UserError: a name without a six-digit number.

    >>> holidays(["100000.jpg", "100001.jpg", "100100.jpg"]).relevant
    [[1], []]
    """
    numbers = []
    for image_id in image_ids:
        match = re.search(r"(?<!\d)(\d{6})\.\w+$", image_id)
        if not match:
            raise UserError(f"image {image_id!r}: no six-digit number of INRIA Holidays; name its jpg folder")
        numbers.append(int(match[1]))
    groups: dict[int, list[int]] = {}
    for row, number in enumerate(numbers):
        groups.setdefault(number // 100, []).append(row)
    queries = [row for row, number in enumerate(numbers) if number % 100 == 0]
    relevant = [[row for row in groups[numbers[query] // 100] if row != query] for query in queries]
    return QueryLists([image_ids[row] for row in queries], list(image_ids), relevant, [[row] for row in queries])


def shift_junk(ranks: Int[np.ndarray, "q r"], junk: Int[np.ndarray, "q j"]) -> Int[np.ndarray, "q r"]:
    """Ranks once junk is taken out: each less the number of junk images before it.

    Args:
      ranks: from 0, [q, r]; -1 where absent.
      junk: ranks of the junk images, from 0, [q, j]; -1 where absent.

    Returns:
      Ranks [q, r], -1 where absent.

    >>> shift_junk(np.array([[0, 4, -1]]), np.array([[2, 3, -1]]))
    array([[ 0,  2, -1]])
    """
    before = ((junk[:, None] >= 0) & (junk[:, None] < ranks[:, :, None])).sum(axis=2)
    return np.where(ranks >= 0, ranks - before, -1)


def mean_precision(ranks: Int[np.ndarray, "q r"], totals: Int[np.ndarray, " q"], k: int) -> Float[np.ndarray, " q"]:
    """Relevant images in the top k', over k' = min(k, 1 + rank of the last relevant image): mP@k of the benchmarks.

    Args:
      ranks: of the relevant images, from 0, ascending, [q, r]; those beyond ``totals`` do not count.
      totals: relevant images of each query, [q].
      k: how many neighbours count at most.

    Returns:
      Values [q]; NaN where there are no relevant images.

    >>> mean_precision(np.array([[0, 2]]), np.array([2]), 5).round(4)
    array([0.6667])
    """
    within = np.arange(ranks.shape[1]) < totals[:, None]
    last = np.max(np.where(within, ranks, -1), axis=1, initial=-1)
    depth = np.minimum(k, last + 1)
    hits = (within & (ranks < depth[:, None])).sum(axis=1)
    return np.where(totals > 0, hits / np.maximum(depth, 1), np.nan)


def evaluate_lists(
    queries: Float[Array | np.ndarray, "q d"],
    gallery: Float[Array | np.ndarray, "g d"],
    relevant: Sequence[Sequence[int]],
    junk: Sequence[Sequence[int]],
    distance: str = "cosine",
) -> dict[str, Float[np.ndarray, " q"]]:
    """The figures of the landmark benchmarks, per query.

    Args:
      queries: embeddings [q, d].
      gallery: embeddings [g, d].
      relevant: gallery places that are relevant, a list for each query.
      junk: gallery places that are junk, a list for each query; one that is in both lists is junk, and one that is
        listed twice counts once.
      distance: a key of ``fgis.distances.DISTANCES``.

    Returns:
      {"map_trapezoid" (the benchmarks' own), "map", "mp@1", "mp@5", "mp@10"}: values [q], NaN without relevant images.

    Raises:
      ValueError: as ``search``.
    """
    both = [(sorted({*right} - {*left}), sorted({*left})) for right, left in zip(relevant, junk, strict=True)]
    widths = [max([1, *(len(pair[side]) for pair in both)]) for side in (0, 1)]
    members = np.array([
        [*right, *[-1] * (widths[0] - len(right)), *left, *[-1] * (widths[1] - len(left))] for right, left in both
    ])  # fmt: skip
    counted = count_ranks(queries, gallery, members, distance)
    shifted = shift_junk(counted[:, : widths[0]], counted[:, widths[0] :])
    totals = (shifted >= 0).sum(axis=1)
    ranks = np.sort(np.where(shifted >= 0, shifted, ABSENT_RANK), axis=1)
    values = {"map_trapezoid": average_precision_trapezoid(ranks, totals), "map": average_precision(ranks, totals)}
    return values | {f"mp@{k}": mean_precision(ranks, totals, k) for k in PRECISION_DEPTHS}
