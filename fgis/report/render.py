"""``report.html``: what was run, its table, its curves, and its worst and best queries, in one self-contained file."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from fgis.base import RunPlan
from fgis.report import plots, summary
from fgis.report.gallery import Answers


def html(
    report: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    plans: Sequence[RunPlan],
    answers: Mapping[str, Sequence[Answers]],
) -> str:
    """The page of one report; ``answers`` maps a title (worst queries, best queries) to the queries shown under it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fgis.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    config = report["config"]
    return environment.get_template("report.html").render(
        report=report,
        config=config,
        runs=len(plans),
        tables=summary.tables(report),
        warning=summary.warning(report),
        curves=plots.curves(history, plans),
        answers=answers,
        choices=_choices(config),
    )


def _choices(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(group, choice and its arguments) of everything that was in force: options that were not chosen are left out."""
    rows = []
    for group, value in config.items():
        if isinstance(value, Mapping) and "name" in value:
            arguments = value.get(value["name"]) or {}
            listed = ", ".join(f"{key} {item}" for key, item in arguments.items())
            rows.append((group, value["name"] + (f": {listed}" if listed else "")))
        elif isinstance(value, Mapping):
            rows.append((group, ", ".join(f"{key} {item}" for key, item in value.items() if key != "published")))
        else:
            rows.append((group, str(value)))
    return rows
