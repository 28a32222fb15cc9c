"""The evaluations of a run as the numbers of a report: every protocol, for frozen, untrained and trained embeddings."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgis.base import RunPlan
from fgis.errors import naming
from fgis.experiment.build import Scoring, build_rerank
from fgis.experiment.embedding import embed_with
from fgis.experiment.run import Run
from fgis.experiment.transfer import open_transfer
from fgis.learning.train import init_states
from fgis.retrieval import open_set, triplets
from fgis.retrieval.evaluate import Criteria, count_alike, evaluate, evaluate_runs, protocol
from fgis.retrieval.intervals import compare, summarize
from fgis.retrieval.stored import search_in, searchable

COMPLETE = "r_precision"  # 1 where the relevant images of a query come before all others
NEIGHBOURS = 100  # of each query that are saved on demand
EmbedRun = Callable[[int], Any]  # a run -> the embeddings of all images, [n, d]
PerQuery = dict[str, dict[str, Float[np.ndarray, "s q"]]]  # evaluation -> metric -> a value per seed and query


class ReportRow(NamedTuple):
    """One row of a report before it is measured: embeddings by run, and the runs that count."""

    embed: EmbedRun
    plans: Sequence[RunPlan]


class OpenSetScores(NamedTuple):
    """Distances of queries to their nearest images, [seeds, queries] each; see ``fgis.retrieval.open_set``."""

    known: Float[np.ndarray, "s q"]  # to the nearest other image
    right: np.ndarray  # whether that image shows the object of the query
    unknown: Float[np.ndarray, "s q"]  # to the nearest image of another object


class Evaluated(NamedTuple):
    """All that was measured of a run on its own images."""

    evaluations: dict[str, Any]  # as ``report.json`` holds them
    per_query: dict[str, PerQuery]  # by row
    complete: dict[str, Float[np.ndarray, "s q"]]  # by evaluation: ``COMPLETE`` of the trained heads
    trained: EmbedRun
    queries: Int[np.ndarray, " q"]  # the images that are queries


def choose_queries(run: Run, among: Int[np.ndarray, " m"]) -> Int[np.ndarray, " q"]:
    """The images that are queries of evaluations: all, or ``config.evaluation.queries`` of them, drawn by the seed."""
    most = run.settings.evaluation.queries
    if not most or most >= len(among):
        return among
    return np.sort(np.random.default_rng(run.scoring.seed).permutation(among)[:most])


def report_rows(run: Run) -> dict[str, ReportRow]:
    """The rows ``frozen``, ``untrained`` and ``trained`` on the images of the run."""
    experiment, scoring, features = run.experiment, run.scoring, run.features
    untrained = init_states(experiment.recipe, experiment.runs).params
    return {
        "frozen": ReportRow(lambda _: run.frozen, [plan for plan in experiment.plans if plan.seed == scoring.seed]),
        "untrained": ReportRow(partial(embed_with, scoring, untrained, features), experiment.plans),
        "trained": ReportRow(partial(run.embed, features), experiment.plans),
    }


def evaluate_run(run: Run, triplet_file: str = "", *, strict: bool = False) -> Evaluated:
    """Every evaluation of a run on the images that it was trained on, or held out from training.

    Args:
      run: with parameters.
      triplet_file: a CSV file of (query, positive, negative) image ids to score as well; none if empty.
      strict: refuse a triplet file with a line that cannot be scored, instead of leaving the line out.

    Raises:
      UserError: the triplet file cannot be read, or names other images.
    """
    labels, folds, scoring = run.rows.labels, run.experiment.folds, run.scoring
    triplet_list = read_triplet_list(run, triplet_file, strict) if triplet_file else None
    rows = report_rows(run)
    photos = run.experiment.photo_folds
    queries = choose_queries(run, np.arange(len(labels)))
    found = score_rows(run, rows, folds, photos, queries)
    complete = {name: table[COMPLETE] for name, table in found["trained"].items()}
    if COMPLETE not in scoring.metrics:
        for table in (table for row in found.values() for table in row.values()):
            table.pop(COMPLETE, None)
    gallery_size = {"unseen_gallery": int(np.bincount(folds).max())}
    if run.settings.photo_folds:  # the largest, as above
        gallery_size["new_photos"] = len(labels) - int(np.bincount(photos[photos >= 0]).min())
    evaluations: dict[str, Any] = {
        name: compare(
            {row: found[row][name] for row in found}, labels[queries], gallery_size.get(name, len(labels)),
            scoring.resamples, scoring.seed, labels,
        )
        for name in found["trained"]
    }  # fmt: skip
    scores = {name: open_set_scores(row, folds, labels, scoring.distance, queries) for name, row in rows.items()}
    if scores["trained"]:
        evaluations["open_set"] = open_set_figures(scores, labels, queries, scoring)
    if triplet_list is not None:
        evaluations["triplets"] = triplet_figures(rows, triplet_list, folds, labels, scoring)
    if other := open_transfer(run):
        other.set_checkpoint(run.step, run.params)
        evaluations |= evaluate_transfer(other, init_states(run.experiment.recipe, run.experiment.runs).params)
    return Evaluated(evaluations, found, complete, rows["trained"].embed, queries)


def read_triplet_list(run: Run, path: str, strict: bool) -> triplets.TripletFile:
    """The triplets that ``--triplets`` names, of images of the run's feature file.

    Raises:
      UserError: the file cannot be read, or, with ``strict``, has a line that cannot be scored.
    """
    with naming("--triplets="):
        return triplets.read_triplets(path, run.rows.image_ids, on_bad_line="stop" if strict else "skip")


def score_rows(
    run: Run, rows: Mapping[str, ReportRow], folds: Int[np.ndarray, " n"], photos: Int[np.ndarray, " n"],
    queries: Int[np.ndarray, " q"],
) -> dict[str, PerQuery]:  # fmt: skip
    """Every metric of every row, with ``COMPLETE`` among them, and re-ranked rows where the run has a re-ranking."""
    scoring, labels = run.scoring, run.rows.labels
    criteria = Criteria(tuple(dict.fromkeys((*scoring.metrics, COMPLETE))), scoring.distance, run.rows.coarse)
    score = lambda row, how: evaluate_runs(row.embed, row.plans, folds, labels, how, photos, queries)
    found = {name: score(row, criteria) for name, row in rows.items()}
    if rerank := build_rerank(run.settings.rerank):
        again = criteria._replace(metrics=scoring.metrics, rerank=rerank)
        for name, reranked in (("frozen", "frozen_reranked"), ("trained", "reranked")):
            found[reranked] = score(rows[name], again)
    return found


def evaluate_transfer(
    run: Run, untrained: Any = None, triplet_list: triplets.TripletFile | None = None
) -> dict[str, Any]:
    """Heads on the images of another feature file, none of which they were trained on.

    Heads that were trained on all objects of their own file are used, where the run has such.

    Args:
      run: its feature file is the other one, its parameters are the trained ones.
      untrained: the parameters of the same runs before training; there is no row ``untrained`` without them.
      triplet_list: triplets of these images to score as well; none of them was trained on.

    Returns:
      {"transfer", "transfer_open_set"}: all images are queries, and the gallery holds these images alone. Where the
      file says which images are queries and which form the gallery, ``transfer`` alone, of these. With ``triplets``
      where there are such.

    Raises:
      UserError: the heads were trained on features of another size.
    """
    labels, scoring, features = run.rows.labels, run.scoring, run.features
    run.refuse_other_size()
    runs = [number for number, plan in enumerate(run.plans) if plan.fold < 0] or list(range(len(run.plans)))
    plans = [RunPlan(place, -1) for place in range(len(runs))]
    rows = {"frozen": ReportRow(lambda _: run.frozen, plans[:1])}
    for name, params in (("untrained", untrained), ("trained", run.params)):
        if params is not None:
            embed = partial(_embed_listed, scoring, params, features, runs)
            rows[name] = ReportRow(embed, plans)
    nowhere = np.zeros(len(labels), np.int64)
    more = {"triplets": triplet_figures(rows, triplet_list, nowhere, labels, scoring)} if triplet_list else {}
    if run.rows.is_query is not None:
        return {"transfer": _evaluate_queries(run, rows), **more}
    queries = choose_queries(run, np.arange(len(labels)))
    found = {name: row["closed_set"] for name, row in score_rows(run, rows, nowhere, nowhere, queries).items()}
    if COMPLETE not in scoring.metrics:
        for table in found.values():
            table.pop(COMPLETE, None)
    unseen = {name: row._replace(plans=[plan._replace(fold=0) for plan in row.plans]) for name, row in rows.items()}
    scores = {name: open_set_scores(row, nowhere, labels, scoring.distance, queries) for name, row in unseen.items()}
    return {
        "transfer": compare(found, labels[queries], len(labels), scoring.resamples, scoring.seed, labels),
        "transfer_open_set": open_set_figures(scores, labels, queries, scoring),
        **more,
    }


def _evaluate_queries(run: Run, rows: Mapping[str, ReportRow]) -> dict[str, Any]:
    """``transfer`` where the file says which images are queries; the others form the gallery."""
    labels, is_query, scoring = run.rows.labels, run.rows.is_query, run.scoring
    assert is_query is not None
    queries = choose_queries(run, np.flatnonzero(is_query))
    marked = np.isin(np.arange(len(labels)), queries)
    asked = protocol(labels, scoring.metrics, queries=marked, gallery=~is_query)
    found: dict[str, dict[str, Float[np.ndarray, "s q"]]] = {}
    for name, row in rows.items():
        each = [
            evaluate(row.embed(number), labels, asked, scoring.metrics, scoring.distance, run.rows.coarse)
            for number in range(len(row.plans))
        ]
        found[name] = {metric: np.stack([one[metric] for one in each]) for metric in scoring.metrics}
    figures = compare(found, labels[queries], int((~is_query).sum()), scoring.resamples, scoring.seed)
    alone = ~np.isin(labels[queries], labels[~is_query])
    return figures | {"without_relatives": int(alone.sum())}


def _embed_listed(scoring: Scoring, params: Any, features: Any, runs: Sequence[int], place: int) -> Any:
    return embed_with(scoring, params, features, runs[place])


def open_set_scores(
    row: ReportRow, folds: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], distance: str,
    queries: Int[np.ndarray, " q"],
) -> OpenSetScores | None:  # fmt: skip
    """The scores of every query under the heads that were not trained on its object; None where all heads were."""
    held_out = [(run, plan) for run, plan in enumerate(row.plans) if plan.fold >= 0 and not plan.photos]
    if not held_out:
        return None
    seeds = sorted({plan.seed for _, plan in held_out})
    found = OpenSetScores(*(np.full((len(seeds), len(queries)), fill) for fill in (np.nan, False, np.nan)))
    everything = np.arange(len(labels))
    for run, plan in held_out:
        mine = np.flatnonzero(folds[queries] == plan.fold)
        scores = open_set.nearest_known_and_unknown(row.embed(run), labels, queries[mine], everything, distance)
        for table, values in zip(found, scores, strict=True):
            table[seeds.index(plan.seed), mine] = values
    return found


def open_set_figures(
    scores: Mapping[str, OpenSetScores | None], labels: Int[np.ndarray, " n"], queries: Int[np.ndarray, " q"],
    scoring: Scoring,
) -> dict[str, Any]:  # fmt: skip
    """The ``open_set`` evaluation of a report."""
    rows = {
        name: open_set.open_set(*one, labels[queries], resamples=scoring.resamples, seed=scoring.seed)
        for name, one in scores.items()
        if one is not None
    }
    alone = int((count_alike(labels, queries, np.arange(len(labels))) == 1).sum())
    return {"queries": len(queries), "gallery": len(labels), "without_relatives": alone, **rows}


def triplet_figures(
    rows: Mapping[str, ReportRow], listed: triplets.TripletFile, folds: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"], scoring: Scoring,
) -> dict[str, Any]:  # fmt: skip
    """The ``triplets`` evaluation, by heads that were not trained on the object of the query, where there are such."""
    triplet_rows = listed.rows
    figures: dict[str, Any] = {"queries": len(triplet_rows), "gallery": len(labels), "without_relatives": 0}
    queries = triplet_rows[:, 0]
    for name, row in rows.items():
        plans = [(run, plan) for run, plan in enumerate(row.plans) if not plan.photos]
        use = [(run, plan) for run, plan in plans if plan.fold >= 0] or plans
        seeds = sorted({plan.seed for _, plan in use})
        correct, counted = (np.full((len(seeds), len(queries)), np.nan) for _ in range(2))
        for run, plan in use:
            mine = np.flatnonzero((folds[queries] == plan.fold) | (plan.fold < 0))
            if not len(mine):
                continue
            scored = triplets.evaluate_triplets(row.embed(run), triplet_rows[mine], scoring.distance)
            correct[seeds.index(plan.seed), mine] = scored.correct
            counted[seeds.index(plan.seed), mine] = np.where(scored.correct, 1, -1) * scored.counted
        objects = labels[queries]
        figures[name] = {
            "similarity_precision": summarize(correct, objects, scoring.resamples, scoring.seed),
            # A sum over triplets, where similarity precision is a mean.
            f"score@{triplets.SCORE_DEPTH}": summarize(
                counted * len(queries), objects, scoring.resamples, scoring.seed
            ),
        }
    return {**figures, "left_out": list(listed.left_out)}


def held_out_run(run: Run, row: int) -> int:
    """The run of the first seed that was not trained on the object of image ``row``, or that was trained on all."""
    experiment, seed = run.experiment, run.scoring.seed
    plan = RunPlan(seed, int(experiment.folds[row]))
    return experiment.plans.index(plan if plan in experiment.plans else RunPlan(seed, -1))


def all_neighbours(run: Run, embed: EmbedRun) -> tuple[Int[np.ndarray, "n k"], Float[np.ndarray, "n k"]]:
    """(rows, distances) of the nearest other images of every image, by heads that were not trained on its object."""
    count = len(run.rows.labels)
    runs = np.array([held_out_run(run, row) for row in range(count)])
    depth = min(NEIGHBOURS, count - 1)
    found, distances = np.empty((count, depth), int), np.empty((count, depth), np.float32)
    for number in np.unique(runs):
        embeddings, queries = embed(int(number)), np.flatnonzero(runs == number)
        gallery = searchable(embeddings, np.arange(count), run.scoring.distance)
        one = search_in(embeddings[queries], gallery, depth, queries)
        found[queries], distances[queries] = one.rows, one.distances
    return found, distances
