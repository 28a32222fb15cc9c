"""Do the rates that a search states hold? Random galleries, new photos of their objects, and photos of other objects.

    python -m experiments.operating_points [--dataset=grocerystore] [--galleries=20]

A gallery has so many classes and photos of each; the new photos are other photos of the same classes, the foreign ones
show classes that are not in it. A rate is stated on the gallery alone and measured on photos that it does not have.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.command_line import guarded
from experiments.machine import machine
from experiments.rendering import Grid, Page, columns, write_table
from experiments.tables import DATASETS, base_config
from fgis.errors import UserError
from fgis.experiment.run import Run
from fgis.experiment.start import prepare_jax
from fgis.gallery.search import compute_operating_point
from fgis.report.contents import versions
from fgis.retrieval.search import prepare_gallery, search

CASES = ((8, 8), (16, 8), (40, 8), (40, 20))  # classes, photos of each
NEW, FOREIGN = 8, 4  # photos of a class at most
RATES = ("detection", "false_alarms", "missed")


class Drawn(NamedTuple):
    """Rows of one gallery and of the photos that it is searched with."""

    gallery: Int[np.ndarray, " g"]
    new: Int[np.ndarray, " q"]
    foreign: Int[np.ndarray, " u"]


def draw(labels: Int[np.ndarray, " n"], classes: int, photos: int, seed: int) -> Drawn:
    """One random gallery; a class has half of ``photos`` more at least, so that there are new ones of it."""
    rng = np.random.default_rng(seed)
    members = [rng.permutation(np.flatnonzero(labels == name)) for name in rng.permutation(np.unique(labels))]
    large = [rows for rows in members if len(rows) >= photos + NEW // 2][:classes]
    chosen = {int(labels[rows[0]]) for rows in large}
    foreign = [rows[:FOREIGN] for rows in members if int(labels[rows[0]]) not in chosen]
    return Drawn(
        np.concatenate([rows[:photos] for rows in large]),
        np.concatenate([rows[photos : photos + NEW] for rows in large]),
        np.concatenate(foreign),
    )


def measure(run: Run, drawn: Drawn) -> dict[str, tuple[float, float]]:
    """{rate: (stated, measured)} of one gallery."""
    features, labels, distance = run.features, run.rows.labels, run.scoring.distance
    own = features[drawn.gallery]
    point = compute_operating_point(own, labels[drawn.gallery], distance, run.scoring.seed)
    assert point is not None
    gallery = prepare_gallery(own, distance)
    new, foreign = (search(features[rows], gallery, 1).distances[:, 0] for rows in (drawn.new, drawn.foreign))
    return {
        "detection": (point.detection, float(np.mean(new <= point.threshold))),
        "false_alarms": (point.false_alarms, float(np.mean(foreign <= point.threshold))),
        "missed": (point.missed, float(np.mean(new > point.limit))),
    }


def run_cases(run: Run, galleries: int) -> list[dict[str, Any]]:
    """The means over galleries of what was stated and measured, and the mean size of their difference."""
    rows = []
    for classes, photos in CASES:
        found = [measure(run, draw(run.rows.labels, classes, photos, seed)) for seed in range(galleries)]
        row: dict[str, Any] = {
            "row": f"{classes} × {photos}",
            "classes": classes,
            "photos": photos,
            "galleries": galleries,
        }
        for rate in RATES:
            stated, measured = np.array([one[rate] for one in found]).T
            row[rate] = {
                "stated": float(stated.mean()), "measured": float(measured.mean()),
                "mean_difference": float(np.abs(measured - stated).mean()),
            }  # fmt: skip
        rows.append(row)
        print(f"operating_points: {row}", file=sys.stderr, flush=True)
    return rows


def page(summary: Mapping[str, Any]) -> Page:
    """One row per kind and size of gallery."""
    shown = lambda one: f"{one['stated']:.3f} / {one['measured']:.3f} (± {one['mean_difference']:.3f})"
    header = ["gallery", "galleries", *(rate.replace("_", " ") for rate in RATES)]
    rows = [
        [
            row["row"],
            str(row["galleries"]),
            *(shown(row[rate]) for rate in RATES),
        ]
        for row in summary["rows"]
    ]
    caption = (
        "Classes × photos of each. Stated on the gallery / measured on other photos, means over random galleries; in "
        "brackets the mean size of the difference of one gallery. Detection: new photos of its classes within the "
        "threshold. False alarms: photos of other classes within the threshold. Missed: new photos of its classes "
        "beyond the limit."
    )
    return Page([Grid("", header, rows, columns(0.14, len(header) - 1))], [], caption)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes the table; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m experiments.operating_points")
    parser.add_argument("--dataset", choices=list(DATASETS), default="grocerystore")
    parser.add_argument("--galleries", type=int, default=20, help="of each size")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tables"), help="where the table is written")
    parser.add_argument("--features.path", dest="features_path", default="", help="a feature file of the data set")
    given = parser.parse_args(arguments)

    def work() -> int:
        config = base_config(given.dataset)
        if given.features_path:
            config["features"]["path"] = given.features_path
        if given.galleries < 1:
            raise UserError("--galleries: no gallery to draw; write a whole number of at least 1")
        prepare_jax()
        run = Run.open(config)
        summary = {
            "table": "operating_points",
            "dataset": given.dataset,
            "command": shlex.join(["python", "-m", "experiments.operating_points", *arguments]),
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
            "machine": machine(),
            "features": {"images": len(run.rows.labels), "size": run.rows.shape[-1], **run.rows.source},
            "rows": run_cases(run, given.galleries),
        }
        write_table(summary, page, given.workdir)
        return 0

    return guarded("operating_points", work, "the same command begins again")


if __name__ == "__main__":
    sys.exit(main())
