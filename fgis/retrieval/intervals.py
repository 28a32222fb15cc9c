"""How sure a mean is: bootstrap intervals over seeds and objects, and the rows of a report with their differences."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fgis.retrieval.metrics import TIED

DRAWS = 1 << 22  # numbers of bootstrap samples at a time, 32 MiB

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
    counts = np.stack([np.bincount(index, ok) for ok in valued])  # as float64, whose products are fast
    if not valued.any():
        return {"mean": float("nan"), "ci95": [float("nan"), float("nan")]}
    total, queries = np.zeros(resamples), np.zeros(resamples)
    for here, seeds_drawn, objects_drawn in _draws(len(values), sums.shape[1], resamples, seed):
        total[here] = (seeds_drawn * (objects_drawn @ sums.T)).sum(axis=1)
        queries[here] = (seeds_drawn * (objects_drawn @ counts.T)).sum(axis=1)
    low, high = np.percentile(total[queries > 0] / queries[queries > 0], [2.5, 97.5])
    return {"mean": float(sums.sum() / counts.sum()), "ci95": [float(low), float(high)]}


def _draws(seeds: int, objects: int, resamples: int, seed: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Blocks of bootstrap samples: how often each seed and each object is drawn, [b, seeds] and [b, objects]."""
    if resamples * objects <= DRAWS:
        yield slice(0, resamples), *_few_draws(seeds, objects, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    seeds_drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples).astype(np.float64)
    size = max(1, DRAWS // objects)
    for start in range(0, resamples, size):
        here = slice(start, min(start + size, resamples))
        drawn = rng.multinomial(objects, np.full(objects, 1 / objects), here.stop - start)
        yield here, seeds_drawn[here], drawn.astype(np.float64)


@lru_cache(4)  # of a report, which summarizes some hundred times by the same draws
def _few_draws(seeds: int, objects: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(n, np.full(n, 1 / n), resamples).astype(np.float64) for n in (seeds, objects)]
    return drawn[0], drawn[1]


def compare(
    rows: Mapping[str, Mapping[str, Float[np.ndarray, "s n"]]],
    labels: Int[np.ndarray, " n"],
    gallery: int,
    resamples: int,
    seed: int,
    gallery_labels: Int[np.ndarray, " g"] | None = None,
) -> dict[str, Any]:
    """One evaluation of a report: every row and every difference, summarized.

    Differences are paired, image by image and seed by seed: ``difference`` is what the head adds to the frozen
    features, ``difference_untrained`` what training adds to the head as it was initialized, ``difference_reranked``
    what re-ranking adds to the trained head.

    Args:
      rows: {row: {metric: values [seeds, images]}}: frozen, trained and, if any, untrained and re-ranked rows.
      labels: the object of each image that is a query, [n].
      gallery: how many images the gallery has.
      resamples: how many bootstrap samples.
      seed: of the bootstrap.
      gallery_labels: the object of each image of the gallery, where not all of them are queries, which are in it.

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
    names, counts = np.unique(labels if gallery_labels is None else gallery_labels, return_counts=True)
    alone = counts[np.searchsorted(names, labels)] == 1
    summary: dict[str, Any] = {
        "queries": len(labels),
        "gallery": gallery,
        "without_relatives": int(alone.sum()),
        TIED: tied,
    }
    for name, row in values.items():
        summary[name] = {metric: summarize(table, labels, resamples, seed) for metric, table in row.items()}
    return summary
