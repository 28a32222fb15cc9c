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
from fgis.retrieval.search import search

Scores = Float[np.ndarray, "s q"]
FALSE_ALARMS = (0.01, 0.1)  # shares of unknown queries that a threshold may accept
WEIGHTS = 1 << 22  # of bootstrap draws at a time, 32 MiB: a few arrays of that size are in memory


def nearest_known_and_unknown(
    embeddings: Float[Array | np.ndarray, "n d"],
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
    embeddings = np.asarray(embeddings)
    largest = int(np.unique(labels[gallery_rows], return_counts=True)[1].max(initial=0))
    rows, distances, _ = search(
        embeddings[query_rows], embeddings[gallery_rows], largest + 1, distance, query_rows, gallery_rows=gallery_rows
    )
    there = rows >= 0
    alike = (labels[rows] == labels[query_rows][:, None]) & there
    known, right = distances[:, 0].astype(np.float64), alike[:, 0]
    unknown = np.where(there & ~alike, distances, np.inf).min(axis=1).astype(np.float64)
    relevant = count_alike(labels, query_rows, gallery_rows) - np.isin(query_rows, gallery_rows)
    return np.where(relevant > 0, known, np.nan), right, unknown


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
    below = _sums_from_zero(unknown_weights[..., order])
    nearer, as_near = (np.searchsorted(unknown[order], known, side) for side in ("left", "right"))
    beaten = below[..., -1:] - 0.5 * (below[..., nearer] + below[..., as_near])
    with np.errstate(invalid="ignore"):
        return (known_weights * beaten).sum(-1) / (known_weights.sum(-1) * below[..., -1])


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
    reached = np.cumsum(known_weights[..., order], axis=-1)
    least = np.argmax(reached >= tpr * reached[..., -1:] - 1e-9, axis=-1)
    by_distance = np.argsort(unknown, kind="stable")
    below = _sums_from_zero(unknown_weights[..., by_distance])
    place = np.searchsorted(unknown[by_distance], known[order][least], side="right")
    with np.errstate(invalid="ignore"):
        accepted = np.take_along_axis(below, np.asarray(place)[..., None], axis=-1)[..., 0] / below[..., -1]
    return np.where(reached[..., -1] > 0, accepted, np.nan)  # a draw may hold no known query


def _sums_from_zero(weights: Float[np.ndarray, "... u"]) -> Float[np.ndarray, "... u+1"]:
    """The sum of the first 0, 1, … u weights."""
    return np.concatenate([np.zeros((*weights.shape[:-1], 1)), np.cumsum(weights, axis=-1)], axis=-1)


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
    draws = (
        rng.multinomial(len(names), [1 / len(names)] * len(names), min(size, resamples - start)).astype(np.float64)
        for start in range(0, resamples, size)
    )
    itself = np.ones((1, len(names)))
    parts = [score(drawn[:, index]) for drawn in itertools.chain([itself], draws)]
    return {name: _percentile_interval(np.concatenate([part[name] for part in parts])) for name in parts[0]}


def _score_draws(
    known: Scores, right: Bool[np.ndarray, "s q"], unknown: Scores, limits: Mapping[str, Scores],
    weights: Float[np.ndarray, "b q"],
) -> dict[str, Float[np.ndarray, " b"]]:  # fmt: skip
    """The figures of every draw, the mean over seeds; ``limits``: the threshold of each query, by false alarms."""
    figures: dict[str, list[np.ndarray]] = {}
    for seed, (one_known, one_right, one_unknown) in enumerate(zip(known, right, unknown, strict=True)):
        valued, alone = ~np.isnan(one_known), ~np.isnan(one_unknown)
        both = (weights[:, valued], weights[:, alone])
        figures.setdefault("auroc", []).append(auroc(one_known[valued], one_unknown[alone], both))
        figures.setdefault("fpr@95tpr", []).append(fpr_at_tpr(one_known[valued], one_unknown[alone], both))
        for name, limit in limits.items():
            with np.errstate(invalid="ignore"):
                hit, alarm = (one_known <= limit[seed]) & one_right, one_unknown <= limit[seed]
                figures.setdefault(f"dir@{name}far", []).append((both[0] @ hit[valued]) / both[0].sum(axis=1))
                figures.setdefault(f"far@{name}", []).append((both[1] @ alarm[alone]) / both[1].sum(axis=1))
    return {name: np.mean(values, axis=0) for name, values in figures.items()}


def _percentile_interval(values: Float[np.ndarray, " b"]) -> dict[str, float | list[float]]:
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else (np.nan, np.nan)
    return {"mean": float(values[0]), "ci95": [float(low), float(high)]}
