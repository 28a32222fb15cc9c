"""One row of a table: trained, measured on unseen classes, and kept in a folder of its own.

A row is one experiment of a data set's configuration with overrides: all seeds and folds trained in one compiled
program, then evaluated in a gallery of classes that the head was not trained on. Its folder holds ``row.json`` (what it
is: configuration, versions, features), ``checkpoints`` while it trains, then ``values.npz`` (every metric [seeds,
images]) and ``result.json`` (what it cost).
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.machine import machine, peak_megabytes
from experiments.summaries import Measured, Outcome
from experiments.tables import Row
from fgis import files
from fgis.base import RunPlan, TrainState
from fgis.errors import UserError
from fgis.experiment.build import Scoring, build_folds
from fgis.experiment.differences import DECORATION, describe_difference, differences
from fgis.experiment.identity import digest_rows
from fgis.experiment.run import Run
from fgis.features.joined import open_files
from fgis.learning import checkpoint
from fgis.learning.train import TrainingData, init_states, train
from fgis.report.contents import versions
from fgis.retrieval.evaluate import evaluate, protocol

# Where features lie and what only decorates a report changes no figure.
IGNORED = tuple(f"config.{key}" for key in (*DECORATION, "features.path"))


def identity(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of a row depend on: with all of it equal, they are equal."""
    features = _digest(config["features"]["path"])
    return {"kind": kind, "config": config, "features_sha256": features, "versions": versions()}


@lru_cache
def _digest(path: str) -> str:
    return digest_rows(open_files(path))["sha256"]


def refuse_other_row(wanted: Mapping[str, Any], place: Path) -> None:
    """Raises ``UserError`` where ``place`` holds a row that is not the wanted one."""
    saved = files.read_json(place / "row.json")
    if saved is not None and (found := differences(files.json_types(wanted), saved, IGNORED)):
        raise UserError(f"{describe_difference(found, place)}; name another --workdir, or remove that folder")


def read_row(row: Row, place: Path) -> Outcome:
    """The figures that ``run_row`` left."""
    with np.load(place / "values.npz") as file:
        values = {name: file[name] for name in file.files}
    labels = values.pop("labels")
    return Outcome(row, Measured(values, labels), files.read_json(place / "result.json") or {})


def run_row(kind: str, config: Mapping[str, Any], place: Path) -> None:
    """Runs, or continues, one row and leaves its figures in ``place``; waits where another process is at work on it."""
    place.mkdir(parents=True, exist_ok=True)
    with locked(place):
        began = time.perf_counter()
        wanted = identity(kind, config)
        refuse_other_row(wanted, place)
        if (place / "result.json").exists():
            return
        files.write_json(place / "row.json", wanted)
        values, more = measure(kind, Run.open(config, place), began)
        with files.replacing(place / "values.npz") as partial, partial.open("wb") as file:
            np.savez_compressed(file, **values)
        result = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "megabytes": peak_megabytes(), **more}
        files.write_json(place / "result.json", result)  # last: where it is, the row is finished
        shutil.rmtree(place / "checkpoints", ignore_errors=True)


def measure(kind: str, run: Run, began: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """(every metric [seeds, images] and the labels, what else there is to say) of one row."""
    labels = run.rows.labels
    more: dict[str, Any] = {"features": {"images": len(labels), "size": run.rows.shape[-1], **run.rows.source}}
    folds, plans, spent = build_folds(run.settings, labels), run.plans, 0.0
    embed = lambda number, images: run.embed(run.features[images], number)
    if kind == "frozen":  # one run for each fold: there is nothing that another seed changes
        plans = tuple(plan for plan in plans if plan.seed == run.settings.seed)
        embed = lambda number, images: run.frozen[images]
    elif kind == "untrained":
        run.set_checkpoint(0, init_states(run.experiment.recipe, run.experiment.runs).params)
    else:
        more["training"], spent = train_heads(run, began)
    values = unseen_gallery(embed, plans, folds, labels, run.scoring)
    return {**values, "labels": labels}, {"seconds": spent + time.perf_counter() - began, **more}


def train_heads(run: Run, began: float) -> tuple[dict[str, float], float]:
    """Trains all runs of a row, or goes on where it was interrupted; the parameters become those of ``run``.

    Returns:
      The means of the last record over runs, and the seconds that an interrupted process spent on what is kept.
    """
    place, experiment, settings = run.workdir, run.experiment, run.settings.train
    assert place is not None
    spent: dict[str, float] = files.read_json(place / "spent.json") or {}  # by the step that a checkpoint holds
    last: dict[str, float] = {}
    with checkpoint.open_checkpoints(place / "checkpoints") as manager:
        like = jax.eval_shape(lambda: init_states(experiment.recipe, experiment.runs))
        state = checkpoint.restore_latest(manager, like)
        before = 0.0 if state is None else spent.get(str(int(state.step[0])), 0.0)

        def on_record(step: int, state: TrainState, metrics: Mapping[str, np.ndarray]) -> None:
            last.update({name: float(np.mean(values[-1])) for name, values in metrics.items()})
            if step % settings.checkpoint_every_steps == 0 and step < settings.total_steps:
                spent[str(step)] = before + time.perf_counter() - began
                files.write_json(place / "spent.json", spent)
                checkpoint.save(manager, state, run.config, loss=last["loss"])

        data = TrainingData(run.training_features(), run.rows.labels, run.rows.coarse)
        state = train(
            experiment.recipe, experiment.runs, data, steps=settings.total_steps,
            record_every=settings.record_every_steps, state=state, on_record=on_record,
        )  # fmt: skip
    run.set_checkpoint(settings.total_steps, state.params)
    return last, before


def unseen_gallery(
    embed: Callable[[int, np.ndarray], np.ndarray], plans: Sequence[RunPlan], folds: np.ndarray, labels: np.ndarray,
    scoring: Scoring,
) -> dict[str, np.ndarray]:  # fmt: skip
    """{metric: [seeds, images]}: queries and gallery of each run are the images of the fold that it has not seen."""
    seeds = sorted({plan.seed for plan in plans})
    values = {metric: np.full((len(seeds), len(labels)), np.nan) for metric in scoring.metrics}
    for run, plan in enumerate(plans):
        images = np.flatnonzero(folds == plan.fold)
        own = labels[images]
        found = evaluate(
            embed(run, images), own, protocol(own, scoring.metrics), scoring.metrics, scoring.distance
        )  # fmt: skip
        for metric in scoring.metrics:
            values[metric][seeds.index(plan.seed), images] = found[metric]
    return values


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process, however that ends."""
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
