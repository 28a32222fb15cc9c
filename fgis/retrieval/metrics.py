"""Metrics per query; means and intervals come last, over objects.

They read what is known of each query's ranking: ``relevance[q, i]``, whether the i-th answer bears its label, and
``totals[q]``, how many of the gallery do; ``ranks[q, j]``, the ascending 0-based ranks of its relatives in the whole
gallery (the first ``totals[q]`` count); ``grades`` 2, 1, 0 of the answers, for the same fine class, the same coarse one
or neither, with ``graded[q]``, how many there are of 2 and of 1; or the ``votes`` of the answers. ``METRICS`` says
which, and whether the query itself is among them. A query without relatives has no value: NaN, left out of the mean and
counted.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fgis.errors import UserError
from fgis.retrieval.vote import vote

Relevance = Bool[np.ndarray, "q k"]
Totals = Int[np.ndarray, " q"]
Ranks = Int[np.ndarray, "q r"]
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


def reciprocal_rank_at_k(relevance: Relevance, totals: Totals, k: int) -> PerQuery:
    """1 / (rank of the first relative, from 1) where it is in the top k, else 0."""
    hits = relevance[:, :k]
    return _defined(hits.any(axis=1) / (1 + hits.argmax(axis=1)) if hits.shape[1] else np.zeros(len(hits)), totals)


def average_precision(ranks: Ranks, totals: Totals) -> PerQuery:
    """(1/R) Σ_j j / (rank_j + 1), j = 1 … R: over the whole ranking, by the rectangle rule."""
    return _per_relative((np.arange(ranks.shape[1]) + 1) / (ranks + 1), totals)


def average_precision_trapezoid(ranks: Ranks, totals: Totals) -> PerQuery:
    """(1/R) Σ_j ½ (P before + P at the j-th relative): the rule of Oxford, Paris and Holidays.

    With rank_j ≥ j − 1 counted from 0: P before is (j − 1) / rank_j, or 1 at rank 0, and P at it j / (rank_j + 1).
    Ranks 0, 1 and 3 give .9028 where the rectangle rule gives .9167.
    """
    j = np.arange(ranks.shape[1])
    before = np.where(ranks > 0, j / np.maximum(ranks, 1), 1.0)
    return _per_relative((before + (j + 1) / (ranks + 1)) / 2, totals)


def reciprocal_rank(ranks: Ranks, totals: Totals) -> PerQuery:
    """1 / (rank of the first relative, from 1), however deep it is."""
    first = ranks[:, 0] if ranks.shape[1] else np.zeros(len(ranks), int)
    return _defined(1 / (first + 1.0), totals)


def ndcg(grades: Int[np.ndarray, "q k"], graded: Int[np.ndarray, "q 2"], k: int) -> PerQuery:
    """Σ_{i≤k} (2^grade − 1) / log₂(1 + i), over the same sum of the ideal ranking, truncated at k (Järvelin 2002).

    Grades are 2 for the same fine class and 1 for the same coarse one. NaN where nothing in the gallery has a grade.
    """
    discounts = 1 / np.log2(2 + np.arange(k))
    gains = (2.0 ** grades[:, :k] - 1) @ discounts[: grades.shape[1]]
    upto = np.concatenate([[0], np.cumsum(discounts)])
    best, all_graded = np.minimum(graded[:, 0], k), np.minimum(graded.sum(axis=1), k)
    ideal = 3 * upto[best] + (upto[all_graded] - upto[best])
    return np.where(ideal > 0, gains / np.where(ideal > 0, ideal, 1), np.nan)


def _per_relative(values: Float[np.ndarray, "q r"], totals: Totals) -> PerQuery:
    within = np.arange(values.shape[1]) < totals[:, None]
    return _defined(np.where(within, values, 0).sum(axis=1) / np.maximum(totals, 1), totals)


def _defined(values: np.ndarray, totals: Totals) -> PerQuery:
    return np.where(totals > 0, np.asarray(values, np.float64), np.nan)


def knn(
    labels: Int[np.ndarray, "q k"], distances: Float[np.ndarray, "q k"], own: Totals, totals: Totals, k: int,
    weighting: str = "majority",
) -> PerQuery:  # fmt: skip
    """1 if the k nearest vote for the query's own label, else 0; see ``fgis.retrieval.vote``."""
    return _defined(vote(labels[:, :k], distances[:, :k], weighting) == own, totals)


knn_weighted = partial(knn, weighting="dudani")


def tied_at_the_cut(tied: Any) -> PerQuery:
    """1 where an image that the list leaves out is as near as its last one, else 0."""
    return np.asarray(tied, np.float64)


class Kind(NamedTuple):
    """A row of ``METRICS``: its function, what it reads, and the depth it reads to; ``k`` where its name ends in @K."""

    function: Callable
    reads: str  # relevance, ranks, grades, votes or tied
    depth: Callable[[int, int], int] = lambda k, r: k  # (k, largest R) -> answers
    takes_k: bool = True
    includes_query: bool = False


METRICS = {
    "ns_score": Kind(ns_score, "relevance", lambda k, r: 4, takes_k=False, includes_query=True),
    "accuracy_top4": Kind(accuracy_top4, "relevance", lambda k, r: 4, takes_k=False, includes_query=True),
    "recall": Kind(recall, "relevance"),
    "precision": Kind(precision, "relevance"),
    "r_precision": Kind(r_precision, "relevance", lambda k, r: r, takes_k=False),
    "map@r": Kind(map_at_r, "relevance", lambda k, r: r, takes_k=False),
    "mrr": Kind(reciprocal_rank, "ranks", lambda k, r: 0, takes_k=False),
    "mrr@k": Kind(reciprocal_rank_at_k, "relevance"),
    "map": Kind(average_precision, "ranks", lambda k, r: 0, takes_k=False),
    "map_trapezoid": Kind(average_precision_trapezoid, "ranks", lambda k, r: 0, takes_k=False),
    "ndcg": Kind(ndcg, "grades"),
    "tied": Kind(tied_at_the_cut, "tied", lambda k, r: 0, takes_k=False),
    "knn": Kind(knn, "votes"),
    "knn_weighted": Kind(knn_weighted, "votes"),
}


class Chosen(NamedTuple):
    """One metric of an evaluation, ready to be called with what it reads."""

    function: Callable[..., PerQuery]
    reads: str
    includes_query: bool
    depth: int


def find_metric(name: str, largest_total: int = 1) -> Chosen:
    """The metric of a name such as ``ns_score``, ``recall@4`` or ``mrr``, where no query has more relatives than that.

    Raises:
      UserError: no such metric, or a k that is no positive number.
    """
    kind, k = METRICS.get(name), ""
    if kind is not None and not kind.takes_k:
        return Chosen(kind.function, kind.reads, kind.includes_query, kind.depth(0, largest_total))
    base, _, k = name.partition("@")
    kind = METRICS.get(f"{base}@k") or METRICS.get(base)
    if kind is None or not kind.takes_k or not (k.isdecimal() and int(k) > 0):
        known = ", ".join(key.removesuffix("@k") + "@K" * kind.takes_k for key, kind in METRICS.items())
        raise UserError(f"config.evaluation.metrics: {name!r} is no metric; write one of {known}")
    return Chosen(partial(kind.function, k=int(k)), kind.reads, kind.includes_query, int(k))
