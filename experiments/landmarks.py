"""Revisited Oxford and Paris, and INRIA Holidays, scored as their authors do; frozen features, and the head of a run.

    python -m experiments.landmarks --dataset=roxford5k|rparis6k|holidays --images=DIR [--workdir=RUN]

DIR is the folder of the data set (for Oxford and Paris with ``jpg`` and the ground truth in it), and its features were
extracted with ``configs/landmarks.py:NAME``. Oxford and Paris: each query, cut to its landmark, is searched in the
gallery at three difficulties; junk images are taken out of the ranking. Holidays: the first image of each group is
searched among all others.
"""

import argparse
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.command_line import guarded
from experiments.machine import machine
from experiments.rendering import Grid, Page, columns, write_table
from fgis import files
from fgis.errors import UserError
from fgis.experiment.config_file import load_config
from fgis.experiment.differences import to_plain
from fgis.experiment.run import Run
from fgis.experiment.start import prepare_jax
from fgis.features.landmark_sets import GROUND_TRUTHS, QUERY, read_revisited
from fgis.report.contents import versions
from fgis.report.tables import figure
from fgis.retrieval.ground_truth import DIFFICULTIES, QueryLists, evaluate_lists, holidays, revisited
from fgis.retrieval.intervals import summarize

NAMES = {"roxford5k": GROUND_TRUTHS[0], "rparis6k": GROUND_TRUTHS[1], "holidays": ""}
SHOWN = {"map_trapezoid": "mAP", "mp@1": "mP@1", "mp@5": "mP@5", "mp@10": "mP@10"}


class Scored(NamedTuple):
    """One list of queries, by rows of the feature file."""

    name: str  # the difficulty; "all" of Holidays
    lists: QueryLists
    query_rows: np.ndarray
    gallery_rows: np.ndarray


def read_lists(dataset: str, images: Path, image_ids: Sequence[str]) -> list[Scored]:
    """What is searched for what, at each difficulty.

    Raises:
      UserError: the ground truth cannot be read, or the feature file lacks one of its images.
    """
    row_of = {str(name): row for row, name in enumerate(image_ids)}

    def rows_of(names: Sequence[str]) -> np.ndarray:
        missing = next((name for name in names if name not in row_of), None)
        if missing is not None:
            raise UserError(f"image {missing!r} is not in the feature file; extract all images of the data set")
        return np.array([row_of[name] for name in names])

    if dataset == "holidays":
        lists = holidays([str(name) for name in image_ids])
        return [Scored("all", lists, rows_of(lists.query_ids), rows_of(lists.gallery_ids))]
    content = read_revisited(images / NAMES[dataset])
    found = []
    for difficulty in DIFFICULTIES:
        lists = revisited(content, difficulty)
        queries = rows_of([f"{QUERY}{name}.jpg" for name in lists.query_ids])
        found.append(Scored(difficulty, lists, queries, rows_of([f"{name}.jpg" for name in lists.gallery_ids])))
    return found


def score(embeddings: np.ndarray, found: Sequence[Scored], distance: str) -> dict[str, dict[str, Any]]:
    """{difficulty: {metric: mean and interval}}; the queries of one landmark or group are drawn together."""
    figures = {}
    for one in found:
        values = evaluate_lists(
            embeddings[one.query_rows], embeddings[one.gallery_rows], one.lists.relevant, one.lists.junk, distance
        )
        landmarks = [re.sub(r"_\d+$", "", name) for name in one.lists.query_ids]
        groups = np.unique(landmarks, return_inverse=True)[1]
        figures[one.name] = {shown: summarize(values[name][None], groups) for name, shown in SHOWN.items()}
    return figures


def open_run(dataset: str, features_path: str, workdir: str) -> Run:
    """The features of a data set, and the run whose head embeds them, if any.

    Raises:
      UserError: the features were not extracted, or ``workdir`` holds no run on features of this network.
    """
    config = to_plain(load_config(f"landmarks:{dataset}"))
    if workdir:
        saved = files.read_json(Path(workdir) / "config.json")
        if not isinstance(saved, dict):
            raise UserError(f"--workdir={workdir}: holds no config.json of a run; leave it out, or name one")
        config = {**saved, "features": config["features"]}
    config["features"].update({"path": features_path} if features_path else {})
    path = config["features"]["path"]
    if not Path(path).expanduser().exists():
        raise UserError(
            f"{path}: no such file; run `python -m fgis.main --config=configs/landmarks.py:{dataset} --mode=extract "
            f"--config.features.images={dataset} --config.features.path={path}`"
        )
    run = Run.open(config, workdir or None)
    if workdir:
        run.refuse_other_size()
    return run


def page(summary: Mapping[str, Any]) -> Page:
    """A grid for each difficulty."""
    grids = []
    for difficulty in summary["rows"][0]["figures"]:
        rows = [
            [row["row"], *(figure(row["figures"][difficulty][shown]) for shown in SHOWN.values())]
            for row in summary["rows"]
        ]
        title = "" if difficulty == "all" else f"Difficulty {difficulty}:"
        grids.append(Grid(title, ["row", *SHOWN.values()], rows, columns(0.3, len(SHOWN))))
    features = summary["features"]
    caption = (
        f"{summary['queries']} queries, {features['images']:,} images ({features.get('backbone')}, {features['size']} "
        "dimensions). Mean average precision by the trapezoid rule, and mean precision at 1, 5 and 10, as the authors "
        "of the data set define them, with 95 % bootstrap intervals over landmarks or groups."
    )
    return Page(grids, (), caption)


def run(dataset: str, images: Path, features_path: str, workdir: str) -> dict[str, Any]:
    """The table of one data set, as a JSON object without its command."""
    opened = open_run(dataset, features_path, workdir)
    rows, distance = opened.rows, opened.scoring.distance
    found = read_lists(dataset, images, rows.image_ids.tolist())
    figures = {"frozen features": score(opened.features, found, distance)}
    if workdir:
        number = next((number for number, plan in enumerate(opened.plans) if plan.fold < 0), 0)
        figures[f"head of {workdir}"] = score(opened.embed(opened.features, number), found, distance)
    return {
        "table": "landmarks",
        "dataset": dataset,
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "machine": machine(),
        "queries": len(found[0].query_rows),
        "features": {"images": len(rows.labels), "size": rows.shape[-1], **rows.source},
        "rows": [{"row": name, "figures": values} for name, values in figures.items()],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes the table; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m experiments.landmarks")
    parser.add_argument("--dataset", choices=list(NAMES), required=True)
    parser.add_argument("--images", type=Path, help="the folder of the data set; its name without it")
    parser.add_argument("--workdir", default="", help="a run on features of the same network, whose head embeds")
    parser.add_argument("--features.path", dest="features_path", default="", help="the feature file of the data set")
    parser.add_argument("--tables", type=Path, default=Path("runs/tables"), help="where the table is written")
    given = parser.parse_args(arguments)

    def work() -> int:
        prepare_jax()
        summary = run(given.dataset, given.images or Path(given.dataset), given.features_path, given.workdir)
        command = shlex.join(["python", "-m", "experiments.landmarks", *arguments])
        write_table({"command": command, **summary}, page, given.tables)
        return 0

    return guarded("landmarks", work, "the same command begins again")


if __name__ == "__main__":
    sys.exit(main())
