"""What an evaluation leaves behind, and where: the one place that writes ``report.json`` and what belongs to it.

The report of a run is that of its own images at its last step; every other evaluation (another step, feature file,
metric, re-ranking or triplet file) has a folder of its own in ``evaluations/``.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fgis import files
from fgis.base import Neighbours, RunPlan
from fgis.errors import UserError
from fgis.experiment import operating_point
from fgis.experiment.differences import DECORATION, OF_LENGTH, differences
from fgis.experiment.evaluations import (
    Evaluated,
    all_neighbours,
    evaluate_run,
    evaluate_transfer,
    held_out_run,
    read_triplet_list,
)
from fgis.experiment.run import Run
from fgis.features.joined import listed
from fgis.learning import checkpoint
from fgis.report import contents, examples, metrics_log, render, summary
from fgis.report.neighbours import write_neighbours
from fgis.report.rates import rates_words
from fgis.retrieval.stored import search_in, searchable

SHOWN = 6  # queries of a kind in a report, and neighbours of each
LONGEST_NAME = 120


def evaluation_folder(run: Run, own: bool, triplet_file: str = "") -> Path:
    """Where an evaluation is written: the work directory for the run's own report, else ``evaluations/NAME`` in it.

    NAME lists what is different: the step, the feature file, evaluation and re-ranking keys, the triplet file.
    """
    workdir = run.place
    parts = [] if run.step == checkpoint.latest_step(workdir) else [f"step={run.step}"]
    if not own:
        names = "+".join(Path(path).stem or "bundled" for path in listed(run.settings.features.path))
        parts.append(f"features={names}")
    changed = differences(run.config, run.checkpoint.config, (*DECORATION, *OF_LENGTH, "features."))
    parts += [f"{key}={value}" for key, (value, _) in changed.items()]
    if triplet_file:
        parts.append(f"triplets={Path(triplet_file).stem}")
    if not parts:
        return workdir
    whole = ",".join(parts)
    name = re.sub(r"[^\w.,=@+-]+", "_", whole)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return workdir / "evaluations" / name


def report_on(
    run: Run, *, triplet_file: str = "", strict: bool = False, neighbours: bool = False, save: bool = True
) -> Path:
    """Evaluates a run on its feature file, writes and prints the report; returns the folder that it was written to.

    On images other than those that the run was trained on, the evaluation is ``transfer``: no image of another file
    counts as held out. Without ``save`` nothing is written, which a finished run in a read-only place allows.

    Raises:
      UserError: neighbours are wanted of a transfer, or the triplet file cannot be used.
    """
    own = run.has_own_images
    if not own and neighbours:
        raise UserError(
            "--neighbours: only on the images that the run was trained on, and this feature file holds others"
        )
    folder = evaluation_folder(run, own, triplet_file)
    if neighbours and not save:
        raise UserError(f"--neighbours: {folder} cannot be written; copy the run to a place that can")
    if not own:
        listed = read_triplet_list(run, triplet_file, strict) if triplet_file else None
        found_there = evaluate_transfer(run, triplet_list=listed)
        _print_left_out(found_there, triplet_file)
        write_report(run, folder, found_there, save=save)
        return folder
    found = evaluate_run(run, triplet_file, strict=strict)
    _print_left_out(found.evaluations, triplet_file)
    if neighbours:
        write_neighbours(
            folder / "neighbours.h5", run.rows.image_ids, run.rows.labels, *all_neighbours(run, found.trained)
        )
        print(folder / "neighbours.h5")
    point = run.compute_operating_point()
    if folder == run.place and point and save:
        operating_point.write_point(folder, run.scoring.distance, point)
    shown = show_examples(run, found) if save else None
    write_report(run, folder, found.evaluations, shown, rates_words(point), save=save)
    return folder


def _print_left_out(evaluations: Mapping[str, Any], triplet_file: str) -> None:
    for line in evaluations.get("triplets", {}).get("left_out", ()):
        print(f"left out: {triplet_file}:{line}")


def write_report(
    run: Run, folder: Path, evaluations: Mapping[str, Any], shown: examples.Examples | None = None, rates: str = "",
    *, save: bool = True,
) -> None:  # fmt: skip
    """``report.html`` and ``report.json`` in ``folder``, and the tables on the terminal; without ``save`` these alone.

    ``report.json`` comes last: a work directory that holds it is finished.
    """
    history = metrics_log.read_records(run.place / "metrics.jsonl", run.step)
    report = {
        "version": contents.VERSION,
        "config": run.config,
        "step": run.step,
        "versions": contents.versions(),
        "collapsed": [_listed(run.plans[number]) for number in metrics_log.collapsed_runs(history)],
        "idle": [_listed(run.plans[number]) for number in metrics_log.idle_runs(history)],
        "search_rates": rates,  # in words: how often a search among these images would be wrong
        "published": list(run.settings.evaluation.published) if run.shows_its_collection else [],
        "evaluations": evaluations,
    }
    text = summary.report_text(report, width=summary.terminal_width())
    if not save:
        print(f"\n{text}")
        return
    if folder != run.place:
        files.write_json(folder / "config.json", run.config)
    files.write_text(folder / "report.html", render.report_html(report, history, run.plans, shown))
    files.write_json(folder / "report.json", report)
    print(f"\n{text}\n{folder / 'report.json'}\n{folder / 'report.html'}")


def _listed(plan: RunPlan) -> list[Any]:
    return [plan.seed, plan.fold, *(["photos"] if plan.photos else [])]


def show_examples(run: Run, found: Evaluated) -> examples.Examples:
    """The worst and the best queries with their neighbours, by heads that were not trained on their objects, if any."""
    name = "unseen_objects" if "unseen_objects" in found.per_query["trained"] else "closed_set"
    metric, values = next(iter(found.per_query["trained"][name].items()))
    rows, frozen, queries = run.rows, found.per_query["frozen"][name][metric][0], found.queries
    complete = (np.nan_to_num(found.complete[name], nan=1.0) == 1).all(axis=0)

    worst, best = examples.worst_and_best(values, frozen, complete, rows.labels[queries], SHOWN)
    read = lambda row: run.find_picture(str(rows.image_ids[row]))
    ranked = _rank_shown(run, found, [int(queries[place]) for place in (*worst, *best)])
    panels = [examples.query_panel(q, one, rows.labels, rows.image_ids, rows.label_names, read) for q, one in ranked]
    return examples.Examples(name, metric, panels[: len(worst)], panels[len(worst) :])


def _rank_shown(run: Run, found: Evaluated, queries: Sequence[int]) -> list[tuple[int, Neighbours]]:
    """Queries with their neighbours, those of a head together: its embeddings may have to be computed from a file."""
    heads = [held_out_run(run, query) for query in queries]
    ranked: dict[int, Neighbours] = {}
    for head in set(heads):
        own = np.array([query for query, other in zip(queries, heads, strict=True) if other == head])
        embeddings = found.trained(head)
        gallery = searchable(embeddings, np.arange(len(run.rows.labels)), run.scoring.distance)
        one = search_in(embeddings[own], gallery, SHOWN, own)
        ranked |= {int(q): Neighbours(one.rows[[i]], one.distances[[i]]) for i, q in enumerate(own)}
    return [(query, ranked[query]) for query in queries]
