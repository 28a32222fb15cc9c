"""Metrics per query; means and intervals come last, over objects.

A relevant image of a query is one of the gallery that has the query's label. Metrics read what is known of the ranking
of each query:

- ``relevance`` [q, k]: whether the i-th neighbour is relevant, with ``totals`` [q], the relevant images in the gallery;
- ``ranks`` [q, r]: the ascending 0-based ranks of the relevant images in the whole ranking (the first ``totals[q]``
  count), with ``totals``;
- ``grades`` [q, k]: 2, 1 or 0 for a neighbour of the same fine class, of the same coarse one, or of neither, with
  ``graded`` [q, 2], how many images of the gallery have the grade 2, and the grade 1;
- the ``labels`` and ``distances`` [q, k] of the neighbours, which vote.

``METRICS`` says which, and whether the query itself is part of the ranking. A query without relevant images has no
value: NaN, left out of the mean and counted. A k beyond the gallery gives the value over the whole gallery (precision
still divides by k) and takes no more memory than the gallery.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fgis.ranges import Count, nearest
from fgis.retrieval.vote import Weighting, vote

Relevance = Bool[np.ndarray, "q k"]
Totals = Int[np.ndarray, " q"]
Ranks = Int[np.ndarray, "q r"]
PerQuery = Float[np.ndarray, " q"]

TIED = "tied"  # the metric that tells which queries were cut off at a tie
DIGITS = 18  # of the largest k, which has to fit into 64 bits


def ns_score(relevance: Relevance, totals: Totals) -> PerQuery:
    """Relevant images in the top 4, the query itself among them: 0 to 4; NaN of a query without any other.

    Args:
      relevance: of the neighbours, the query included, [q, k].
      totals: relevant images in the gallery, the query included, [q].

    Returns:
      Values [q].

    Reference: Nistér and Stewénius, Scalable recognition with a vocabulary tree, CVPR 2006.

    >>> ns_score(np.array([[True, True, False, True, True]]), np.array([4]))
    array([3.])
    """
    return _nan_without_relevant(relevance[:, :4].sum(axis=1), totals)


def accuracy_top4(relevance: Relevance, totals: Totals) -> PerQuery:
    """``ns_score`` / 4: the figure of the published experiment.

    >>> accuracy_top4(np.array([[True, True, False, True, True]]), np.array([4]))
    array([0.75])
    """
    return ns_score(relevance, totals) / 4


def recall(relevance: Relevance, totals: Totals, *, k: Count) -> PerQuery:
    """1 if any relevant image is in the top k, else 0: metric learning's recall, not information retrieval's.

    Args:
      relevance: of the neighbours, the query excluded, [q, k'].
      totals: relevant images in the gallery, the query excluded, [q].
      k: how many neighbours count.

    Returns:
      Values [q].

    >>> [recall(np.array([[False, True, True]]), np.array([3]), k=k).item() for k in (1, 2)]
    [0.0, 1.0]
    """
    return _nan_without_relevant(np.any(relevance[:, :k], axis=1), totals)


def precision(relevance: Relevance, totals: Totals, *, k: Count) -> PerQuery:
    """Relevant images in the top k / k; at best min(R, k) / k. Arguments as of ``recall``.

    >>> precision(np.array([[False, True, True, True]]), np.array([3]), k=2)
    array([0.5])
    """
    return _nan_without_relevant(relevance[:, :k].sum(axis=1) / k, totals)


def r_precision(relevance: Relevance, totals: Totals) -> PerQuery:
    """Relevant images in the top R / R, with R the number of relevant images of the query.

    Args:
      relevance: of the neighbours, the query excluded, [q, k] with k of at least R (or the whole gallery).
      totals: R of each query, [q].

    Returns:
      Values [q].

    >>> r_precision(np.array([[True, False, True, True]]), np.array([3])).round(4)
    array([0.6667])
    """
    within = np.arange(relevance.shape[1]) < totals[:, None]
    return _nan_without_relevant((relevance & within).sum(axis=1) / np.maximum(totals, 1), totals)


def map_at_r(relevance: Relevance, totals: Totals) -> PerQuery:
    """(1/R) Σ_{i≤R} P(i) · rel(i), with P(i) the precision at i. Arguments as of ``r_precision``.

    Reference: Musgrave, Belongie and Lim, A metric learning reality check, ECCV 2020, arXiv:2003.08505.

    >>> map_at_r(np.array([[True, False, True, True]]), np.array([3])).round(4)  # (1/1 + 2/3) / 3
    array([0.5556])
    """
    within = np.arange(relevance.shape[1]) < totals[:, None]
    precisions = np.cumsum(relevance, axis=1) / np.arange(1, relevance.shape[1] + 1)
    return _nan_without_relevant(_sum_of_row(precisions * (relevance & within)) / np.maximum(totals, 1), totals)


def reciprocal_rank_at_k(relevance: Relevance, totals: Totals, *, k: Count) -> PerQuery:
    """1 / (rank of the first relevant image, from 1) where it is in the top k, else 0. Arguments as of ``recall``.

    >>> reciprocal_rank_at_k(np.array([[False, True, True]]), np.array([3]), k=3)
    array([0.5])
    """
    hits = relevance[:, :k]
    values = hits.any(axis=1) / (1 + hits.argmax(axis=1)) if hits.shape[1] else np.zeros(len(hits))
    return _nan_without_relevant(values, totals)


def average_precision(ranks: Ranks, totals: Totals) -> PerQuery:
    """(1/R) Σ_j j / (rank_j + 1), j = 1 … R: over the whole ranking, by the rectangle rule.

    Args:
      ranks: of the relevant images, from 0, ascending, [q, r]; those beyond ``totals`` do not count.
      totals: R of each query, [q].

    Returns:
      Values [q].

    >>> average_precision(np.array([[0, 1, 3]]), np.array([3])).round(4)
    array([0.9167])
    """
    return _mean_over_relevant((np.arange(ranks.shape[1]) + 1) / (ranks + 1), totals)


def average_precision_trapezoid(ranks: Ranks, totals: Totals) -> PerQuery:
    """(1/R) Σ_j ½ (P before + P at the j-th relevant image): the rule of Oxford, Paris and Holidays.

    With rank_j ≥ j − 1 counted from 0: P before is (j − 1) / rank_j, or 1 at rank 0, and P at it j / (rank_j + 1).
    Arguments as of ``average_precision``.

    Reference: Philbin, Chum, Isard, Sivic and Zisserman, Object retrieval with large vocabularies, CVPR 2007.

    >>> average_precision_trapezoid(np.array([[0, 1, 3]]), np.array([3])).round(4)
    array([0.9028])
    """
    j = np.arange(ranks.shape[1])
    before = np.where(ranks > 0, j / np.maximum(ranks, 1), 1.0)
    return _mean_over_relevant((before + (j + 1) / (ranks + 1)) / 2, totals)


def reciprocal_rank(ranks: Ranks, totals: Totals) -> PerQuery:
    """1 / (rank of the first relevant image, from 1), however deep it is. Arguments as of ``average_precision``.

    >>> reciprocal_rank(np.array([[4, 9]]), np.array([2]))
    array([0.2])
    """
    first = ranks[:, 0] if ranks.shape[1] else np.zeros(len(ranks), int)
    return _nan_without_relevant(1 / (first + 1.0), totals)


def ndcg(grades: Int[np.ndarray, "q k"], graded: Int[np.ndarray, "q 2"], *, k: Count) -> PerQuery:
    """Σ_{i≤k} (2^grade − 1) / log₂(1 + i), over the same sum of the ideal ranking, truncated at k.

    Args:
      grades: of the neighbours, the query excluded, [q, k']: 2 for the same fine class, 1 for the same coarse one.
      graded: how many images of the gallery have the grade 2, and how many the grade 1, [q, 2].
      k: how many neighbours count.

    Returns:
      Values [q] in [0, 1]; NaN where nothing in the gallery has a grade.

    Reference: Järvelin and Kekäläinen, Cumulated gain-based evaluation of IR techniques, TOIS 2002.

    >>> ndcg(np.array([[1, 2]]), np.array([[1, 1]]), k=1).round(4)  # a gain of 1, of 3 at best
    array([0.3333])
    """
    k = min(k, max(grades.shape[1], int(graded.sum(axis=1).max(initial=1))))  # nothing beyond has a gain
    discounts = 1 / np.log2(2 + np.arange(k))
    gains = np.einsum("qk,k->q", 2.0 ** grades[:, :k] - 1, discounts[: grades.shape[1]])
    upto = np.concatenate([[0], np.cumsum(discounts)])
    best, all_graded = np.minimum(graded[:, 0], k), np.minimum(graded.sum(axis=1), k)
    ideal = 3 * upto[best] + (upto[all_graded] - upto[best])
    return np.where(ideal > 0, gains / np.where(ideal > 0, ideal, 1), np.nan)


def knn(
    labels: Int[np.ndarray, "q k"], distances: Float[np.ndarray, "q k"], own: Totals, totals: Totals, *, k: Count,
    weighting: Weighting = "majority",
) -> PerQuery:  # fmt: skip
    """1 if the k nearest vote for the query's own label, else 0; see ``fgis.retrieval.vote``.

    Args:
      labels: of the neighbours, the query excluded, [q, k'].
      distances: of the neighbours, ascending, [q, k']; infinite where there is none.
      own: the label of each query, [q].
      totals: relevant images in the gallery, the query excluded, [q].
      k: how many neighbours vote.
      weighting: what a vote weighs.

    Returns:
      Values [q].

    >>> knn(np.array([[7, 5, 5]]), np.array([[0.1, 0.2, 0.3]]), np.array([5]), np.array([2]), k=3)
    array([1.])
    """
    return _nan_without_relevant(vote(labels[:, :k], distances[:, :k], weighting=weighting) == own, totals)


knn_weighted = partial(knn, weighting="dudani")


def tied_at_the_cut(tied: Any) -> PerQuery:
    """1 where an image that the list leaves out is as near as its last one, else 0.

    >>> tied_at_the_cut(np.array([True, False]))
    array([1., 0.])
    """
    return np.asarray(tied, np.float64)


def _mean_over_relevant(values: Float[np.ndarray, "q r"], totals: Totals) -> PerQuery:
    within = np.arange(values.shape[1]) < totals[:, None]
    return _nan_without_relevant(_sum_of_row(np.where(within, values, 0)) / np.maximum(totals, 1), totals)


def _sum_of_row(values: Float[np.ndarray, "q r"]) -> PerQuery:
    """Sums from left to right: zeros behind, where the list of another query is longer, do not change a bit."""
    return np.cumsum(values, axis=1)[:, -1] if values.shape[1] else np.zeros(len(values))


def _nan_without_relevant(values: np.ndarray, totals: Totals) -> PerQuery:
    return np.where(totals > 0, np.asarray(values, np.float64), np.nan)


class MetricEntry(NamedTuple):
    """A line of ``METRICS``: a function, what it reads, and how deep; ``k`` comes from a name that ends in @K."""

    function: Callable[..., PerQuery]
    reads: str  # relevance, ranks, grades, votes or tied
    depth: Callable[[int, int], int] = lambda k, r: k  # (k, largest R) -> neighbours that it needs
    takes_k: bool = True
    includes_query: bool = False


METRICS: dict[str, MetricEntry] = {
    "ns_score": MetricEntry(ns_score, "relevance", lambda k, r: 4, takes_k=False, includes_query=True),
    "accuracy_top4": MetricEntry(accuracy_top4, "relevance", lambda k, r: 4, takes_k=False, includes_query=True),
    "recall": MetricEntry(recall, "relevance"),
    "precision": MetricEntry(precision, "relevance"),
    "r_precision": MetricEntry(r_precision, "relevance", lambda k, r: r, takes_k=False),
    "map@r": MetricEntry(map_at_r, "relevance", lambda k, r: r, takes_k=False),
    "mrr": MetricEntry(reciprocal_rank, "ranks", lambda k, r: 0, takes_k=False),
    "mrr@k": MetricEntry(reciprocal_rank_at_k, "relevance"),
    "map": MetricEntry(average_precision, "ranks", lambda k, r: 0, takes_k=False),
    "map_trapezoid": MetricEntry(average_precision_trapezoid, "ranks", lambda k, r: 0, takes_k=False),
    "ndcg": MetricEntry(ndcg, "grades"),
    TIED: MetricEntry(tied_at_the_cut, "tied", lambda k, r: 0, takes_k=False),
    "knn": MetricEntry(knn, "votes"),
    "knn_weighted": MetricEntry(knn_weighted, "votes"),
}


class FoundMetric(NamedTuple):
    """One metric of an evaluation, ready to be called with what it reads."""

    function: Callable[..., PerQuery]
    reads: str
    includes_query: bool
    depth: int  # neighbours that it needs, in a gallery that is large enough


def find_metric(name: str, largest_total: int = 1) -> FoundMetric:
    """The metric of a name.

    Args:
      name: a key of ``METRICS``, with @K where it takes a k: ``ns_score``, ``recall@4``, ``mrr``, ``mrr@10``.
      largest_total: the most relevant images that a query has.

    Returns:
      The metric and how deep it reads.

    Raises:
      ValueError: no such metric, or a k that is no whole number of at least 1.

    >>> find_metric("recall@4").depth, find_metric("map@r", largest_total=9).depth
    (4, 9)
    >>> find_metric("recal@4")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: 'recal@4' is no metric; did you mean 'recall@K'? known: accuracy_top4, knn@K, ...
    """
    entry = METRICS.get(name)
    if entry is not None and not entry.takes_k:
        return FoundMetric(entry.function, entry.reads, entry.includes_query, entry.depth(0, largest_total))
    base, _, k = name.partition("@")
    entry = METRICS.get(f"{base}@k") or METRICS.get(base)
    if entry is None or not entry.takes_k or not (k.isdecimal() and len(k) <= DIGITS and int(k) > 0):
        known = [key.removesuffix("@k") + "@K" * entry.takes_k for key, entry in METRICS.items()]
        raise ValueError(f"{name!r} is no metric; {nearest(name, known)}")
    return FoundMetric(partial(entry.function, k=int(k)), entry.reads, entry.includes_query, int(k))
