"""Landmarks and Holidays: relevant and junk images from their public ground-truth files, and how they are scored.

A junk image is neither right nor wrong: it is taken out of the ranking, so that whatever stood behind it moves up.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from fgis.errors import UserError
from fgis.retrieval.metrics import average_precision, average_precision_trapezoid
from fgis.retrieval.ranks import count_ranks

PRECISION_DEPTHS = (1, 5, 10)
ABSENT = np.iinfo(np.int64).max - 1  # the rank of an entry that is not there: behind everything
# What each difficulty takes for relevant, and for junk besides the junk itself (Radenović 2018, arXiv:1803.11285).
DIFFICULTIES = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


class Asked(NamedTuple):
    """The queries of a benchmark: names of queries and gallery images, and gallery places that are relevant or junk."""

    query_ids: list[str]
    gallery_ids: list[str]
    relevant: list[list[int]]
    junk: list[list[int]]


PLAIN = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"), ("_codecs", "encode"),
}  # fmt: skip


class _PlainUnpickler(pickle.Unpickler):
    """Containers, numbers, text and NumPy arrays; a pickle could run any code otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        """The few names that arrays are made of."""
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which a ground truth has no use for")
        return super().find_class(module, name)


def read_revisited(path: str | Path) -> dict[str, Any]:
    """``gnd_roxford5k.pkl`` or ``gnd_rparis6k.pkl``: {"imlist", "qimlist", "gnd": [{"easy", "hard", "junk", …}]}.

    Raises ``UserError`` for anything else, also for a pickle that holds more than plain data: it is not executed.
    """
    try:
        with Path(path).open("rb") as file:
            found = _PlainUnpickler(file).load()
        for one in found["gnd"]:
            places = [int(place) for key in ("easy", "hard", "junk") for place in one[key]]
            if not all(0 <= place < len(found["imlist"]) for place in places):
                raise ValueError(f"a place beyond its {len(found['imlist'])} images")
        if len(found["gnd"]) != len(found["qimlist"]):
            raise ValueError(f"{len(found['gnd'])} entries for {len(found['qimlist'])} queries")
    except Exception as error:  # a damaged pickle raises almost anything
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path}: no revisited ground truth ({reason}); take gnd_roxford5k.pkl or gnd_rparis6k.pkl"
        ) from error
    return found


def revisited(ground_truth: Mapping[str, Any], difficulty: str) -> Asked:
    """The queries of revisited Oxford or Paris at one of DIFFICULTIES.

    Easy: the easy images are relevant, hard ones are junk. Medium: both are relevant. Hard: the hard ones are, easy
    ones are junk. A query without relevant images stays, with an empty list.
    """
    if difficulty not in DIFFICULTIES:
        raise UserError(f"difficulty: {difficulty!r} is unknown; take one of {', '.join(DIFFICULTIES)}")
    right, left_out = DIFFICULTIES[difficulty]
    take = lambda keys: [[int(i) for key in keys for i in one[key]] for one in ground_truth["gnd"]]
    names = lambda key: [str(name) for name in ground_truth[key]]
    return Asked(names("qimlist"), names("imlist"), take(right), take(left_out))


def read_landmarks(directory: str | Path, gallery_ids: Sequence[str]) -> Asked:
    """Oxford 5k or Paris 6k from their text files: NAME_query.txt, NAME_good.txt, NAME_ok.txt and NAME_junk.txt.

    Good and ok images are relevant. ``gallery_ids`` name the gallery, with or without folder and ending. Raises
    ``UserError`` for images that it lacks, and for a file that is missing, cannot be read or names no query.
    """
    place = {Path(name).stem: i for i, name in enumerate(gallery_ids)}
    queries = sorted(Path(directory).glob("*_query.txt"))
    if not queries:
        raise UserError(f"{directory}: no *_query.txt; name the folder of the ground-truth files")
    asked = Asked([], list(gallery_ids), [], [])
    for file in queries:
        words = _words(file)
        if not words:
            raise UserError(f"{file}: names no query; unpack the ground truth again")
        asked.query_ids.append(words[0].removeprefix("oxc1_"))
        found = {}
        for kind in ("good", "ok", "junk"):
            beside = file.with_name(file.name.replace("_query.txt", f"_{kind}.txt"))
            names = _words(beside)  # a list that is missing is no empty one: it would change the score unseen
            missing = next((name for name in names if name not in place), None)
            if missing is not None:
                raise UserError(
                    f"{beside}: image {missing!r} is not in the gallery; extract all images of the data set"
                )
            found[kind] = [place[name] for name in names]
        asked.relevant.append(found["good"] + found["ok"])
        asked.junk.append(found["junk"])
    return asked


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: cannot be read ({reason}); unpack the ground truth again") from error


def holidays(image_ids: Sequence[str]) -> Asked:
    """INRIA Holidays: number // 100 is the group; the image with number % 100 = 0 asks, and is its own junk.

    One alone in its group asks with an empty list. Raises ``UserError`` for a name without a six-digit number.
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
    asking = [row for row, number in enumerate(numbers) if number % 100 == 0]
    relevant = [[row for row in groups[numbers[query] // 100] if row != query] for query in asking]
    return Asked([image_ids[row] for row in asking], list(image_ids), relevant, [[row] for row in asking])


def shift_junk(ranks: Int[np.ndarray, "q r"], junk: Int[np.ndarray, "q j"]) -> Int[np.ndarray, "q r"]:
    """Ranks once junk is taken out: each less the number of junk images before it; all from 0, and -1 where absent."""
    before = ((junk[:, None] >= 0) & (junk[:, None] < ranks[:, :, None])).sum(axis=2)
    return np.where(ranks >= 0, ranks - before, -1)


def mean_precision(ranks: Int[np.ndarray, "q r"], totals: Int[np.ndarray, " q"], k: int) -> Float[np.ndarray, " q"]:
    """Hits in the top k', over k' = min(k, 1 + rank of the last relevant image): mP@k of the revisited benchmarks.

    ``ranks`` ascend, and only the first ``totals`` count; NaN where there are none.
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
    """{"map_trapezoid" (the benchmarks' own), "map", "mp@1", "mp@5", "mp@10"} per query; NaN without relevant images.

    ``relevant`` and ``junk`` hold gallery places; one that is in both is junk, and one that is listed twice counts once.
    Raises ``UserError`` as ``search`` does.
    """
    both = [(sorted({*right} - {*left}), sorted({*left})) for right, left in zip(relevant, junk, strict=True)]
    widths = [max([1, *(len(pair[side]) for pair in both)]) for side in (0, 1)]
    members = np.array([
        [*right, *[-1] * (widths[0] - len(right)), *left, *[-1] * (widths[1] - len(left))] for right, left in both
    ])  # fmt: skip
    counted, _ = count_ranks(queries, gallery, members, distance)
    shifted = shift_junk(counted[:, : widths[0]], counted[:, widths[0] :])
    totals = (shifted >= 0).sum(axis=1)
    ranks = np.sort(np.where(shifted >= 0, shifted, ABSENT), axis=1)
    found = {"map_trapezoid": average_precision_trapezoid(ranks, totals), "map": average_precision(ranks, totals)}
    return found | {f"mp@{k}": mean_precision(ranks, totals, k) for k in PRECISION_DEPTHS}
