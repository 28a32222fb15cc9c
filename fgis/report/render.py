"""``report.html``: a summary in words, the tables, and, folded up, curves, examples and the configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fgis.base import RunPlan
from fgis.features.joined import listed
from fgis.report import plots, summary
from fgis.report.examples import Examples
from fgis.report.pages import render_template
from fgis.report.tables import ABOVE, BELOW, tables

FOLDED = ("open_set", "transfer_open_set")  # evaluations that are folded up, below the others


def report_html(
    report: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    plans: Sequence[RunPlan],
    examples: Examples | None = None,
) -> str:
    """The page of one report.

    Args:
      report: the content of ``report.json``.
      history: the records of ``metrics.jsonl``; may be empty.
      plans: the runs, in the order of the records' values.
      examples: queries to be shown with their neighbours, if any.

    Returns:
      A page that needs no other file; its bytes depend on the arguments alone.
    """
    shown = tables(report)
    return render_template(
        "report.html",
        report=report,
        title=_title(report["config"].get("features", {})),
        runs=len(plans),
        summary=summary.paragraph(report),
        training=summary.training_words(report),
        warning=summary.warning(report),
        tables=[table for table in shown if table.name not in FOLDED],
        folded_tables=[table for table in shown if table.name in FOLDED],
        marks={"above": ABOVE, "below": BELOW},
        curves=plots.curves(history, plans),
        examples=examples,
        choices=_choices(report["config"]),
    )


def _title(features: Mapping[str, Any]) -> str:
    collection, backbone = features.get("collection"), features.get("backbone")
    if len(paths := listed(features.get("path", ""))) > 1:  # each described by another network
        return f"{collection or 'images'} on {' + '.join(Path(path or 'bundled').stem for path in paths)} features"
    return f"{collection or 'images'} on {backbone} features" if backbone else str(collection or "report")


def _choices(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(group, choice and its arguments) of everything that was in force: options that were not chosen are left out."""
    rows = []
    for group, value in config.items():
        if isinstance(value, Mapping) and "name" in value:
            arguments = value.get(value["name"]) or {}
            listed = ", ".join(f"{key} {item}" for key, item in arguments.items())
            rows.append((group, value["name"] + (f": {listed}" if listed else "")))
        elif isinstance(value, Mapping):
            shown = ((key, item) for key, item in value.items() if key != "published" and item != "")
            rows.append((group, ", ".join(f"{key} {item}" for key, item in shown)))
        else:
            rows.append((group, str(value)))
    return rows
