"""Open set: is there anything like this in the gallery at all?

Every query is scored twice in the same gallery. Once as known: its object is in the gallery, and its nearest neighbour
is the nearest other image. Once as unknown: all images of its own object are left out. The score is the distance to the
nearest image that is left, and a query is accepted where it is at most a threshold. Both kinds of score come from every
query, so that known and unknown queries differ in nothing but whether their object is there.
"""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fgis.retrieval.evaluate import count_alike
from fgis.retrieval.measures import MEASURES
from fgis.retrieval.prepare import Gallery, make_shard
from fgis.retrieval.search import search
from fgis.retrieval.stored import (
    BLOCK_NUMBERS,
    StoredGallery,
    StoredVectors,
    depth_groups,
    gallery_parts,
    search_in,
    searchable,
)

Scores = Float[np.ndarray, "s q"]
FALSE_ALARMS = (0.01, 0.1)  # shares of unknown queries that a threshold may accept
FIRST = 16  # neighbours among which the nearest image of another object is looked for at first
COPIED = 4  # images of an object, squared, for each image of a gallery, from which on a copy without them is searched
EXACT = 1 << 23  # halves of whole numbers up to this are exact in float32
WEIGHTS = 1 << 22  # of bootstrap draws at a time, 32 MiB: a few arrays of that size are in memory


def nearest_known_and_unknown(
    embeddings: Float[Array | np.ndarray, "n d"] | StoredVectors,
    labels: Int[np.ndarray, " n"],
    query_rows: Int[np.ndarray, " q"],
    gallery_rows: Int[np.ndarray, " g"],
    distance: str = "cosine",
) -> tuple[Float[np.ndarray, " q"], Bool[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """The nearest other image of each query, and the nearest one of another object.

    Args:
      embeddings: of all images, [n, d].
      labels: the object of each image, [n].
      query_rows: images that are queries, [q].
      gallery_rows: images in the gallery, [g].
      distance: a key of ``fgis.distances.DISTANCES``.

    Returns:
      Three arrays [q]: the distance to the nearest other image, whether that shows the query's object, and the distance
      to the nearest image of another object. The first is NaN for queries without another image of their object, which
      cannot be known; distances are infinite where no image is left.

    Raises:
      ValueError: as ``search``, also for an empty gallery.

    >>> points, labels = np.array([[0.0], [1.0], [3.0]], np.float32), np.array([4, 4, 7])
    >>> nearest_known_and_unknown(points, labels, np.array([0, 2]), np.arange(3), "euclidean")
    (array([ 1., nan]), array([ True, False]), array([3., 2.]))
    """
    embeddings = embeddings if isinstance(embeddings, StoredVectors) else np.asarray(embeddings)
    gallery = searchable(embeddings, gallery_rows, distance)
    relevant = count_alike(labels, query_rows, gallery_rows) - np.isin(query_rows, gallery_rows)
    first = np.minimum(relevant + 1, FIRST)
    known, unknown, right = np.full(len(query_rows), np.nan), np.full(len(query_rows), np.inf), relevant < 0
    open_ended = relevant < 0
    for places, depth in depth_groups(first, embeddings.shape[1]):
        own_rows = query_rows[places]
        rows, distances, _ = search_in(embeddings[own_rows], gallery, depth, own_rows)
        there = rows >= 0
        alike = (labels[rows] == labels[own_rows][:, None]) & there
        known[places], right[places] = distances[:, 0], alike[:, 0]
        unknown[places] = np.where(there & ~alike, distances, np.inf).min(axis=1)
        open_ended[places] = alike.all(axis=1)
    left = np.flatnonzero(open_ended)
    step = max(1, 4 * BLOCK_NUMBERS // embeddings.shape[1])
    for at in np.split(left, range(step, len(left), step)):
        if len(at):
            unknown[at] = _nearest_of_others(embeddings[query_rows[at]], gallery, labels, query_rows[at])
    return np.where(relevant > 0, known, np.nan), right, unknown


def _nearest_of_others(
    queries: Float[np.ndarray, "q d"], gallery: Gallery | StoredGallery, labels: Int[np.ndarray, " n"],
    query_rows: Int[np.ndarray, " q"],
) -> Float[np.ndarray, " q"]:  # fmt: skip
    """The distance of each query to the nearest image of another object, which may be behind all of its own.

    A list is as deep as there are images of the object. Where these are so many that its cost is that of a copy of the
    gallery, the images of other objects are searched by themselves.
    """
    own, nearest = labels[query_rows], np.full(len(queries), np.inf)
    for part in gallery_parts(gallery):
        (shard,) = part.shards
        alike = count_alike(labels, query_rows, shard.rows)
        many = alike**2 > COPIED * len(shard.rows)
        for label in np.unique(own[many]):
            mine, others = np.flatnonzero(many & (own == label)), labels[shard.rows] != label
            if others.any():
                left = make_shard(shard.vectors[others], shard.rows[others], MEASURES[part.distance])
                found = search(queries[mine], Gallery((left,), part.distance), 1).distances[:, 0]
                nearest[mine] = np.minimum(nearest[mine], found)
        few = np.flatnonzero(~many)
        for places, depth in depth_groups(alike[few] + 1, queries.shape[1]):
            mine = few[places]
            rows, distances, _ = search(queries[mine], part, depth)
            other = (rows >= 0) & (labels[rows] != own[mine, None])
            nearest[mine] = np.minimum(nearest[mine], np.where(other, distances, np.inf).min(axis=1))
    return nearest


def choose_threshold(unknown: Float[np.ndarray, " q"], false_alarms: float) -> float:
    """The largest threshold that accepts no more than a share of the unknown queries.

    A query is accepted at a distance up to the threshold, so it lies just below the ⌊share · q⌋ + 1-th smallest
    distance; equal distances are accepted together or not at all.

    Args:
      unknown: distances of unknown queries to the nearest image, [q]; NaN counts nowhere.
      false_alarms: the share that may be accepted, in [0, 1].

    Returns:
      The threshold; infinite where all may be accepted, or there is no query.

    >>> choose_threshold(np.array([0.2, 0.5, 0.7, 0.8]), 0.25) < 0.5
    True
    """
    scores = np.sort(unknown[~np.isnan(unknown)])
    allowed = int(np.floor(false_alarms * len(scores) + 1e-9))
    return float(np.nextafter(scores[allowed], -np.inf)) if allowed < len(scores) else float("inf")


def auroc(known: Float[np.ndarray, " q"], unknown: Float[np.ndarray, " u"], weights: Any = None) -> Any:
    """The probability that a known query is nearer than an unknown one; ties count half. Needs O(q) memory.

    Args:
      known: distances of known queries, [q].
      unknown: distances of unknown queries, [u].
      weights: ([..., q], [..., u]) how often each counts, as a bootstrap draws them: one value per draw.

    Returns:
      A share, or shares [...]; NaN where no query is known, or none unknown.

    >>> float(auroc(np.array([0.1, 0.9]), np.array([0.5, 0.9])))
    0.625
    """
    known_weights, unknown_weights = weights or (np.ones(len(known)), np.ones(len(unknown)))
    order = np.argsort(unknown, kind="stable")
    below = _sums_from_zero(unknown_weights.take(order, axis=-1))
    nearer, as_near = (np.searchsorted(unknown[order], known, side) for side in ("left", "right"))
    lost = below.take(nearer, axis=-1)
    if not np.array_equal(nearer, as_near):
        lost = (lost + below.take(as_near, axis=-1)) * lost.dtype.type(0.5)
    every = below[..., -1].astype(np.float64)
    alone = known_weights.sum(-1, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # products of sums are large: in float64, where they are exact
        return (alone * every - np.einsum("...q,...q->...", known_weights, lost, dtype=np.float64)) / (alone * every)


def fpr_at_tpr(
    known: Float[np.ndarray, " q"], unknown: Float[np.ndarray, " u"], weights: Any = None, tpr: float = 0.95
) -> Any:
    """The share of unknown queries accepted at the least threshold that accepts a share ``tpr`` of the known ones.

    Args:
      known: distances of known queries, [q].
      unknown: distances of unknown queries, [u]; those that tie with the threshold are accepted too.
      weights: as in ``auroc``.
      tpr: the share of known queries that has to be accepted.

    Returns:
      A share, or shares [...]; NaN where no query is known, or none unknown.

    >>> float(fpr_at_tpr(np.array([0.1, 0.3]), np.array([0.2, 0.5])))
    0.5
    """
    known_weights, unknown_weights = weights or (np.ones(len(known)), np.ones(len(unknown)))
    if not len(known):
        return np.full(known_weights.shape[:-1], np.nan)
    order = np.argsort(known, kind="stable")
    reached = np.cumsum(known_weights.take(order, axis=-1), axis=-1)
    least = np.argmax(reached >= tpr * reached[..., -1:].astype(np.float64) - 1e-9, axis=-1)
    by_distance = np.argsort(unknown, kind="stable")
    below = _sums_from_zero(unknown_weights.take(by_distance, axis=-1))
    place = np.searchsorted(unknown[by_distance], known[order][least], side="right")
    with np.errstate(invalid="ignore"):
        accepted = np.take_along_axis(below, np.asarray(place)[..., None], axis=-1)[..., 0].astype(np.float64)
        accepted /= below[..., -1]
    return np.where(reached[..., -1] > 0, accepted, np.nan)  # a draw may hold no known query


def _sums_from_zero(weights: Float[np.ndarray, "... u"]) -> Float[np.ndarray, "... u+1"]:
    """The sum of the first 0, 1, … u weights."""
    sums = np.zeros((*weights.shape[:-1], weights.shape[-1] + 1), weights.dtype)
    np.cumsum(weights, axis=-1, out=sums[..., 1:])
    return sums


def open_set(
    known: Scores, right: Bool[np.ndarray, "s q"], unknown: Scores, objects: Int[np.ndarray, " q"],
    false_alarms: Sequence[float] = FALSE_ALARMS, resamples: int = 2000, seed: int = 0,
) -> dict[str, dict[str, float | list[float]]]:  # fmt: skip
    """Open-set figures with intervals, by seed and object.

    ``auroc`` and ``fpr@95tpr`` are those functions. ``dir@Xfar``, detection and identification: the share of known
    queries that are accepted with the right object nearest, at the threshold that accepts X % of the unknown queries of
    *other* objects: objects are dealt into two halves, and each is scored with the threshold of the other. ``far@X``:
    the share of unknown queries that this threshold accepts in the half that is scored.

    Args:
      known: distances of queries as known, [seeds, queries]; NaN where a query cannot be known.
      right: whether the nearest image shows the query's object, [seeds, queries].
      unknown: distances of queries as unknown, [seeds, queries].
      objects: of the queries, [q]; drawn with replacement, the images of an object together.
      false_alarms: the shares X / 100.
      resamples: how many bootstrap samples; seeds are averaged within each.
      seed: of the halves and the bootstrap.

    Returns:
      {"auroc", "fpr@95tpr", "dir@1far", "far@1", …}: {"mean": float, "ci95": 95 % percentile bootstrap interval}.
      Figures of no query are NaN; such draws are left out.
    """
    names, index = np.unique(objects, return_inverse=True)
    rng = np.random.default_rng(seed)
    half = rng.permutation(len(names))[index] % 2
    limits = {
        f"{100 * share:g}": np.array(
            [[choose_threshold(one[half != side], share) for side in (0, 1)] for one in unknown]
        )
        for share in false_alarms
    }
    score = partial(_score_draws, known, right, unknown, {name: chosen[:, half] for name, chosen in limits.items()})
    size = max(1, WEIGHTS // len(index))
    most = len(names) * int(np.bincount(index).max(initial=0))  # images that a draw may hold
    kind = np.float32 if most < EXACT else np.float64
    draws = (
        rng.multinomial(len(names), [1 / len(names)] * len(names), min(size, resamples - start)).astype(kind)
        for start in range(0, resamples, size)
    )
    itself = np.ones((1, len(names)), kind)
    parts = [score(drawn.take(index, axis=1)) for drawn in itertools.chain([itself], draws)]
    return {name: _percentile_interval(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def _score_draws(
    known: Scores, right: Bool[np.ndarray, "s q"], unknown: Scores, limits: Mapping[str, Scores],
    weights: Float[np.ndarray, "b q"],
) -> dict[str, Float[np.ndarray, " b"]]:  # fmt: skip
    """The figures of every draw, the mean over seeds; ``limits``: the threshold of each query, by false alarms."""
    figures: dict[str, list[np.ndarray]] = {}
    for seed, (one_known, one_right, one_unknown) in enumerate(zip(known, right, unknown, strict=True)):
        valued, alone = ~np.isnan(one_known), ~np.isnan(one_unknown)
        both = tuple(weights if one.all() else weights[:, one] for one in (valued, alone))
        figures.setdefault("auroc", []).append(auroc(one_known[valued], one_unknown[alone], both))
        figures.setdefault("fpr@95tpr", []).append(fpr_at_tpr(one_known[valued], one_unknown[alone], both))
        for name, limit in limits.items():
            with np.errstate(invalid="ignore"):
                hit, alarm = (one_known <= limit[seed]) & one_right, one_unknown <= limit[seed]
                figures.setdefault(f"dir@{name}far", []).append(_share(both[0], hit[valued]))
                figures.setdefault(f"far@{name}", []).append(_share(both[1], alarm[alone]))
    return {name: np.mean(values, axis=0) for name, values in figures.items()}


def _share(weights: Float[np.ndarray, "b q"], marked: Bool[np.ndarray, " q"]) -> Float[np.ndarray, " b"]:
    """The share of marked queries in every draw."""
    return (weights @ marked.astype(weights.dtype)).astype(np.float64) / weights.sum(axis=1, dtype=np.float64)


def _percentile_interval(values: Float[np.ndarray, " b"]) -> dict[str, float | list[float]]:
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return {"mean": float(values[0]), "ci95": [float(low), float(high)]}
