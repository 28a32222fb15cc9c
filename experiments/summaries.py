"""From the values of rows to a table's JSON object, and from that to its page: means, intervals, paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.rendering import Grid, Page, columns, difference
from experiments.tables import FROZEN, Row, Table
from fgis.report.tables import NONE, figure
from fgis.retrieval.intervals import summarize
from fgis.retrieval.significance import FLIPS, corrected, paired_difference

RESAMPLES = 2000
FIRST = 0.28  # of LaTeX's line: the names of the rows


class Measured(NamedTuple):
    """The values of a row, by metric, and the objects of its images."""

    values: Mapping[str, Float[np.ndarray, "s n"]]
    labels: Int[np.ndarray, " n"]


class Outcome(NamedTuple):
    """What a row gave; nothing measured where it did not run, and then why."""

    row: Row
    measured: Measured | None = None
    result: Mapping[str, Any] = {}  # seconds, megabytes, machine, date, features, training
    reason: str = ""


def compare_rows(
    measured: Mapping[str, Measured], references: Mapping[str, str], metrics: Sequence[str], resamples: int = RESAMPLES
) -> dict[str, dict[str, Any]]:
    """The figures of every row: {row: {metric: {"mean", "ci95", KEY: a paired difference}}}.

    Args:
      measured: by row.
      references: {KEY: the row that all others are compared with}. A row is not compared with itself, with one that is
        not there, or with one of other images.
      metrics: which.
      resamples: of the bootstrap.

    Returns:
      Figures in the order of ``measured``. Each comparison of each metric is a family of its own: p is corrected over
      its rows.
    """
    figures: dict[str, dict[str, Any]] = {name: {} for name in measured}
    for metric in metrics:
        for name, one in measured.items():
            figures[name][metric] = summarize(one.values[metric], one.labels, resamples)
        for key, other in references.items():
            comparisons = {
                name: paired_difference(one.values[metric], measured[other].values[metric], one.labels, resamples)
                for name, one in measured.items()
                if other in measured and name != other and np.array_equal(one.labels, measured[other].labels)
            }
            for name, comparison in corrected(comparisons).items():
                figures[name][metric][key] = comparison
    return figures


def summarize_table(
    table: Table, context: Mapping[str, Any], found: Sequence[Outcome], resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The table of one data set as a JSON object.

    Args:
      table: whose rows were run.
      context: its ``dataset``, ``metrics`` and ``headline``, and what else the object shall say: command, versions.
      found: all rows, in order.
      resamples: of the bootstrap.
    """
    measured = {one.row.name: one.measured for one in found if one.measured is not None}
    references = {"minus_frozen": FROZEN.name, "minus_reference": table.reference}
    figures = compare_rows(measured, references, context["metrics"], resamples)
    rows = [
        {
            "row": one.row.name,
            "kind": one.row.kind,
            "overrides": dict(one.row.overrides),
            "note": one.row.note,
            "reason": one.reason,
            "metrics": figures.get(one.row.name, {}),
            **{key: value for key, value in one.result.items() if key not in ("machine", "date", "features")},
        }
        for one in found
    ]
    results = [one.result for one in found if one.result]
    return {
        "table": table.name,
        **context,
        "date": max((result["date"] for result in results), default=""),
        "machine": "; ".join(sorted({result["machine"] for result in results})),
        "features": results[0]["features"] if results else {},
        "reference": table.reference,
        "rows": rows,
        "published": [one._asdict() for one in table.published.get(context["dataset"], ())],
    }


def table_page(summary: Mapping[str, Any]) -> Page:
    """Figures and differences of the headline metric, then the differences in the other metrics."""
    return Page(_grids(summary), _reasons(summary) + _notes(summary), _caption(summary))


def _grids(summary: Mapping[str, Any]) -> list[Grid]:
    metrics, headline, reference = summary["metrics"], summary["headline"], summary["reference"]
    header = ["row", *metrics, f"Δ frozen, {headline}", f"Δ {reference}, {headline}", "s", "MB"]
    rows = []
    for row in summary["rows"]:
        figures = row["metrics"]
        cells = [figure(figures.get(metric)) for metric in metrics] + _differences(figures, headline)
        cost = [f"{row[key]:.0f}" if key in row else NONE for key in ("seconds", "megabytes")]
        rows.append([row["row"], *(["not run", *[NONE] * (len(header) - 2)] if row["reason"] else cells + cost)])
    for other in summary["published"]:
        cells = [f"{other['figures'][metric]:g}" if metric in other["figures"] else NONE for metric in metrics]
        if other["figures"]:  # what was measured on other data sets stands in the notes
            rows.append([f"published: {other['name']} ({other['source']})", *cells, NONE, NONE, NONE, NONE])
    grids = [Grid("", header, rows, columns(FIRST, len(header) - 1))]
    others = [metric for metric in metrics if metric != headline]
    if others and any(row["metrics"] for row in summary["rows"]):
        header = ["row", *(f"Δ {other}, {metric}" for metric in others for other in ("frozen", reference))]
        more = [
            [row["row"], *(cell for metric in others for cell in _differences(row["metrics"], metric))]
            for row in summary["rows"]
            if row["metrics"]
        ]
        grids.append(Grid("Differences in the other metrics:", header, more, columns(FIRST, len(header) - 1)))
    return grids


def _differences(figures: Mapping[str, Any], metric: str) -> list[str]:
    return [difference(figures.get(metric, {}).get(key)) for key in ("minus_frozen", "minus_reference")]


def _reasons(summary: Mapping[str, Any]) -> list[str]:
    """What the rows that did not run need, each reason once."""
    names: dict[str, list[str]] = {}
    for row in summary["rows"]:
        if row["reason"]:
            names.setdefault(row["reason"], []).append(row["row"])
    everything = len(summary["rows"])
    return [
        f"not run: {'all rows' if len(rows) == everything else ', '.join(rows)}: {reason}"
        for reason, rows in names.items()
    ]


def _notes(summary: Mapping[str, Any]) -> list[str]:
    notes = []
    for row in summary["rows"]:
        collapsed = row.get("training", {}).get("collapsed", 0)
        said = [row["note"]] if row["note"] else []
        said += [f"**collapsed** in {collapsed:.0%} of its runs, by their last batch"] if collapsed else []
        notes += [f"{row['row']}: {'; '.join(said)}"] if said and not row["reason"] else []
    for other in summary["published"]:
        said = [text for text in (other["protocol"], other["elsewhere"]) if text]
        notes.append(f"published: {other['name']} ({other['source']}): {'; '.join(said)}")
    return notes


def _caption(summary: Mapping[str, Any]) -> str:
    settings = summary["settings"]
    return (
        f"Means over queries; queries and gallery are images of classes that the head was not trained on "
        f"({settings['seeds']} seeds × {settings['folds']} class-disjoint folds, {settings['steps']} steps unless a "
        "row says otherwise), with 95 % bootstrap intervals over classes and seeds. Δ: paired differences to the "
        f"frozen features and to {summary['reference']}. * marks a Holm-corrected p < .05: sign-flip permutation test "
        f"over classes ({FLIPS:,} random flips), corrected over the rows of the table for each metric and comparison. "
        "s, MB: wall time, with compilation or its cache, and peak memory of a process that trains and evaluates all "
        "runs of the row. Figures of others were measured as their row says, and not under this protocol."
    )
