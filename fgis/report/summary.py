"""A report in words: one paragraph that says what the trained head adds, and the text for the terminal."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fgis.files import read_json
from fgis.report.tables import Table, defined, distinguishable, make_cell, tables

SCOPES = {  # by preference: figures say most about new objects where nothing is fitted to what is searched
    "unseen_gallery": "On unseen objects (neither the queries' objects nor those of the gallery were trained on)",
    "unseen_objects": "On unseen objects (the queries' objects were not trained on; the gallery is all images)",
    "new_photos": "On new photos of known objects (the heads were trained on other photos of them)",
    "closed_set": "On the objects that the heads were trained on (closed set; there are no figures on unseen objects)",
    "transfer": "On the images of another feature file than the one that the heads were trained on (transfer)",
}

USES = {  # what a search may be for: an evaluation, and its queries in words
    "new_photos": "new photos of known objects",
    "unseen_objects": "photos of unseen objects",
    "transfer": "other objects in a gallery of their own",
}
DECIDES = ("new_photos", "unseen_objects")  # whether a search uses the head: the first of these that a report has
VERDICTS = {1: "helps with", 0: "shows no difference with", -1: "hurts with"}


def read_report(path: str | Path) -> dict[str, Any] | None:
    """The report in a JSON file; None where there is none, or where the file holds anything else."""
    report: Any = read_json(path)
    try:
        report_text(report)
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration):
        return None
    return report


def paragraph(report: Mapping[str, Any]) -> str:
    """What the trained head adds to the frozen features, by the first metric, and how much of it is due to training.

    Of unseen objects where the report has them, else of the closed set, else of a transfer; the text says which. A
    difference is called distinguishable from 0 where its 95 % interval excludes 0.
    """
    evaluations = report["evaluations"]
    name = next((name for name in SCOPES if name in evaluations), None)
    if name is None:
        return "This report has no ranking by the trained head to compare with one by the frozen features."
    evaluation = evaluations[name]
    metric = next(iter(evaluation["trained"]))
    difference = evaluation.get("difference", {}).get(metric)
    if not defined(difference):
        return f"{SCOPES[name]}, no query has a value of {metric}, so the trained head cannot be compared."
    trained, frozen = (make_cell(evaluation[row][metric]).value for row in ("trained", "frozen"))
    sentences = [
        f"{SCOPES[name]}, the mean {metric} is {trained} with the trained head and {frozen} with the frozen features: "
        f"the head {_effect(difference)}."
    ]
    training = evaluation.get("difference_untrained", {}).get(metric)
    if defined(training):
        untrained = make_cell(evaluation["untrained"][metric]).value
        sentences.append(f"Against the head before training ({untrained}), training itself {_effect(training)}.")
    wide = evaluations.get("unseen_objects", {}) if name == "unseen_gallery" else {}
    if defined(wide.get("difference", {}).get(metric)):
        sentences.append(
            f"In the gallery of all {wide['gallery']} images, which includes the objects that were trained on, the "
            f"head {_effect(wide['difference'][metric])}."
        )
    return " ".join(sentences)


def training_words(report: Mapping[str, Any]) -> str:
    """Whether the trained head helps, by the paired interval of the first metric, in one sentence for all uses.

    A second sentence says what searches make of it. "" where the report has no figure of any use.
    """
    parts = []
    for name, words in USES.items():
        if found := _difference_of(report, name):
            metric, difference = found
            verdict = VERDICTS[distinguishable(difference)]
            parts.append(f"{verdict} {words} ({metric} {make_cell(difference, signed=True)})")
    if not parts:
        return ""
    sentence = f"Against the frozen features, the trained head {', '.join(parts)}."
    helps = head_helps(report)
    if helps is None:
        return sentence
    return f"{sentence} Searches use {'it' if helps else 'the features as they are; --use_head=always uses it'}."


def head_helps(report: Mapping[str, Any]) -> bool | None:
    """Whether the head is shown to raise the first metric with new photos, or else with unseen objects.

    None where the report has neither: then nothing speaks against the head.
    """
    found = next(filter(None, (_difference_of(report, name) for name in DECIDES)), None)
    return None if found is None else distinguishable(found[1]) > 0


def _difference_of(report: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]] | None:
    """The first metric of an evaluation, and its paired difference to the frozen features, where it has one."""
    row = report["evaluations"].get(name, {}).get("difference", {})
    metric = next(iter(row), None)
    return (metric, row[metric]) if metric is not None and defined(row[metric]) else None


def _effect(difference: Mapping[str, Any]) -> str:
    """The end of a sentence about a paired difference: its direction only where the interval excludes 0."""
    cell, sign = make_cell(difference, signed=True), distinguishable(difference)
    if not cell.low:
        return f"changes it by {cell.value}, without an interval"
    interval = f"(95 % interval {cell.low} to {cell.high})"
    if sign == 0:
        return f"changes it by {cell.value} {interval}, which cannot be distinguished from 0"
    direction = "raises" if sign > 0 else "lowers"
    return f"{direction} it by {abs(difference['mean']):.4f} {interval}, which is distinguishable from 0"


def warning(report: Mapping[str, Any]) -> str:
    """A warning that names the runs that collapsed, or in which nothing was learnt; "" without such runs."""
    config, parts = report["config"], []
    choices = f"They had the miner {config['miner']['name']} and the loss {config['loss']['name']}"
    if runs := report.get("collapsed", []):
        parts.append(
            f"COLLAPSED: {_name_runs(runs)} ended with embeddings that are nearly one point or one line; their figures "
            f"say nothing about the features. {choices}: take easier negatives (semi_hard, distance_weighted) or a "
            "lower learning rate."
        )
    if runs := report.get("idle", []):
        parts.append(
            f"NOTHING LEARNT: in {_name_runs(runs)} no triplet or pair had a loss above 0 at any step. {choices}: take "
            "a larger margin, or a miner or sampler that finds harder negatives."
        )
    return " ".join(parts)


def _name_runs(runs: Sequence[Sequence[Any]]) -> str:
    named = ", ".join(
        f"seed {seed}" + (f" {'photo ' if photos else ''}fold {fold}" if fold >= 0 else "")
        for seed, fold, *photos in runs[:6]
    )
    return f"{len(runs)} runs ({named}{', ...' if len(runs) > 6 else ''})"


def report_text(report: Mapping[str, Any], *, width: int | None = None) -> str:
    """The summary and the tables for a terminal; figures are means with 95 % intervals over seeds and objects.

    Args:
      report: what ``report.json`` holds.
      width: letters in a line: tables have the first metrics that fit, at least one, and name the others. None: all.
    """
    parts = [paragraph(report) + "\n"]
    if words := training_words(report):
        parts.append(words + "\n")
    if rates := report.get("search_rates"):
        parts.append(f"Searching with new photos. {rates}\n")
    if warned := warning(report):
        parts.insert(0, warned + "\n")
    for table in tables(report):
        drawn = _drawn(table, width)
        parts.append(f"{table.title}: {table.description}\n{drawn}\n" + (f"{table.note}\n" if table.note else ""))
    return "\n".join(parts)


def _drawn(table: Table, width: int | None) -> str:
    for shown in range(len(table.metrics), 0, -1):
        rows = [[row.title, *map(str, row.cells[:shown])] for row in table.rows]
        drawn = tabulate(rows, ["", *table.metrics[:shown]], tablefmt="simple", disable_numparse=True)
        if width is None or max(map(len, drawn.splitlines())) <= width:
            break
    left = table.metrics[shown:]
    return drawn + (f"\nin report.html also {', '.join(left)}" if left else "")


def terminal_width() -> int | None:
    """Of the terminal that standard output is; None of a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
