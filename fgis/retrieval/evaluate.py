"""Protocols and the values that they give: which images are queries, which form the gallery, and every metric.

``closed_set`` is the published protocol: every image is a query, every image is in the gallery, and the head was
trained on all of them. ``unseen_objects`` splits the objects into folds: the queries of a fold are searched by a head
that was trained without its objects, in a gallery of all images, so every image is a query exactly once per seed.
``unseen_gallery`` searches for the same queries in a gallery of unseen objects alone: whatever is fitted to the
training images, even without labels, pushes them away from unseen queries, which flatters ``unseen_objects`` and cannot
flatter this. ``new_photos`` splits the photos of every object instead: a head sees some of them, which are the gallery,
and is tested with the others.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fgis.base import Neighbours, Protocol, RunPlan
from fgis.retrieval.folds import held_out
from fgis.retrieval.metrics import TIED, FoundMetric, find_metric
from fgis.retrieval.ranks import ABSENT_RANK
from fgis.retrieval.rerank import Rerank, first_search
from fgis.retrieval.search import Gallery
from fgis.retrieval.stored import StoredGallery, StoredVectors, depth_groups, search_in, searchable
from fgis.retrieval.stored_ranks import count_in

CANDIDATES = 100  # neighbours that a re-ranking begins with

PerMetric = dict[str, Float[np.ndarray, " q"]]


class Criteria(NamedTuple):
    """What evaluations of the same images have in common."""

    metrics: Sequence[str]  # names, as ``find_metric`` reads them
    distance: str = "cosine"
    coarse: Int[np.ndarray, " n"] | None = None  # coarse labels, which grade the neighbours of ndcg@K
    rerank: Rerank | None = None


def protocol(
    labels: Int[np.ndarray, " n"],
    metrics: Sequence[str],
    queries: Bool[np.ndarray, " n"] | None = None,
    gallery: Bool[np.ndarray, " n"] | None = None,
) -> Protocol:
    """Which images are queries, which form the gallery, and as many neighbours as the metrics read.

    Args:
      labels: of all images, [n].
      metrics: names, as ``find_metric`` reads them.
      queries: [n] whether an image is a query; all are without it.
      gallery: [n] whether an image is in the gallery; all are without it.

    Returns:
      The protocol; its depth is at most the size of the gallery, however large the k of a metric.

    Raises:
      ValueError: an unknown metric.

    >>> protocol(np.array([3, 3, 5]), ["recall@2"], queries=np.array([True, False, False]))
    Protocol(query_rows=array([0]), gallery_rows=array([0, 1, 2]), depth=2)
    """
    largest = int(np.unique(labels, return_counts=True)[1].max(initial=1)) - 1
    rows = np.arange(len(labels))
    query_rows, gallery_rows = (rows if marked is None else rows[marked] for marked in (queries, gallery))
    depth = max((find_metric(name, largest).depth for name in metrics), default=0)
    return Protocol(query_rows, gallery_rows, depth=min(depth, len(gallery_rows)))


def evaluate(
    embeddings: Float[Array | np.ndarray, "n d"] | StoredVectors,
    labels: Int[np.ndarray, " n"],
    protocol: Protocol,
    metrics: Sequence[str],
    distance: str = "cosine",
    coarse: Int[np.ndarray, " n"] | None = None,
    rerank: Rerank | None = None,
) -> PerMetric:
    """The value of every metric for every query of the protocol.

    One ranking serves all metrics: it holds the query itself, which is taken out by its row for the metrics that
    exclude it. Metrics over the whole ranking count what is nearer than each relevant image.

    Args:
      embeddings: of all images, [n, d].
      labels: of all images, [n].
      protocol: queries and gallery, see ``protocol``.
      metrics: names, as ``find_metric`` reads them.
      distance: a key of ``fgis.distances.DISTANCES``.
      coarse: coarse labels [n], which grade the neighbours of ``ndcg@K``; without them there is one grade.
      rerank: orders the first ``CANDIDATES`` neighbours again before they are scored; the metrics over the whole
        ranking are left out then.

    Returns:
      {metric: values [q]}; NaN where a query has no relevant images in the gallery.

    Raises:
      ValueError: an unknown metric or distance, an empty gallery, or an embedding that is NaN or infinite.

    >>> labels = np.array([3, 3, 5, 5])
    >>> points = np.array([[0.0], [1.0], [1.5], [9.0]], np.float32)
    >>> evaluate(points, labels, protocol(labels, ["recall@1"]), ["recall@1"], "euclidean")
    {'recall@1': array([1., 0., 0., 1.])}
    """
    chosen = {name: find_metric(name) for name in metrics}
    embeddings = embeddings if isinstance(embeddings, StoredVectors) else np.asarray(embeddings)
    if rerank:
        queries, vectors = (np.asarray(embeddings)[rows] for rows in protocol[:2])
        depth = min(max(protocol.depth + 1, CANDIDATES), len(vectors))
        neighbours = rerank(first_search(queries, vectors, depth, distance, protocol.gallery_rows))
        return score_neighbours(neighbours, labels, protocol, metrics, coarse)
    gallery = searchable(embeddings, protocol.gallery_rows, distance)
    listed = [name for name, metric in chosen.items() if metric.reads != "ranks"]
    values = _score_lists(embeddings, gallery, labels, protocol, listed, coarse) if listed else {}
    ranked = {name: metric for name, metric in chosen.items() if metric.reads == "ranks"}
    if ranked:
        values |= _score_whole_rankings(embeddings, gallery, labels, protocol, ranked)
    return {name: values[name] for name in metrics}


def _score_lists(
    embeddings: Any, gallery: Gallery | StoredGallery, labels: np.ndarray, protocol: Protocol, metrics: Sequence[str],
    coarse: np.ndarray | None,
) -> PerMetric:  # fmt: skip
    """The metrics over lists of neighbours; queries with many relevant images have longer lists than others."""
    query_rows, gallery_rows, most = protocol
    totals = count_alike(labels, query_rows, gallery_rows) - np.isin(query_rows, gallery_rows)
    sizes, index = np.unique(totals, return_inverse=True)
    needed = np.array([max(find_metric(name, int(size)).depth for name in metrics) for size in sizes], np.int64)
    depths = np.minimum(needed, most)[index]
    values = {name: np.full(len(query_rows), np.nan) for name in metrics}
    for places, depth in depth_groups(depths, embeddings.shape[1]):
        part = Protocol(query_rows[places], gallery_rows, depth)
        neighbours = search_in(embeddings[part.query_rows], gallery, min(depth + 1, len(gallery_rows)))
        neighbours = neighbours._replace(tied=_tied_after(neighbours, depths[places] + 1))
        for name, scored in score_neighbours(neighbours, labels, part, metrics, coarse).items():
            values[name][places] = scored
    return values


def _tied_after(neighbours: Neighbours, counts: Int[np.ndarray, " q"]) -> Bool[np.ndarray, " q"]:
    """Whether the entry after the first ``counts`` of each list is as near as the last of them."""
    distances, behind = neighbours.distances, np.minimum(counts, neighbours.distances.shape[1] - 1)
    last, after = (np.take_along_axis(distances, at[:, None], axis=1)[:, 0] for at in (behind - 1, behind))
    within = np.isfinite(after) & (last == after)
    return np.where(counts < distances.shape[1], within, np.asarray(neighbours.tied, bool))


def score_neighbours(
    neighbours: Neighbours,
    labels: Int[np.ndarray, " n"],
    protocol: Protocol,
    metrics: Sequence[str],
    coarse: Int[np.ndarray, " n"] | None = None,
) -> PerMetric:
    """The metrics that read no more than lists of neighbours, from lists that were already found.

    Args:
      neighbours: of every query, the query itself included, such as re-ranked ones; rows are those of ``labels``.
      labels: of all images, [n].
      protocol: queries and gallery.
      metrics: names, as ``find_metric`` reads them; those over the whole ranking are left out.
      coarse: as in ``evaluate``.

    Returns:
      {metric: values [q]}; NaN where a query has no relevant images in the gallery.

    Raises:
      ValueError: an unknown metric.
    """
    chosen = {name: metric for name in metrics if (metric := find_metric(name)).reads != "ranks"}
    if not chosen:
        return {}
    read = {
        includes_query: _read_neighbours(neighbours, labels, protocol, coarse, includes_query)
        for includes_query in {metric.includes_query for metric in chosen.values()}
    }
    return {name: metric.function(*read[metric.includes_query][metric.reads]()) for name, metric in chosen.items()}


def _read_neighbours(
    neighbours: Neighbours, labels: np.ndarray, protocol: Protocol, coarse: np.ndarray | None, includes_query: bool
) -> dict[str, Callable[[], tuple[np.ndarray, ...]]]:
    """What metrics read of lists of neighbours, by ``FoundMetric.reads``: functions, since each takes O(q k) memory."""
    rows, gallery_rows, own_labels = neighbours.rows, protocol.gallery_rows, labels[protocol.query_rows]
    there, own = rows >= 0, rows == protocol.query_rows[:, None]
    relevance = (labels[rows] == own_labels[:, None]) & there
    totals = count_alike(labels, protocol.query_rows, gallery_rows)
    totals_without_own = totals - np.isin(protocol.query_rows, gallery_rows)
    if includes_query:  # the query itself is no relevant image: one that has no other counts nowhere
        return {"relevance": lambda: (relevance, np.where(totals_without_own > 0, totals, 0))}
    last = np.argsort(own, axis=1, kind="stable")  # the query's own row goes last; the others keep their order
    others = partial(np.take_along_axis, indices=last, axis=1)

    def votes() -> tuple[np.ndarray, ...]:
        distances = others(np.where(own | ~there, np.inf, neighbours.distances))
        return others(labels[rows]), distances, own_labels, totals_without_own

    def grades() -> tuple[np.ndarray, ...]:
        wide = labels if coarse is None else coarse
        same = (wide[rows] == wide[protocol.query_rows][:, None]) & there
        graded = count_alike(wide, protocol.query_rows, gallery_rows) - totals
        grade = others(np.where(own, 0, same + relevance.astype(np.int64)))
        return grade, np.stack([totals_without_own, graded], axis=1)

    return {
        "relevance": lambda: (others(relevance & ~own), totals_without_own),
        "votes": votes,
        "grades": grades,
        "tied": lambda: (np.full(len(rows), np.nan) if neighbours.tied is None else neighbours.tied,),
    }


def count_alike(
    labels: Int[np.ndarray, " n"], query_rows: Int[np.ndarray, " q"], gallery_rows: Int[np.ndarray, " g"]
) -> Int[np.ndarray, " q"]:
    """How many images of the gallery have the label of each query, the query itself included if it is in the gallery.

    >>> count_alike(np.array([3, 3, 5]), np.array([0, 2]), np.array([0, 1]))
    array([2, 0])
    """
    names, counts = np.unique(labels[gallery_rows], return_counts=True)
    place = np.searchsorted(names, labels[query_rows]).clip(max=len(names) - 1)
    return np.where(names[place] == labels[query_rows], counts[place], 0)


def _score_whole_rankings(
    embeddings: Any, gallery: Gallery | StoredGallery, labels: Int[np.ndarray, " n"], protocol: Protocol,
    metrics: Mapping[str, FoundMetric],
) -> PerMetric:  # fmt: skip
    """The metrics over whole rankings, for queries together that have about as many relevant images."""
    query_rows, gallery_rows = protocol.query_rows, protocol.gallery_rows
    order = np.argsort(labels[gallery_rows], kind="stable")  # gallery places, class by class
    start = np.searchsorted(labels[gallery_rows], labels[query_rows], sorter=order)
    totals = count_alike(labels, query_rows, gallery_rows)
    values = {name: np.full(len(query_rows), np.nan) for name in metrics}
    for here, most in depth_groups(totals, embeddings.shape[1]):
        width = np.arange(max(1, most))
        places = np.where(width < totals[here, None], order[(start[here, None] + width).clip(max=len(order) - 1)], -1)
        own = (places >= 0) & (gallery_rows[places] == query_rows[here, None])
        own_place = np.max(np.where(own, places, -1), axis=1, initial=-1)
        places = np.where(own, -1, places)
        ranks = count_in(embeddings[query_rows[here]], gallery, places, own_place)
        ranks = np.sort(np.where(ranks < 0, ABSENT_RANK, ranks), axis=1)
        for name, metric in metrics.items():
            values[name][here] = metric.function(ranks, totals[here] - own.any(axis=1))
    return values


def evaluate_runs(
    embed: Callable[[int], Float[Array | np.ndarray, "n d"] | StoredVectors],
    plans: Sequence[RunPlan],
    folds: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    criteria: Criteria,
    photos: Int[np.ndarray, " n"] | None = None,
    queries: Int[np.ndarray, " m"] | None = None,
) -> dict[str, dict[str, Float[np.ndarray, "s m"]]]:
    """The values of a batch of runs, by evaluation.

    Runs that were trained on every image give ``closed_set``; the others, each on the fold that it was not trained on,
    give ``unseen_objects`` and ``unseen_gallery``, or ``new_photos`` where the fold is one of photos: its images are
    the queries, and all others, which the head has seen, are the gallery.

    Args:
      embed: r -> the embeddings of all images under run r, [n, d].
      plans: the seed and the fold of each run.
      folds: the fold of each image, [n], as of ``object_folds``.
      labels: the object of each image, [n].
      criteria: metrics, distance, coarse labels and re-ranking.
      photos: the fold of photos of each image, [n], as of ``photo_folds``, where there are such runs.
      queries: rows of the images that may be queries, ascending, [m]; all without it.

    Returns:
      {evaluation: {metric: values [seeds, m]}}, seeds ascending; without re-ranking the metric ``tied`` as well:
      which queries were cut off at a tie. NaN for images that were no query or have no relevant images.

    Raises:
      ValueError: as ``evaluate``.
    """
    metrics, distance, coarse, rerank = criteria
    wanted = metrics if rerank else (*metrics, TIED)
    seeds = sorted({plan.seed for plan in plans})
    may, place = np.zeros(len(labels), bool), np.zeros(len(labels), np.int64)
    queries = np.arange(len(labels)) if queries is None else queries
    may[queries], place[queries] = True, np.arange(len(queries))
    values: dict[str, dict[str, Any]] = {}
    for run, plan in enumerate(plans):
        unseen = held_out(plan, folds, photos)
        protocols = {"closed_set": protocol(labels, metrics, queries=may)}
        if plan.photos:
            protocols = {"new_photos": protocol(labels, metrics, queries=unseen & may, gallery=~unseen)}
        elif plan.fold >= 0:
            protocols = {
                "unseen_objects": protocol(labels, metrics, queries=unseen & may),
                "unseen_gallery": protocol(labels, metrics, queries=unseen & may, gallery=unseen),
            }
        embeddings = embed(run)
        for name, one in protocols.items():
            tables = values.setdefault(name, {})
            for metric, per_query in evaluate(embeddings, labels, one, wanted, distance, coarse, rerank).items():
                table = tables.setdefault(metric, np.full((len(seeds), len(queries)), np.nan))
                table[seeds.index(plan.seed), place[one.query_rows]] = per_query
    return values
