"""Runs the rows of a table, each in a process of its own, and prints the table: ``python -m experiments.NAME``.

A row is one experiment of a data set's configuration with overrides: all seeds and folds trained in one compiled
program, then asked in a gallery of classes that the head has not seen. It lives in ``WORKDIR/DATASET/ROW``:
``row.json`` (what it is: configuration, versions, features), ``checkpoints`` while it trains, then ``values.npz``
(every metric [seeds, images]) and ``result.json`` (what it cost). A row that is there is not run again, also not by
another table that has it; one that was interrupted goes on from its checkpoint, with the same numbers; one that was
made with another configuration is refused.
"""

import argparse
import fcntl
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import re
import resource
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from experiments.tables import (
    DATASETS,
    Found,
    Options,
    Row,
    Table,
    latex,
    markdown,
    place_of,
    reason_against,
    row_config,
    summarize_table,
)  # fmt: skip
from fgis import build, choices, modes, reporting
from fgis.base import RunPlan, TrainState
from fgis.errors import UserError
from fgis.features.store import bundled_path
from fgis.learning import checkpoint
from fgis.learning.train import init_states, train
from fgis.main import keep_compiled_programs
from fgis.report import records
from fgis.retrieval.evaluate import evaluate, object_folds, protocol

Work = Callable[[str, ml_collections.ConfigDict, Path], str]  # (kind, config, place) -> "", or why there is no result


def main(table: Table, arguments: Sequence[str] | None = None, module: str = "") -> int:
    """Runs and prints ``table``; returns the exit code: 0; 1 where a row failed; 2 after a line about a mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", module or f"experiments.{table.name}", *arguments])
    failed = False
    try:
        options = parse(table, arguments)
        for dataset in options.datasets:
            found = run_table(table, dataset, options)
            failed |= any(one.reason.startswith("failed") for one in found)
            write_table(table, dataset, options, found, command)
    except UserError as error:
        print(f"{table.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{table.name}: interrupted; the same command continues in the row it was in", file=sys.stderr)
        return 130
    return int(failed)


def parse(table: Table, arguments: Sequence[str]) -> Options:
    """The flags of a table."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{table.name}")
    parser.add_argument("--dataset", choices=[*DATASETS, "all"], default="all")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of every row; those of the configuration without it")
    parser.add_argument("--workdir", type=Path, default=Options().workdir, help="where rows and tables live")
    parser.add_argument("--features.path", dest="features_path", default="", help="a feature file of the data set")
    found = vars(parser.parse_args(arguments))
    dataset = found.pop("dataset")
    options = Options(tuple(DATASETS) if dataset == "all" else (dataset,), **found)
    if options.features_path and dataset == "all":
        raise UserError("--features.path: holds the features of one data set; name it with --dataset")
    return options


def run_table(table: Table, dataset: str, options: Options, work: Work | None = None) -> list[Found]:
    """Runs the rows that are not there yet, and returns all of them."""
    work = work or in_own_process
    choices.check(row_config(table, dataset, Row(""), options))  # what is wrong with the flags concerns all rows
    plans = [(row, row_config(table, dataset, row, options)) for row in table.rows]
    places = [place_of(options.workdir / dataset, row.kind, {**table.base, **row.overrides}) for row in table.rows]
    reasons = [reason_against(dataset, row, config) for row, config in plans]
    for (row, config), place, reason in zip(plans, places, reasons, strict=True):
        if not reason:  # all of them before any of them runs
            refuse_other(identity(row.kind, config), place)
    found = []
    for number, ((row, config), place, reason) in enumerate(zip(plans, places, reasons, strict=True), 1):
        shown = f"{table.name} {dataset} {number}/{len(plans)} {row.name}"
        if not reason and not (place / "result.json").exists():
            print(f"{shown}: running", file=sys.stderr, flush=True)
            reason = work(row.kind, config, place)
        found.append(Found(row, reason=reason) if reason else read_row(row, place))
        cost = reason or "{seconds:.0f} s, {megabytes:.0f} MB".format(**found[-1].result)
        print(f"{shown}: {cost}", file=sys.stderr, flush=True)
    return found


def write_table(table: Table, dataset: str, options: Options, found: Sequence[Found], command: str) -> None:
    """Prints the table, and writes it into the workdir, in all three formats."""
    chosen = DATASETS[dataset]
    steps = options.steps or chosen.get_config().train.total_steps
    settings = {"seeds": options.seeds, "folds": options.folds, "steps": table.base.get("train.total_steps", steps)}
    context = {"command": command, "versions": records.versions(), "settings": settings}
    summary = summarize_table(table, dataset, chosen.metrics, chosen.headline, found, context)
    stem = f"{table.name}.{dataset}"
    options.workdir.mkdir(parents=True, exist_ok=True)
    records.write_json(options.workdir / f"{stem}.json", summary)
    plain: dict[str, Any] = records.read_json(options.workdir / f"{stem}.json") or {}
    for ending, text in ((".md", markdown(plain)), (".tex", latex(plain))):
        records.write_text(options.workdir / f"{stem}{ending}", text)
        print(text)
    print(json.dumps(plain, ensure_ascii=False), flush=True)


def identity(kind: str, config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What the numbers of a row depend on: with all of it equal, they are equal."""
    plain = choices.plain(config)
    plain["features"] = {key: value for key, value in plain["features"].items() if key not in ("path", "images")}
    digest = file_digest(config.features.path or bundled_path())
    return {"kind": kind, "config": plain, "features_sha256": digest, "versions": records.versions()}


@lru_cache
def file_digest(path: str) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_other(wanted: Mapping[str, Any], place: Path) -> None:
    """Raises ``UserError`` where ``place`` holds a row that is not the wanted one."""
    saved = records.read_json(place / "row.json")
    if found := choices.difference(wanted, saved or wanted, place):
        raise UserError(f"{found}; name another --workdir, or remove that folder")


def read_row(row: Row, place: Path) -> Found:
    """The figures that ``run_row`` left."""
    with np.load(place / "values.npz") as file:
        values = {name: file[name] for name in file.files}
    return Found(row, values, values.pop("labels"), records.read_json(place / "result.json") or {})


def in_own_process(kind: str, config: ml_collections.ConfigDict, place: Path) -> str:
    """``run_row`` in a fresh process, so that its time and its memory are its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_serve, args=(there, kind, config, place), daemon=True)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the child
    try:
        child.start()
    finally:
        signal.signal(signal.SIGINT, before)
    there.close()
    try:
        answer = here.recv()
    except EOFError:
        answer = None
    except BaseException:
        child.kill()  # what a row writes is whole or absent: it can be ended at any time
        child.join()
        raise
    child.join()
    return f"failed: its process ended with exit code {child.exitcode}" if answer is None else answer


def _serve(pipe: Any, kind: str, config: ml_collections.ConfigDict, place: Path) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    keep_compiled_programs()
    logging.set_verbosity(logging.ERROR)  # Orbax narrates
    try:
        run_row(kind, config, place)
        pipe.send("")
    except UserError as error:
        pipe.send(str(error))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def run_row(kind: str, config: ml_collections.ConfigDict, place: Path) -> None:
    """Runs, or continues, one row and leaves its figures in ``place``; waits where another process is at work on it."""
    place.mkdir(parents=True, exist_ok=True)
    with locked(place):
        began = time.perf_counter()
        wanted = identity(kind, config)
        refuse_other(wanted, place)
        if (place / "result.json").exists():
            return
        records.write_json(place / "row.json", wanted)
        values, more = measure(kind, config, place, began)
        partial = place / "values.npz.partial"
        with partial.open("wb") as file:
            np.savez_compressed(file, **values)
        os.replace(partial, place / "values.npz")
        result = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "megabytes": peak_megabytes(), **more}
        records.write_json(place / "result.json", result)  # last: where it is, the row is finished
        shutil.rmtree(place / "checkpoints", ignore_errors=True)


def measure(
    kind: str, config: ml_collections.ConfigDict, place: Path, began: float
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(every metric [seeds, images] and the labels, what else there is to say) of one row."""
    source, rows = modes.open_source(config)
    more: dict[str, Any] = {"features": {"images": len(rows.labels), "size": rows.shape[-1], **rows.source}}
    spent = 0.0
    if kind == "frozen":
        scoring = build.build_scoring(config)
        folds = object_folds(rows.labels, config.folds, config.seed)
        plans = tuple(RunPlan(config.seed, fold) for fold in range(config.folds))
        features = modes.prepared(rows, scoring)
        embed = lambda run, images: features[images]
    else:
        experiment = modes.open_experiment(config, rows)
        scoring, folds, plans = experiment.scoring, experiment.folds, experiment.plans
        features = modes.prepared(rows, scoring)
        if kind == "trained":
            params, more["training"], spent = train_heads(config, source, rows, experiment, place, began)
        else:
            params = init_states(experiment.recipe, experiment.runs).params
        embed = lambda run, images: reporting.embed_run(scoring, params, features[images], run)
    values = unseen_gallery(embed, plans, folds, rows.labels, scoring)
    return {**values, "labels": rows.labels}, {"seconds": spent + time.perf_counter() - began, **more}


def train_heads(
    config: ml_collections.ConfigDict, source: build.Source, rows: Any, experiment: build.Experiment, place: Path,
    began: float,
) -> tuple[Any, dict[str, float], float]:  # fmt: skip
    """(parameters of all runs, means of the last record, seconds that an interrupted process spent on what is kept)."""
    spent: dict[str, float] = records.read_json(place / "spent.json") or {}  # by the step that a checkpoint holds
    last: dict[str, float] = {}
    with checkpoint.open_checkpoints(place / "checkpoints") as manager:
        like = jax.eval_shape(lambda: init_states(experiment.recipe, experiment.runs))
        state = checkpoint.restore_latest(manager, like)
        before = 0.0 if state is None else spent.get(str(int(state.step[0])), 0.0)

        def on_record(step: int, state: TrainState, metrics: Mapping[str, np.ndarray]) -> None:
            last.update({name: float(np.mean(values[-1])) for name, values in metrics.items()})
            if step % experiment.checkpoint_every == 0 and step < experiment.total_steps:
                spent[str(step)] = before + time.perf_counter() - began
                records.write_json(place / "spent.json", spent)
                checkpoint.save(manager, state, choices.plain(config), loss=last["loss"])

        params = train(
            experiment.recipe, experiment.runs, modes.training_features(source, rows, experiment), rows.labels,
            steps=experiment.total_steps, record_every=experiment.record_every, coarse=rows.coarse, state=state,
            on_record=on_record,
        ).params  # fmt: skip
    return params, last, before


def unseen_gallery(
    embed: Callable[[int, np.ndarray], np.ndarray], plans: Sequence[RunPlan], folds: np.ndarray, labels: np.ndarray,
    scoring: build.Scoring,
) -> dict[str, np.ndarray]:  # fmt: skip
    """{metric: [seeds, images]}: each run asks, and is answered by, the images of the fold that it has not seen."""
    seeds = sorted({plan.seed for plan in plans})
    values = {metric: np.full((len(seeds), len(labels)), np.nan) for metric in scoring.metrics}
    for run, plan in enumerate(plans):
        images = np.flatnonzero(folds == plan.fold)
        asked, own = protocol(labels[images], scoring.metrics), labels[images]
        found = evaluate(embed(run, images), own, asked, scoring.metrics, scoring.distance)
        for metric in scoring.metrics:
            values[metric][seeds.index(plan.seed), images] = found[metric]
    return values


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process, however that ends."""
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def peak_megabytes() -> float:
    """The peak resident size of this process; Linux' own count, since ``ru_maxrss`` begins with that of the parent."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def machine() -> str:
    """CPU and memory, in words."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} CPU cores ({model[1] if model else platform.machine()}), {memory:.0f} GiB"
