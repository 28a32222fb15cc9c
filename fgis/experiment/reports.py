"""What an evaluation leaves behind, and where: the one place that writes ``report.json`` and what belongs to it.

The report of a run is that of its own images at its last step; every other evaluation (another step, feature file,
metric, re-ranking or triplet file) has a folder of its own in ``evaluations/``.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fgis import files
from fgis.base import RunPlan
from fgis.errors import UserError
from fgis.experiment import operating_point
from fgis.experiment.differences import DECORATION, differences
from fgis.experiment.evaluations import (
    Evaluated,
    all_neighbours,
    evaluate_run,
    evaluate_transfer,
    held_out_run,
)
from fgis.experiment.run import Run
from fgis.learning import checkpoint
from fgis.report import contents, examples, metrics_log, render, summary
from fgis.report.neighbours import write_neighbours
from fgis.report.rates import rates_words
from fgis.retrieval.search import search

SHOWN = 6  # queries of a kind in a report, and neighbours of each
LONGEST_NAME = 120


def evaluation_folder(run: Run, own: bool, triplet_file: str = "") -> Path:
    """Where an evaluation is written: the work directory for the run's own report, else ``evaluations/NAME`` in it.

    NAME lists what is different: the step, the feature file, evaluation and re-ranking keys, the triplet file.
    """
    workdir = run.place
    parts = [] if run.step == checkpoint.latest_step(workdir) else [f"step={run.step}"]
    if not own:
        parts.append(f"features={Path(run.settings.features.path).stem or 'bundled'}")
    changed = differences(run.config, run.checkpoint.config, (*DECORATION, "features."))
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


def report_on(run: Run, *, triplet_file: str = "", strict: bool = False, neighbours: bool = False) -> Path:
    """Evaluates a run on its feature file, writes and prints the report; returns the folder that it was written to.

    On images other than those that the run was trained on, the evaluation is ``transfer``: no image of another file
    counts as held out.

    Raises:
      UserError: triplets or neighbours are wanted of a transfer, or the triplet file cannot be used.
    """
    own = run.has_own_images
    if not own and (triplet_file or neighbours):
        flag = "--triplets" if triplet_file else "--neighbours"
        raise UserError(f"{flag}: only on the images that the run was trained on, and this feature file holds others")
    folder = evaluation_folder(run, own, triplet_file)
    if not own:
        write_report(run, folder, evaluate_transfer(run))
        return folder
    found = evaluate_run(run, triplet_file, strict=strict)
    for line in found.evaluations.get("triplets", {}).get("left_out", ()):
        print(f"left out: {triplet_file}:{line}")
    if neighbours:
        write_neighbours(
            folder / "neighbours.h5", run.rows.image_ids, run.rows.labels, *all_neighbours(run, found.trained)
        )
        print(folder / "neighbours.h5")
    point = run.compute_operating_point()
    if folder == run.place and point:
        operating_point.write_point(folder, run.scoring.distance, point)
    write_report(run, folder, found.evaluations, show_examples(run, found), rates_words(point))
    return folder


def write_report(
    run: Run, folder: Path, evaluations: Mapping[str, Any], shown: examples.Examples | None = None, rates: str = ""
) -> None:
    """``report.html`` and ``report.json`` in ``folder``, and the tables on the terminal.

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
    if folder != run.place:
        files.write_json(folder / "config.json", run.config)
    files.write_text(folder / "report.html", render.report_html(report, history, run.plans, shown))
    files.write_json(folder / "report.json", report)
    print(f"\n{summary.report_text(report)}\n{folder / 'report.json'}\n{folder / 'report.html'}")


def _listed(plan: RunPlan) -> list[Any]:
    return [plan.seed, plan.fold, *(["photos"] if plan.photos else [])]


def show_examples(run: Run, found: Evaluated) -> examples.Examples:
    """The worst and the best queries with their neighbours, by heads that were not trained on their objects, if any."""
    name = "unseen_objects" if "unseen_objects" in found.per_query["trained"] else "closed_set"
    metric, values = next(iter(found.per_query["trained"][name].items()))
    rows, frozen = run.rows, found.per_query["frozen"][name][metric][0]
    complete = (np.nan_to_num(found.complete[name], nan=1.0) == 1).all(axis=0)

    def panel(query: int) -> examples.QueryPanel:
        embeddings, own = found.trained(held_out_run(run, query)), np.array([query])
        ranked = search(embeddings[own], embeddings, SHOWN, run.scoring.distance, query_rows=own)
        read = lambda row: run.find_picture(str(rows.image_ids[row]))
        return examples.query_panel(query, ranked, rows.labels, rows.image_ids, rows.label_names, read)

    worst, best = examples.worst_and_best(values, frozen, complete, rows.labels, SHOWN)
    return examples.Examples(name, metric, [panel(query) for query in worst], [panel(query) for query in best])
