"""Figures for the report, as SVG text that an HTML page holds without any other file."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fgis.base import RunPlan

CURVES = {
    "loss": "training loss",
    "validation_loss": "validation loss",
    "active": "active terms of the loss (share)",
    "positive_distance": "distance to positives",
    "negative_distance": "distance to negatives",
    "effective_rank": "effective rank of the embeddings",
    "dead_units": "dead dimensions (share)",
}
COLUMNS = 3


def curves(history: Sequence[Mapping[str, Any]], plans: Sequence[RunPlan]) -> str:
    """Training curves by step: the mean and the range over runs that saw all objects, and over runs that saw folds."""
    names = [name for name in CURVES if history and name in history[0]]
    if not names:
        return ""
    groups = {"all objects": [r for r, plan in enumerate(plans) if plan.fold < 0]}
    groups["folds"] = [r for r, plan in enumerate(plans) if plan.fold >= 0]
    steps = [record["step"] for record in history]
    lines = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.8 * lines), layout="constrained")
    places = np.ravel(figure.subplots(lines, COLUMNS))
    for axes in places[len(names) :]:
        axes.remove()
    for axes, name in zip(places, names, strict=False):
        table = np.array([record[name] for record in history], float)
        for label, runs in groups.items():
            if runs:
                axes.plot(steps, table[:, runs].mean(axis=1), label=f"{label} ({len(runs)} runs)")
                axes.fill_between(steps, table[:, runs].min(axis=1), table[:, runs].max(axis=1), alpha=0.25)
        axes.set(xlabel="step", title=CURVES[name])
        axes.set_ylim(min(0, np.nanmin(table)), 1.08 * max(np.nanmax(table), 1e-3))
        axes.grid(alpha=0.3)
    places[0].legend(frameon=False)
    return to_svg(figure)


def to_svg(figure: Figure) -> str:
    """A figure as an <svg> element; the same figure gives the same text."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "fgis", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
