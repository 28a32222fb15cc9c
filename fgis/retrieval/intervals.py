"""How sure a mean is: bootstrap intervals over seeds and objects, and the rows of a report with their differences."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fgis.retrieval.metrics import TIED

# The differences of a report: the first row less the second, where both are there.
DIFFERENCES = {
    "difference": ("trained", "frozen"),
    "difference_untrained": ("trained", "untrained"),
    "difference_reranked": ("reranked", "trained"),
}


def summarize(
    values: Float[np.ndarray, "s n"], objects: Int[np.ndarray, " n"], resamples: int = 2000, seed: int = 0
) -> dict[str, float | list[float]]:
    """The mean over queries, and its 95 % percentile bootstrap interval.

    Seeds and objects are resampled, independently of each other; the images of an object stay together, since they are
    not independent.

    Args:
      values: of one metric, [seeds, images]; NaN for images that were no query or have no relevant images: they count
        nowhere.
      objects: the object of each image, [n].
      resamples: how many bootstrap samples.
      seed: of the bootstrap.

    Returns:
      {"mean": float, "ci95": [low, high]}; NaN where there is no query.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    >>> summarize(np.array([[1.0, 0.0, np.nan]]), np.array([0, 1, 2]), resamples=100)
    {'mean': 0.5, 'ci95': [0.0, 1.0]}
    """
    _, index = np.unique(objects, return_inverse=True)
    valued = np.isfinite(values)
    sums = np.stack([np.bincount(index, np.where(ok, row, 0)) for row, ok in zip(values, valued, strict=True)])
    counts = np.stack([np.bincount(index, ok) for ok in valued])
    if not valued.any():
        return {"mean": float("nan"), "ci95": [float("nan"), float("nan")]}
    rng = np.random.default_rng(seed)
    seeds_drawn = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
    objects_drawn = rng.multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), resamples)
    total = ((seeds_drawn @ sums) * objects_drawn).sum(axis=1)
    queries = ((seeds_drawn @ counts) * objects_drawn).sum(axis=1)
    low, high = np.percentile(total[queries > 0] / queries[queries > 0], [2.5, 97.5])
    return {"mean": float(sums.sum() / counts.sum()), "ci95": [float(low), float(high)]}


def compare(
    rows: Mapping[str, Mapping[str, Float[np.ndarray, "s n"]]],
    labels: Int[np.ndarray, " n"],
    gallery: int,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """One evaluation of a report: every row and every difference, summarized.

    Differences are paired, image by image and seed by seed: ``difference`` is what the head adds to the frozen
    features, ``difference_untrained`` what training adds to the head as it was initialized, ``difference_reranked``
    what re-ranking adds to the trained head.

    Args:
      rows: {row: {metric: values [seeds, images]}}: frozen, trained and, if any, untrained and re-ranked rows.
      labels: the object of each image, [n].
      gallery: how many images the gallery has.
      resamples: how many bootstrap samples.
      seed: of the bootstrap.

    Returns:
      {"queries", "gallery", "without_relatives" (queries without relevant images), "tied": {row: queries, the mean over
      seeds, for which the row numbers, and not the distances, decided what was cut off}, ROW: {METRIC: as of
      ``summarize``}}.
    """
    values = {row: {name: table for name, table in one.items() if name != TIED} for row, one in rows.items()}
    tied = {row: float(np.nansum(one[TIED], axis=1).mean()) for row, one in rows.items() if TIED in one}
    for name, (one, other) in DIFFERENCES.items():
        if one not in rows or other not in rows:
            continue
        values[name] = {metric: values[one][metric] - values[other][metric] for metric in values[one]}
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    summary: dict[str, Any] = {
        "queries": len(labels),
        "gallery": gallery,
        "without_relatives": int((counts[index] == 1).sum()),
        TIED: tied,
    }
    for name, row in values.items():
        summary[name] = {metric: summarize(table, labels, resamples, seed) for metric, table in row.items()}
    return summary
