"""Metrics per query on ranked relevance; means and intervals come last, over objects.

``relevance[q, i]`` says whether the i-th answer of query q bears its label, ``totals[q]`` how many of the gallery do
(with or without the query itself, as ``METRICS`` says). A query without relatives has no value: NaN, left out of the
mean and counted.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fgis.types import Metric, UserError

Relevance = Bool[np.ndarray, "q k"]
Totals = Int[np.ndarray, " q"]
PerQuery = Float[np.ndarray, " q"]


def ns_score(relevance: Relevance, totals: Totals) -> PerQuery:
    """Hits in the top 4, the query among the gallery: 0 to 4 (Nistér & Stewénius 2006)."""
    return _defined(relevance[:, :4].sum(axis=1), totals)


def accuracy_top4(relevance: Relevance, totals: Totals) -> PerQuery:
    """ns_score / 4: the published experiment's figure."""
    return ns_score(relevance, totals) / 4


def recall(relevance: Relevance, totals: Totals, k: int) -> PerQuery:
    """1 if any relative is in the top k, else 0: metric learning's recall, not information retrieval's."""
    return _defined(np.any(relevance[:, :k], axis=1), totals)


def precision(relevance: Relevance, totals: Totals, k: int) -> PerQuery:
    """Hits in the top k / k; at best min(R, k) / k."""
    return _defined(relevance[:, :k].sum(axis=1) / k, totals)


def r_precision(relevance: Relevance, totals: Totals) -> PerQuery:
    """Hits in the top R / R, with R the number of the query's relatives."""
    within = np.arange(relevance.shape[1]) < totals[:, None]
    return _defined((relevance & within).sum(axis=1) / np.maximum(totals, 1), totals)


def map_at_r(relevance: Relevance, totals: Totals) -> PerQuery:
    """(1/R) Σ_{i≤R} P(i) · rel(i), with P(i) the precision at i (Musgrave 2020, arXiv:2003.08505)."""
    within = np.arange(relevance.shape[1]) < totals[:, None]
    precisions = np.cumsum(relevance, axis=1) / np.arange(1, relevance.shape[1] + 1)
    return _defined((precisions * (relevance & within)).sum(axis=1) / np.maximum(totals, 1), totals)


def _defined(values: np.ndarray, totals: Totals) -> PerQuery:
    return np.where(totals > 0, values.astype(np.float64), np.nan)


class Kind(NamedTuple):
    """A row of ``METRICS``: its function, whether the query stays in its own list, and the depth it reads."""

    function: Callable[..., PerQuery]
    includes_query: bool
    depth: Callable[[int, int], int]  # (k, largest R) -> ranks
    takes_k: bool = False


METRICS = {
    "ns_score": Kind(ns_score, True, lambda k, r: 4),
    "accuracy_top4": Kind(accuracy_top4, True, lambda k, r: 4),
    "recall": Kind(recall, False, lambda k, r: k, takes_k=True),
    "precision": Kind(precision, False, lambda k, r: k, takes_k=True),
    "r_precision": Kind(r_precision, False, lambda k, r: r),
    "map@r": Kind(map_at_r, False, lambda k, r: r),
}


def find_metric(name: str, largest_total: int = 1) -> tuple[Metric, bool, int]:
    """(metric, whether the query stays in its list, ranks it reads) of a name such as ``ns_score`` or ``recall@4``.

    Raises:
      UserError: no such metric, or a k that is no positive number.
    """
    base, _, k = name.partition("@") if name not in METRICS else (name, "", "")
    kind = METRICS.get(base)
    if kind is None or kind.takes_k != bool(k) or (k and not (k.isdecimal() and int(k) > 0)):
        known = ", ".join(key + "@K" * kind.takes_k for key, kind in METRICS.items())
        raise UserError(f"evaluation.metrics: {name!r} is no metric; write one of {known}")
    if not kind.takes_k:
        return kind.function, kind.includes_query, kind.depth(0, largest_total)
    function = kind.function
    return (lambda relevance, totals: function(relevance, totals, int(k))), kind.includes_query, int(k)
