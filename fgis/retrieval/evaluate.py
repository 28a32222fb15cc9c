"""Protocols and the figures they give: who asks, who answers, and how sure the mean is.

``closed_set`` is the published protocol: every image asks, every image answers, and the head has seen them all.
``unseen_objects`` splits the objects into folds: a head trained without a fold's objects answers that fold's queries,
from a gallery of all images, so every image asks exactly once per seed. ``unseen_gallery`` asks the same queries of a
gallery of unseen objects alone: whatever is fitted to the training images, even without labels, pushes them away from
unseen queries, which flatters ``unseen_objects`` and cannot flatter this.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fgis.base import Neighbours, Protocol, RunPlan
from fgis.retrieval.metrics import find_metric
from fgis.retrieval.ranks import count_ranks
from fgis.retrieval.search import Gallery, prepare_gallery, search

TIED = "tied"
Rerank = Callable[..., Neighbours]  # as in ``fgis.retrieval.rerank``
CANDIDATES = 100  # neighbours that a re-ranking begins with
MEMBERS = 1 << 22  # relatives at a time whose ranks are held in memory


def object_folds(labels: Int[np.ndarray, " n"], folds: int, seed: int = 0) -> Int[np.ndarray, " n"]:
    """The fold of every image: objects are shuffled by ``seed`` and dealt out in turn, images follow their object."""
    objects, index = np.unique(labels, return_inverse=True)
    fold_of_object = np.empty(len(objects), np.int64)
    fold_of_object[np.random.default_rng(seed).permutation(len(objects))] = np.arange(len(objects)) % folds
    return fold_of_object[index]


def protocol(
    labels: Int[np.ndarray, " n"],
    metrics: Sequence[str],
    queries: Bool[np.ndarray, " n"] | None = None,
    gallery: Bool[np.ndarray, " n"] | None = None,
) -> Protocol:
    """Images in ``queries`` ask, those in ``gallery`` answer (all without it), as deep as the metrics read."""
    largest = int(np.unique(labels, return_counts=True)[1].max()) - 1
    depth = max(find_metric(name, largest).depth for name in metrics)
    rows = np.arange(len(labels))
    asking, answering = (rows if marked is None else rows[marked] for marked in (queries, gallery))
    return Protocol(asking, answering, depth=depth)


def evaluate(
    embeddings: Float[Array | np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    protocol: Protocol,
    metrics: Sequence[str],
    distance: str = "cosine",
    coarse: Int[np.ndarray, " n"] | None = None,
    rerank: Rerank | None = None,
) -> dict[str, Float[np.ndarray, " q"]]:
    """The value of every metric for every query of the protocol; NaN where a query has no relatives in the gallery.

    One ranking serves all metrics: it holds the query itself, which is taken out by its row for the metrics that
    exclude it (and for all of them where ``protocol.exclude_self``). Metrics over the whole ranking count what is
    nearer than each relative. ``coarse`` labels grade the answers of ``ndcg@K``; without them there is one grade.
    With ``rerank`` the first ``CANDIDATES`` are put into another order before they are judged, and the metrics over
    the whole ranking are left out.
    """
    gallery = prepare_gallery(np.asarray(embeddings)[protocol.gallery_rows], distance, protocol.gallery_rows)
    asked = np.asarray(embeddings)[protocol.query_rows]
    chosen = {name: find_metric(name) for name in metrics}
    if rerank:
        vectors = np.asarray(embeddings)[protocol.gallery_rows]
        depth = min(max(protocol.depth + 1, CANDIDATES), len(vectors))
        first = search(asked, gallery, depth)
        return judge(rerank(asked, vectors, first, distance, protocol.gallery_rows), labels, protocol, metrics, coarse)
    found = search(asked, gallery, protocol.depth + 1) if any(m.reads != "ranks" for m in chosen.values()) else None
    values = judge(found, labels, protocol, metrics, coarse)
    if any(metric.reads == "ranks" for metric in chosen.values()):
        values |= _whole_ranking(asked, gallery, labels, protocol, metrics)
    return {name: values[name] for name in metrics}


def judge(
    found: Neighbours | None,
    labels: Int[np.ndarray, " n"],
    protocol: Protocol,
    metrics: Sequence[str],
    coarse: Int[np.ndarray, " n"] | None = None,
) -> dict[str, Float[np.ndarray, " q"]]:
    """The metrics that read no more than the neighbours ``found``, themselves included, such as re-ranked ones."""
    chosen = {name: metric for name in metrics if (metric := find_metric(name)).reads != "ranks"}
    if found is None or not chosen:
        return {}
    asking, answering = protocol.query_rows, protocol.gallery_rows
    there, asked = found.rows >= 0, labels[asking]
    relevance = (labels[found.rows] == asked[:, None]) & there
    own = found.rows == asking[:, None]
    last = np.argsort(own, axis=1, kind="stable")  # the query's own row goes last; the others keep their order
    others = partial(np.take_along_axis, indices=last, axis=1)
    totals = count_alike(labels, asking, answering)
    totals_without_own = totals - np.isin(asking, answering)
    with_own: dict[str, tuple[np.ndarray, ...]] = {"relevance": (relevance, totals)}
    without_own: dict[str, tuple[np.ndarray, ...]] = {"relevance": (others(relevance & ~own), totals_without_own)}
    without_own["tied"] = (np.full(len(asking), np.nan) if found.tied is None else found.tied,)
    if any(metric.reads == "votes" for metric in chosen.values()):
        distances = others(np.where(own | ~there, np.inf, found.distances))
        without_own["votes"] = (others(labels[found.rows]), distances, asked, totals_without_own)
    if any(metric.reads == "grades" for metric in chosen.values()):
        wide = labels if coarse is None else coarse
        same = (wide[found.rows] == wide[asking][:, None]) & there
        graded = count_alike(wide, asking, answering) - totals
        grades = others(np.where(own, 0, same + relevance.astype(np.int64)))
        without_own["grades"] = (grades, np.stack([totals_without_own, graded], axis=1))
    read = {name: with_own if metric.includes_query else without_own for name, metric in chosen.items()}
    return {name: metric.function(*read[name][metric.reads]) for name, metric in chosen.items()}


def count_alike(
    labels: Int[np.ndarray, " n"], asking: Int[np.ndarray, " q"], answering: Int[np.ndarray, " g"]
) -> Int[np.ndarray, " q"]:
    """How many of ``answering`` bear the label of each of ``asking``."""
    names, counts = np.unique(labels[answering], return_counts=True)
    place = np.searchsorted(names, labels[asking]).clip(max=len(names) - 1)
    return np.where(names[place] == labels[asking], counts[place], 0)


def _whole_ranking(
    asked: Float[np.ndarray, "q d"], gallery: Gallery, labels: Int[np.ndarray, " n"], protocol: Protocol,
    metrics: Sequence[str],
) -> dict[str, Float[np.ndarray, " q"]]:  # fmt: skip
    """The metrics over whole rankings, for the queries of one class after the other."""
    chosen = {name: metric for name in metrics if (metric := find_metric(name)).reads == "ranks"}
    asking, answering = protocol.query_rows, protocol.gallery_rows
    order = np.argsort(labels[answering], kind="stable")  # gallery places, class by class
    start = np.searchsorted(labels[answering], labels[asking], sorter=order)
    totals = count_alike(labels, asking, answering)
    values = {name: np.full(len(asking), np.nan) for name in chosen}
    block = max(1, MEMBERS // max(1, int(totals.max(initial=1))))
    for first in range(0, len(asking), block):
        here = slice(first, first + block)
        width = np.arange(max(1, int(totals[here].max())))
        places = np.where(width < totals[here, None], order[(start[here, None] + width).clip(max=len(order) - 1)], -1)
        own = (places >= 0) & (answering[places] == asking[here, None])
        asker = np.max(np.where(own, places, -1), axis=1, initial=-1)
        places = np.where(own, -1, places)
        ranks, _ = count_ranks(asked[here], gallery, places, left_out=asker)
        ranks = np.sort(np.where(ranks < 0, np.iinfo(np.int64).max - 1, ranks), axis=1)
        for name, metric in chosen.items():
            values[name][here] = metric.function(ranks, totals[here] - own.any(axis=1))
    return values


def summarize(
    values: Float[np.ndarray, "s n"], objects: Int[np.ndarray, " n"], resamples: int = 2000, seed: int = 0
) -> dict[str, float | list[float]]:
    """{"mean", "ci95"} of values [seeds, images]: the mean over queries, and its 95 % percentile bootstrap interval.

    Seeds and objects are resampled, independently of each other; the images of an object stay together, since they
    are not independent. NaN marks images that did not ask, or had no relatives; they count nowhere. The mean of no
    query is NaN.
    """
    _, index = np.unique(objects, return_inverse=True)
    asked = np.isfinite(values)
    sums = np.stack([np.bincount(index, np.where(ok, row, 0)) for row, ok in zip(values, asked, strict=True)])
    counts = np.stack([np.bincount(index, ok) for ok in asked])
    if not asked.any():
        return {"mean": float("nan"), "ci95": [float("nan"), float("nan")]}
    rng = np.random.default_rng(seed)
    seeds_drawn = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), resamples)
    objects_drawn = rng.multinomial(sums.shape[1], np.full(sums.shape[1], 1 / sums.shape[1]), resamples)
    total = ((seeds_drawn @ sums) * objects_drawn).sum(axis=1)
    asked_in_all = ((seeds_drawn @ counts) * objects_drawn).sum(axis=1)
    low, high = np.percentile(total[asked_in_all > 0] / asked_in_all[asked_in_all > 0], [2.5, 97.5])
    return {"mean": float(sums.sum() / counts.sum()), "ci95": [float(low), float(high)]}


def evaluate_runs(
    embed: Callable[[int], Float[Array | np.ndarray, "n d"]],
    plans: Sequence[RunPlan],
    folds: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    metrics: Sequence[str],
    distance: str,
    coarse: Int[np.ndarray, " n"] | None = None,
    rerank: Rerank | None = None,
) -> dict[str, dict[str, Float[np.ndarray, "s n"]]]:
    """{evaluation: {metric: [seeds, images]}} of a batch of runs; ``embed(r)`` embeds all images under run r.

    Besides the metrics each first search tells which queries it had to cut off at a tie: ``TIED``.

    Runs that saw every object give ``closed_set``; the others, each on the fold it has not seen, give
    ``unseen_objects`` and ``unseen_gallery``.
    """
    seeds = sorted({plan.seed for plan in plans})
    values: dict[str, dict[str, np.ndarray]] = {}
    for run, plan in enumerate(plans):
        unseen = folds == plan.fold
        asked = {"closed_set": protocol(labels, metrics)}
        if plan.fold >= 0:
            asked = {
                "unseen_objects": protocol(labels, metrics, queries=unseen),
                "unseen_gallery": protocol(labels, metrics, queries=unseen, gallery=unseen),
            }
        embeddings = embed(run)
        for name, asking in asked.items():
            table = values.setdefault(name, {})
            wanted = metrics if rerank else (*metrics, TIED)
            for key, found in evaluate(embeddings, labels, asking, wanted, distance, coarse, rerank).items():
                table.setdefault(key, np.full((len(seeds), len(labels)), np.nan))
                table[key][seeds.index(plan.seed), asking.query_rows] = found
    return values


DIFFERENCES = {
    "difference": ("trained", "frozen"),
    "difference_untrained": ("trained", "untrained"),
    "difference_reranked": ("reranked", "trained"),
}


def compare(
    rows: dict[str, dict[str, Float[np.ndarray, "s n"]]],
    labels: Int[np.ndarray, " n"],
    gallery: int,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """One evaluation of a report, from {row: {metric: values}}: frozen, trained and, if any, untrained rows.

    Differences are paired, image by image and seed by seed: ``difference`` is what the head adds to the frozen
    features, ``difference_untrained`` what training adds to the head as it began, ``difference_reranked`` what
    re-ranking adds to the trained head. ``tied``: for how many queries (mean over seeds) the row numbers, and not the
    distances, decided what was cut off.
    """
    values = {row: {name: table for name, table in one.items() if name != TIED} for row, one in rows.items()}
    tied = {row: float(np.nansum(one[TIED], axis=1).mean()) for row, one in rows.items() if TIED in one}
    for name, (one, other) in DIFFERENCES.items():
        if one not in rows or other not in rows:
            continue
        values[name] = {metric: values[one][metric] - values[other][metric] for metric in values[one]}
    relatives = np.unique(labels, return_inverse=True, return_counts=True)
    return {
        "queries": len(labels),
        "gallery": gallery,
        "without_relatives": int((relatives[2][relatives[1]] == 1).sum()),
        TIED: tied,
    } | {
        name: {metric: summarize(table, labels, resamples, seed) for metric, table in row.items()}
        for name, row in values.items()
    }
