"""Training curves as SVG elements, which an HTML page holds without any other file."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fgis.base import RunPlan
from fgis.report.fonts import import_matplotlib

if TYPE_CHECKING:  # matplotlib is imported by the functions that draw: commands that draw nothing start without it
    from matplotlib.figure import Figure

CURVES = {
    "loss": "training loss",
    "validation_loss": "validation loss",
    "active": "active terms of the loss (share)",
    "positive_distance": "distance to positives",
    "negative_distance": "distance to negatives",
    "effective_rank": "effective rank of the embeddings",
    "dead_units": "dead dimensions (share)",
}
INK = "#010203"  # stands for the page's text colour while a figure is drawn
INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
STYLE: dict[Any, Any] = {
    **dict.fromkeys(INKED, INK),
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.hashsalt": "fgis",
    "svg.fonttype": "none",
}
GROUPS = (("all objects", "-", "#3b82c4"), ("folds", "--", "#d97a1e"))  # readable on white and on black

PANEL = (0.13, 0.185, 0.85, 0.7)  # left, bottom, width and height in a figure: quicker than a layout that is computed


class Curve(NamedTuple):
    """One figure of a report."""

    title: str
    svg: str  # an <svg> element


def curves(history: Sequence[Mapping[str, Any]], plans: Sequence[RunPlan]) -> list[Curve]:
    """A figure per recorded quantity of ``CURVES``: mean and range over runs by step.

    Runs that were trained on all objects and runs that left out a fold are drawn apart. What was not recorded, or has
    no finite value, has no figure.
    """
    drawn = []
    for name, title in CURVES.items():
        if all(name in record for record in history) and history:
            table = np.array([record[name] for record in history], float)
            if np.isfinite(table).any():
                steps = [record["step"] for record in history]
                drawn.append(Curve(title, _draw_curve(name, title, steps, table, plans)))
    return drawn


def _draw_curve(name: str, title: str, steps: list[int], table: np.ndarray, plans: Sequence[RunPlan]) -> str:
    import_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 2.7))
        axes = figure.add_axes(PANEL)
        for (label, style, colour), folds in zip(GROUPS, (False, True), strict=True):
            runs = [run for run, plan in enumerate(plans) if (plan.fold >= 0) == folds]
            if runs:
                some, legend = table[:, runs], f"{label} ({len(runs)} {'run' if len(runs) == 1 else 'runs'})"
                axes.plot(steps, some.mean(axis=1), style, color=colour, label=legend)
                axes.fill_between(steps, some.min(axis=1), some.max(axis=1), color=colour, alpha=0.25, linewidth=0)
        axes.set(xlabel="step", title=title)
        axes.set_ylim(min(0, np.nanmin(table)), 1.08 * max(np.nanmax(table), 1e-3))
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=10)
        return to_svg(figure, name)


def to_svg(figure: "Figure", name: str) -> str:
    """A figure as an <svg> element; the same figure and name give the same text.

    Identifiers begin with ``name``, so that several figures can stand in one page; what is drawn in ``INK`` has the
    text colour of the page.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):  # not by savefig, which draws everything twice
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text)
