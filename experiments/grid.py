"""Runs the rows of a table, each in a process of its own, and prints the table: ``python -m experiments.NAME``.

A row lives in ``WORKDIR/DATASET/ROW`` (see ``experiments.rows``). A row that is there is not run again, also not by
another table that has it; one that was interrupted goes on from its checkpoint, with the same numbers; one that was
made with another configuration is refused. With ``--rows=i/n`` only every n-th row is run, and no table is written.
"""

import multiprocessing
import multiprocessing.connection
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.command_line import guarded, is_own, parse, say_share
from experiments.rendering import write_table
from experiments.rows import identity, read_row, refuse_other_row, run_row
from experiments.summaries import Outcome, summarize_table, table_page
from experiments.tables import DATASETS, Options, Row, Table, base_config, place_of, reason_against, row_config
from fgis.errors import UserError
from fgis.experiment.config import read_settings
from fgis.experiment.start import prepare_jax
from fgis.report.contents import versions

Work = Callable[[str, Mapping[str, Any], Path], str]  # (kind, config, place) -> "", or why there is no result


def main(table: Table, arguments: Sequence[str] | None = None, module: str = "") -> int:
    """Runs and prints ``table``; returns the exit code: 0; 1 where a row failed; 2 after a line about a mistake."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", module or f"experiments.{table.name}", *arguments])

    def work() -> int:
        failed, options = False, parse(table.name, arguments)
        for dataset in options.datasets:
            found = run_table(table, dataset, options)
            failed |= any(one.reason.startswith("failed") for one in found)
            if options.share:
                say_share(f"{table.name} {dataset}", options.share)
                continue
            context = {"command": command, **table_context(table, dataset, options)}
            write_table(summarize_table(table, context, found), table_page, options.workdir)
        return int(failed)

    return guarded(table.name, work, "the same command continues in the row it was in")


def table_context(table: Table, dataset: str, options: Options) -> dict[str, Any]:
    """What a table says of itself, beside its rows."""
    steps = table.base.get("train.total_steps", options.steps or base_config(dataset)["train"]["total_steps"])
    return {
        "dataset": dataset,
        "versions": versions(),
        "settings": {"seeds": options.seeds, "folds": options.folds, "steps": steps},
        "metrics": list(DATASETS[dataset].metrics),
        "headline": DATASETS[dataset].headline,
    }


def run_table(table: Table, dataset: str, options: Options, work: Work | None = None) -> list[Outcome]:
    """Runs the rows of its share that are not there yet, and returns all of them."""
    work = work or in_own_process
    read_settings(row_config(table, dataset, Row(""), options))  # what is wrong with the flags concerns all rows
    plans = [(row, row_config(table, dataset, row, options)) for row in table.rows]
    places = [place_of(options.workdir / dataset, row.kind, {**table.base, **row.overrides}) for row in table.rows]
    reasons = [reason_against(dataset, row, config) for row, config in plans]
    for (row, config), place, reason in zip(plans, places, reasons, strict=True):
        if not reason:  # all of them before any of them runs
            refuse_other_row(identity(row.kind, config), place)
    found = []
    for number, ((row, config), place, reason) in enumerate(zip(plans, places, reasons, strict=True), 1):
        shown = f"{table.name} {dataset} {number}/{len(plans)} {row.name}"
        if not reason and not (place / "result.json").exists() and not is_own(number - 1, options.share):
            continue
        if not reason and not (place / "result.json").exists():
            print(f"{shown}: running", file=sys.stderr, flush=True)
            reason = work(row.kind, config, place)
        found.append(Outcome(row, reason=reason) if reason else read_row(row, place))
        cost = f"not run: {reason}" if reason else "{seconds:.0f} s, {megabytes:.0f} MB".format(**found[-1].result)
        print(f"{shown}: {cost}", file=sys.stderr, flush=True)
    return found


def in_own_process(kind: str, config: Mapping[str, Any], place: Path) -> str:
    """``run_row`` in a fresh process, so that its time and its memory are its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_run_and_tell, args=(there, kind, config, place), daemon=True)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the child
    try:
        child.start()
    finally:
        signal.signal(signal.SIGINT, before)
    there.close()
    try:
        told = here.recv()
    except EOFError:
        told = None
    except BaseException:
        child.kill()  # what a row writes is whole or absent: it can be ended at any time
        child.join()
        raise
    child.join()
    return f"failed: its process ended with exit code {child.exitcode}" if told is None else told


def _run_and_tell(pipe: Any, kind: str, config: Mapping[str, Any], place: Path) -> None:
    """The child: runs the row and sends "", or one line about what the user can put right."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    prepare_jax()
    try:
        run_row(kind, config, place)
        pipe.send("")
    except UserError as error:
        pipe.send(f"failed: {error}")


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
