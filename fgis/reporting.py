"""Evaluations of a run, as a report: what ``--mode=train`` ends with and ``--mode=evaluate`` does."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float, Int

from fgis import build, choices
from fgis.base import RunPlan
from fgis.errors import UserError
from fgis.features import collection, store
from fgis.learning.train import init_states
from fgis.report import gallery, records, render, summary
from fgis.report.neighbours import write_neighbours
from fgis.retrieval import open_set, triplets
from fgis.retrieval.evaluate import compare, evaluate, evaluate_runs, protocol, summarize
from fgis.retrieval.search import search

SHOWN = 6  # queries, and answers to each, in the galleries of a report
LISTED = 100  # neighbours of each query that are saved on demand
OPERATING_POINT = "operating_point.json"
Embed = Callable[[int], np.ndarray]  # a run -> the embeddings of all images


class Wanted(NamedTuple):
    """What is to be evaluated besides the protocols of the configuration."""

    triplets: str = ""  # a file of (query, positive, negative)
    neighbours: bool = False


def prepared(rows: store.Rows, scoring: build.Scoring, block: int = 1024) -> Float[np.ndarray, "n f"]:
    """All prepared features, in the memory of the host."""
    blocks = (np.arange(start, min(start + block, len(rows.labels))) for start in range(0, len(rows.labels), block))
    return np.concatenate([np.asarray(scoring.prepare(rows.read(index))) for index in blocks])


def embed_run(scoring: build.Scoring, params: Any, features: np.ndarray, run: int) -> np.ndarray:
    """The embeddings of all images under the head of one run."""
    return np.asarray(scoring.embed(jax.tree.map(lambda x: jnp.asarray(x[run]), params), jnp.asarray(features)))


def report_on(
    config: ml_collections.ConfigDict,
    workdir: Path,
    experiment: build.Experiment,
    rows: store.Rows,
    params: Any,
    step: int,
    wanted: Wanted = Wanted(),  # noqa: B008
) -> None:
    """Evaluates all runs, trained and untrained, beside the frozen features; writes and prints the report."""
    scoring, plans, folds = experiment.scoring, experiment.plans, experiment.folds
    features = prepared(rows, scoring)
    asked = triplets.read_triplets(wanted.triplets, rows.image_ids) if wanted.triplets else None
    untrained = init_states(experiment.recipe, experiment.runs).params
    embedded: dict[str, tuple[Embed, Sequence[RunPlan]]] = {
        "frozen": (lambda run: features, [plan for plan in plans if plan.seed == scoring.seed]),
        "untrained": (partial(embed_run, scoring, untrained, features), plans),
        "trained": (partial(embed_run, scoring, params, features), plans),
    }
    rerank = build.build_rerank(config)
    judge = partial(
        evaluate_runs, folds=folds, labels=rows.labels, metrics=scoring.metrics, distance=scoring.distance,
        coarse=rows.coarse,
    )  # fmt: skip
    found = {name: judge(embed, plans=some) for name, (embed, some) in embedded.items()}
    if rerank:
        for name, row in (("frozen", "frozen_reranked"), ("trained", "reranked")):
            embed, some = embedded[name]
            found[row] = judge(embed, plans=some, rerank=rerank)
    gallery_size = {"unseen_gallery": int(np.bincount(folds).max())}
    evaluations: dict[str, Any] = {
        name: compare(
            {row: found[row][name] for row in found},
            rows.labels,
            gallery_size.get(name, len(rows.labels)),
            scoring.resamples,
            scoring.seed,
        )
        for name in found["trained"]
    }
    scores = {name: open_set_scores(*embedded[name], folds, rows.labels, scoring) for name in embedded}
    if scores["trained"]:
        evaluations["open_set"] = open_set_figures(scores, rows.labels, scoring)
    if asked is not None:
        evaluations["triplets"] = triplet_figures(embedded, asked, folds, rows.labels, scoring)
    embed = embedded["trained"][0]
    if wanted.neighbours:
        save_neighbours(workdir, experiment, rows, embed)
    write_operating_point(workdir, step, scores["trained"], scoring, embed(0), rows.labels)
    shown = galleries(build.source(config), experiment, rows, found, embed)
    write_report(config, workdir, step, evaluations, plans, shown)


def transfer_on(config: ml_collections.ConfigDict, workdir: Path, rows: store.Rows, params: Any, step: int) -> None:
    """Evaluates heads on images of another feature file, none of which they have seen; heads of all objects if any."""
    scoring, plans = build.build_scoring(config), build.plan_runs(config)
    features, labels = prepared(rows, scoring), rows.labels
    runs = [run for run, plan in enumerate(plans) if plan.fold < 0] or list(range(len(plans)))
    if not build.head_fits(config, params, features.shape[1]):
        raise UserError(
            f"config.features.path: features of size {features.shape[1]}, but the heads in {workdir} were trained on "
            "features of another size; extract these images with the same backbone and pooling"
        )
    judge = partial(
        evaluate, labels=labels, protocol=protocol(labels, scoring.metrics), metrics=scoring.metrics,
        distance=scoring.distance, coarse=rows.coarse,
    )  # fmt: skip
    each = [judge(embed_run(scoring, params, features, run)) for run in runs]
    found = {
        "frozen": {name: values[None] for name, values in judge(features).items()},
        "trained": {name: np.stack([values[name] for values in each]) for name in scoring.metrics},
    }
    evaluations = {"transfer": compare(found, labels, len(labels), scoring.resamples, scoring.seed)}
    write_report(config, workdir, step, evaluations, plans, {})


class OpenScores(NamedTuple):
    """Distances of queries to what is left of the gallery, [seeds, images] each; see ``fgis.retrieval.open_set``."""

    known: Float[np.ndarray, "s n"]
    right: np.ndarray
    unknown: Float[np.ndarray, "s n"]


def open_set_scores(
    embed: Embed, plans: Sequence[RunPlan], folds: np.ndarray, labels: np.ndarray, scoring: build.Scoring
) -> OpenScores | None:
    """Each run asks with the objects that it has not seen; None where every run has seen them all."""
    held_out = [(run, plan) for run, plan in enumerate(plans) if plan.fold >= 0]
    if not held_out:
        return None
    seeds = sorted({plan.seed for _, plan in held_out})
    found = OpenScores(*(np.full((len(seeds), len(labels)), fill) for fill in (np.nan, False, np.nan)))
    everything = np.arange(len(labels))
    for run, plan in held_out:
        asking = np.flatnonzero(folds == plan.fold)
        scores = open_set.nearest_known_and_unknown(embed(run), labels, asking, everything, scoring.distance)
        for table, values in zip(found, scores, strict=True):
            table[seeds.index(plan.seed), asking] = values
    return found


def open_set_figures(
    scores: Mapping[str, OpenScores | None], labels: np.ndarray, scoring: build.Scoring
) -> dict[str, Any]:
    """The ``open_set`` evaluation of a report."""
    rows = {
        name: open_set.open_set(*one, labels, resamples=scoring.resamples, seed=scoring.seed)
        for name, one in scores.items()
        if one is not None
    }
    alone = np.unique(labels, return_counts=True)[1] == 1
    return {"queries": len(labels), "gallery": len(labels), "without_relatives": int(alone.sum()), **rows}


def write_operating_point(
    workdir: Path, step: int, scores: OpenScores | None, scoring: build.Scoring, embeddings: np.ndarray,
    labels: np.ndarray,
) -> None:  # fmt: skip
    """The distance beyond which a search says that there is nothing like this, from objects that heads had not seen.

    Where every head has seen every object, from ``embeddings``: closer to what is known than to what is new.
    """
    if scores is None:
        everything = np.arange(len(labels))
        unknown = open_set.nearest_known_and_unknown(embeddings, labels, everything, everything, scoring.distance)[2]
    else:
        unknown = scores.unknown.ravel()
    content = {
        "version": 1, "step": step, "distance": scoring.distance, "false_alarms": open_set.OPERATING,
        "threshold": open_set.choose_threshold(unknown, open_set.OPERATING), "unseen_objects": scores is not None,
    }  # fmt: skip
    records.write_json(workdir / OPERATING_POINT, content)


def triplet_figures(
    embedded: Mapping[str, tuple[Embed, Sequence[RunPlan]]], asked: Int[np.ndarray, "t 3"], folds: np.ndarray,
    labels: np.ndarray, scoring: build.Scoring,
) -> dict[str, Any]:  # fmt: skip
    """The ``triplets`` evaluation, by heads that have not seen the object of the query, where there are such."""
    figures: dict[str, Any] = {"queries": len(asked), "gallery": len(labels), "without_relatives": 0}
    depth = f"score@{triplets.SCORE_DEPTH}"
    for name in ("frozen", "untrained", "trained"):
        embed, plans = embedded[name]
        use = [(run, plan) for run, plan in enumerate(plans) if plan.fold >= 0] or list(enumerate(plans))
        seeds = sorted({plan.seed for _, plan in use})
        correct, counted = (np.full((len(seeds), len(asked)), np.nan) for _ in range(2))
        for run, plan in use:
            mine = np.flatnonzero((folds[asked[:, 0]] == plan.fold) | (plan.fold < 0))
            if not len(mine):
                continue
            scored = triplets.evaluate_triplets(embed(run), asked[mine], scoring.distance)
            correct[seeds.index(plan.seed), mine] = scored.correct
            counted[seeds.index(plan.seed), mine] = np.where(scored.correct, 1, -1) * scored.counted
        objects = labels[asked[:, 0]]
        figures[name] = {
            "similarity_precision": summarize(correct, objects, scoring.resamples, scoring.seed),
            depth: summarize(counted * len(asked), objects, scoring.resamples, scoring.seed),  # a sum over triplets
        }
    return figures


def held_out_run(experiment: build.Experiment, row: int) -> int:
    """The run of the first seed that has not seen the object of image ``row``, or that has seen them all."""
    fold = int(experiment.folds[row])
    plan = RunPlan(experiment.scoring.seed, fold)
    return experiment.plans.index(plan if plan in experiment.plans else RunPlan(experiment.scoring.seed, -1))


def save_neighbours(workdir: Path, experiment: build.Experiment, rows: store.Rows, embed: Embed) -> None:
    """``neighbours.h5``: what every image finds among all others, by heads that have not seen its object, if any."""
    runs = np.array([held_out_run(experiment, row) for row in range(len(rows.labels))])
    depth = min(LISTED, len(rows.labels) - 1)
    found, distances = np.empty((len(runs), depth), int), np.empty((len(runs), depth), np.float32)
    for run in np.unique(runs):
        embeddings, asking = embed(int(run)), np.flatnonzero(runs == run)
        one = search(embeddings[asking], embeddings, depth, experiment.scoring.distance, query_rows=asking)
        found[asking], distances[asking] = one.rows, one.distances
    write_neighbours(workdir / "neighbours.h5", rows.image_ids, rows.labels, found, distances)
    print(f"{workdir / 'neighbours.h5'}")


def write_report(
    config: ml_collections.ConfigDict,
    workdir: Path,
    step: int,
    evaluations: dict[str, Any],
    plans: Sequence[RunPlan],
    shown: dict[str, list[gallery.Answers]],
) -> None:
    """``report.html`` and ``report.json`` in the workdir, and the same table on the terminal."""
    history = records.read_records(workdir / "metrics.jsonl", step)
    report = {
        "version": records.VERSION,
        "config": choices.plain(config),
        "step": step,
        "versions": records.versions(),
        "collapsed": [list(plans[run]) for run in summary.collapsed(history)],
        "evaluations": evaluations,
    }
    records.write_text(workdir / "report.html", render.html(report, history, plans, shown))
    records.write_json(workdir / "report.json", report)  # last: where it is, the run is finished
    print(f"\n{summary.text(report)}\n{workdir / 'report.json'}\n{workdir / 'report.html'}")


def galleries(
    source: build.Source,
    experiment: build.Experiment,
    rows: store.Rows,
    found: dict[str, dict[str, dict[str, np.ndarray]]],
    embed: Callable[[int], np.ndarray],
) -> dict[str, list[gallery.Answers]]:
    """The worst and the best queries, answered by heads that have not seen their objects if there are such heads."""
    name = "unseen_objects" if "unseen_objects" in found["trained"] else "closed_set"
    metric, trained = next(iter(found["trained"][name].items()))
    read_image = None
    if source.images:
        images = collection.load_collection(source.collection, source.images)
        place = {image_id: i for i, image_id in enumerate(images.image_ids)}
        read_image = lambda row: images.read(place[rows.image_ids[row]]) if rows.image_ids[row] in place else None
    shown = {}
    queries = gallery.worst_and_best(trained, found["frozen"][name][metric][0], rows.labels, SHOWN)
    for title, chosen in zip(("Worst", "Best"), queries, strict=True):
        answers = []
        for query in chosen:
            embeddings = embed(held_out_run(experiment, query))
            own = np.array([query])
            ranked = search(embeddings[own], embeddings, SHOWN, experiment.scoring.distance, query_rows=own)
            answers += gallery.answers([query], ranked, rows.labels, rows.image_ids, read_image)
        shown[f"{title} queries: {name.replace('_', ' ')}, by {metric}"] = answers
    return shown
