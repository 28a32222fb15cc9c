"""Exact and near duplicates in a gallery: the same bytes, or the same picture by another size, file, frame or turn.

Candidates are cheap and many: the nearest images by features, and those whose tiny grey copy looks alike in any of its
eight turned and mirrored forms. What decides is a second look at the pixels: one picture, turned as it may be, is laid
over the other, whole and as a part of it, and the agreement is the correlation of their grey values where it is best.
Nothing is ever deleted.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from fgis.gallery.loaded import LoadedGallery
from fgis.ranges import Share, require
from fgis.retrieval.search import search

THRESHOLD = 0.95  # of the agreement
SIDE, COARSE, TINY = 64, 16, 8  # pixels of grey copies: to decide, to choose whom to compare, to find candidates
NEAREST = 8  # candidates of each image by features, and as many by tiny copies
SMALLEST_PART = 0.88  # of each side: smaller parts of a picture are not looked for
ROUGH = 0.82  # agreement of coarse copies, below which there is no second look
UNEVEN = 0.06  # what a part with another aspect ratio may add to the agreement
FORMS = (
    "", "mirrored", "turned by 90° to the left", "turned by 90° to the left and mirrored", "turned by 180°",
    "turned upside down and mirrored", "turned by 90° to the right", "turned by 90° to the right and mirrored",
)  # fmt: skip
BLOCK = 512  # images, or pairs, at a time

Grey = Float[np.ndarray, "s s"]


class Copy(NamedTuple):
    """One image of a group, compared with the group's first."""

    image_id: str
    width: int  # pixels of the upright picture
    height: int
    bytes: int
    agreement: float  # with the first image: 1 for the same bytes
    relation: str  # to the first image, in words


class DuplicateGroup(NamedTuple):
    """Images that show the same picture; the first has the most pixels, then the earliest time."""

    copies: tuple[Copy, ...]


class Agreement(NamedTuple):
    """How well one picture lies over another."""

    score: float  # correlation of grey values, at most 1
    form: int  # how the second picture is turned, an index of ``FORMS``
    part: str  # "", or which of the two is a part of the other: "first" or "second"


def find_duplicates(
    loaded: LoadedGallery,
    *,
    threshold: Share = THRESHOLD,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[DuplicateGroup]:
    """The groups of images that show the same picture.

    Args:
      loaded: the gallery.
      threshold: the least agreement of two near duplicates; 1 finds little more than the same bytes.
      progress: called with (candidates compared, candidates in all).

    Returns:
      Groups of at least two, the largest first, then by the first image id. Pictures of one grey level alone are never
      near duplicates.

    Raises:
      ValueError: ``threshold`` lies outside of [0, 1].
    """
    require(find_duplicates, threshold=threshold)
    ids = [one.image_id for one in loaded.records]
    _, first, content = np.unique([one.sha256 for one in loaded.records], return_index=True, return_inverse=True)
    greys = np.stack([_read_grey(loaded.thumbnail(ids[row])) for row in first])
    pairs = _candidate_pairs(loaded.search.features[first], loaded.search.prepared.distance, greys)
    joined = list(range(len(first)))  # the content that each content is joined to, in a chain to the group's first
    rough = _rough_agreements(greys, pairs)
    close = [(int(a), int(b), forms) for (a, b), forms in zip(pairs, rough, strict=True) if forms]
    for done, (a, b, forms) in enumerate(close, 1):
        if (
            _root(joined, a) != _root(joined, b)
            and compare_pictures(greys[a], greys[b], forms, threshold).score >= threshold
        ):
            joined[_root(joined, a)] = _root(joined, b)
        progress(done, len(close))
    members: dict[int, list[int]] = {}
    for row, number in enumerate(content.tolist()):
        members.setdefault(_root(joined, number), []).append(row)
    groups = [_describe_group(loaded, rows, content, greys) for rows in members.values() if len(rows) > 1]
    return sorted(groups, key=lambda group: (-len(group.copies), group.copies[0].image_id))


def compare_pictures(
    a: UInt8[np.ndarray, "s s"], b: UInt8[np.ndarray, "s s"], forms: Sequence[int], enough: float = THRESHOLD
) -> Agreement:
    """The best agreement of two grey copies, over some forms of the second, whole and as parts of each other.

    Args:
      a: a grey copy, [64, 64].
      b: another one.
      forms: indices of ``FORMS`` that are tried.
      enough: the search ends where this is reached, and where it cannot be reached any more.
    """
    best = Agreement(-1.0, 0, "")
    one = a.astype(np.float32)
    turned = [(form, np.ascontiguousarray(_turn(b.astype(np.float32), form))) for form in forms]
    sizes = list(_part_sizes(SIDE))
    for number, (height, width) in enumerate(sizes):
        whole_frame = height * width == SIDE * SIDE
        if best.score >= enough or (number == SIDE - int(SIDE * SMALLEST_PART) and best.score < enough - UNEVEN):
            break
        for form, other in turned:
            # Laying the one over the other whole is the same as the reverse.
            for part, around, piece in (("second", one, other), ("first", other, one))[: 1 if whole_frame else 2]:
                score = float(_best_correlation(around[None], piece[None], height, width)[0])
                if score > best.score:
                    best = Agreement(score, form, "" if whole_frame else part)
    return best


def _candidate_pairs(
    features: Float[np.ndarray, "n f"], distance: str, greys: UInt8[np.ndarray, "n s s"]
) -> Int[np.ndarray, "p 2"]:
    """Pairs (a < b) that may be duplicates, each once."""
    count = len(features)
    if count < 2:
        return np.zeros((0, 2), np.int64)
    rows = np.arange(count)
    found = [search(features, features, min(NEAREST, count - 1), distance, rows).rows]
    tiny = _unit(_shrink(greys, TINY))
    forms = [_unit(_turn(_shrink(greys, TINY), form)) for form in range(len(FORMS))]
    alike = np.empty((count, min(NEAREST, count - 1)), np.int64)
    for start in range(0, count, BLOCK):
        here = slice(start, start + BLOCK)
        scores = np.max([tiny[here] @ form.T for form in forms], axis=0)
        scores[np.arange(len(scores)), rows[here]] = -np.inf
        alike[here] = np.argpartition(-scores, alike.shape[1] - 1, axis=1)[:, : alike.shape[1]]
    found.append(alike)
    pairs = np.concatenate([np.stack([np.repeat(rows, one.shape[1]), one.ravel()], axis=1) for one in found])
    return np.unique(np.sort(pairs[pairs[:, 1] >= 0], axis=1), axis=0)


def _rough_agreements(greys: UInt8[np.ndarray, "n s s"], pairs: Int[np.ndarray, "p 2"]) -> Iterator[list[int]]:
    """For each pair the forms that are worth a second look, the best first."""
    coarse, tiny = _shrink(greys, COARSE), _shrink(greys, TINY)
    upright, sizes = _unit(tiny), [(size, size) for size in range(COARSE, int(COARSE * SMALLEST_PART) - 1, -1)]
    forms = np.stack([_unit(_turn(tiny, form)) for form in range(len(FORMS))])
    for start in range(0, len(pairs), BLOCK):
        a, b = pairs[start : start + BLOCK].T
        alike = np.einsum("pf,spf->ps", upright[a], forms[:, b])
        tried = np.argsort(-alike, axis=1, kind="stable")[:, :2]  # a part is as likely to look alike as the whole
        scores = np.full(tried.shape, -1.0)
        for column in range(tried.shape[1]):
            for form in range(len(FORMS)):
                here = np.flatnonzero(tried[:, column] == form)
                one, other = coarse[a[here]], np.ascontiguousarray(_turn(coarse[b[here]], form))
                scores[here, column] = np.max(
                    [_best_correlation(x, y, *size) for size in sizes for x, y in ((one, other), (other, one))], axis=0
                )
        for row, found in zip(tried, scores, strict=True):
            yield [int(row[place]) for place in np.argsort(-found, kind="stable") if found[place] >= ROUGH]


def _best_correlation(
    wholes: Float[np.ndarray, "p s s"], pieces: Float[np.ndarray, "p s s"], height: int, width: int
) -> Float[np.ndarray, " p"]:
    """The highest correlation of each piece, brought to (height, width), with any part of that size of its whole."""
    side = wholes.shape[1]
    small = _scaling(side, height) @ pieces @ _scaling(side, width).T
    small = small - small.mean(axis=(1, 2), keepdims=True)
    parts = sliding_window_view(wholes, (height, width), axis=(1, 2))
    products = np.einsum("pxyhw,phw->pxy", parts, small)
    sums, squares = (_window_sums(one, height, width) for one in (wholes, wholes * wholes))
    spread = np.sqrt(np.maximum(squares - sums**2 / (height * width), 0))
    norms = spread * np.sqrt(np.einsum("phw,phw->p", small, small))[:, None, None]
    flat = norms < height * width  # less than a grey level of contrast: nothing to compare
    return np.where(flat, -1, products / np.where(flat, 1, norms)).max(axis=(1, 2))


def _window_sums(pictures: Float[np.ndarray, "p s s"], height: int, width: int) -> Float[np.ndarray, "p y x"]:
    """The sum of every part of a size."""
    total = np.zeros((len(pictures), *(side + 1 for side in pictures.shape[1:])))
    np.cumsum(pictures, axis=1, out=total[:, 1:, 1:])
    np.cumsum(total[:, 1:, 1:], axis=2, out=total[:, 1:, 1:])
    rows = total[:, height:] - total[:, :-height]
    return rows[:, :, width:] - rows[:, :, :-width]


@cache
def _part_sizes(side: int) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) of a part, from the whole downwards; both sides shrink alike or nearly so."""
    least = int(side * SMALLEST_PART)
    sizes = [(h, w) for h in range(side, least, -1) for w in range(side, least, -1)]
    return tuple(sorted(sizes, key=lambda size: (size != (side, side), abs(size[0] - size[1]), -size[0])))


@cache
def _scaling(side: int, size: int) -> Float[np.ndarray, "size side"]:
    """The matrix of linear interpolation from ``side`` to ``size`` values."""
    places = (np.arange(size) + 0.5) * side / size - 0.5
    return np.maximum(0, 1 - np.abs(places[:, None].clip(0, side - 1) - np.arange(side))).astype(np.float32)


def _read_grey(webp: bytes) -> UInt8[np.ndarray, "s s"]:
    """A thumbnail in grey, whatever its shape."""
    with Image.open(io.BytesIO(webp)) as image:
        return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))


def _shrink(greys: UInt8[np.ndarray, "n s s"], size: int) -> Float[np.ndarray, "n t t"]:
    step = SIDE // size
    return greys.reshape(-1, size, step, size, step).mean(axis=(2, 4), dtype=np.float32)


def _unit(greys: Float[np.ndarray, "n t t"]) -> Float[np.ndarray, "n f"]:
    """Vectors whose products are correlations."""
    flat = greys.reshape(len(greys), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _turn(greys: np.ndarray, form: int) -> np.ndarray:
    """One of the eight forms of pictures [..., s, s]: mirrored where ``form`` is odd, then turned to the left."""
    mirrored = greys[..., ::-1] if form % 2 else greys
    return np.rot90(mirrored, -(form // 2), axes=(-2, -1))


def _root(joined: list[int], number: int) -> int:
    while joined[number] != number:
        joined[number] = joined[joined[number]]
        number = joined[number]
    return number


def _describe_group(
    loaded: LoadedGallery, rows: list[int], content: Int[np.ndarray, " n"], greys: UInt8[np.ndarray, "c s s"]
) -> DuplicateGroup:
    records = loaded.records
    size = lambda row: (-records[row].width * records[row].height, records[row].modified_ns, records[row].image_id)
    first, *others = sorted(rows, key=size)
    copies = [_copy(loaded, first, 1.0, "")]
    for row in others:
        if content[row] == content[first]:
            copies.append(_copy(loaded, row, 1.0, "same bytes"))
            continue
        two = greys[content[[first, row]]]
        (forms,) = _rough_agreements(two, np.array([[0, 1]]))
        found = compare_pictures(two[0], two[1], forms or range(len(FORMS)))
        copies.append(_copy(loaded, row, found.score, _relation(loaded, first, row, found)))
    return DuplicateGroup(tuple(copies))


def _copy(loaded: LoadedGallery, row: int, agreement: float, relation: str) -> Copy:
    record = loaded.records[row]
    return Copy(record.image_id, record.width, record.height, record.bytes, agreement, relation)


def _relation(loaded: LoadedGallery, first: int, row: int, found: Agreement) -> str:
    one, other = loaded.records[first], loaded.records[row]
    words = [FORMS[found.form]]
    if found.part:
        words.append("a part of it" if found.part == "second" else "more of it")
    elif sorted((one.width, one.height)) != sorted((other.width, other.height)):
        words.append("resized")
    return ", ".join(filter(None, words)) or "saved again"
