"""The evaluations of a report as tables of text, for the terminal and the HTML page alike."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

TITLES = {
    "closed_set": "the gallery is all images, and the head was trained on all of them",
    "unseen_objects": "queries show objects that the head was not trained on, the gallery is all images",
    "unseen_gallery": "the same queries, and a gallery of objects that the head was not trained on either, so that "
    "fitting the gallery cannot raise the figures",
    "new_photos": "queries are photos that the head was not trained on, of objects that it was; the gallery is the "
    "photos that it was trained on",
    "open_set": "is there an image of the query's object in the gallery? Every query is searched with its object in "
    "the gallery and without it",
    "triplets": "is the positive nearer to the query than the negative? By heads that were not trained on the "
    "query's object, where there are such",
    "transfer": "images of another feature file than the one that the head was trained on, in a gallery of their own",
    "transfer_open_set": "the open set on the images of the other feature file",
}
ROWS = {
    "frozen": "frozen features",
    "untrained": "head before training",
    "trained": "trained head",
    "frozen_reranked": "frozen features, re-ranked",
    "reranked": "trained head, re-ranked",
    "difference": "trained − frozen, paired",
    "difference_untrained": "trained − untrained, paired",
    "difference_reranked": "re-ranked − trained, paired",
}
NONE = "–"
ABOVE, BELOW = "▲", "▼"
ROUNDING = 1e-12  # a bound this near 0 is 0: resampled sums of equal terms differ in their last bits


class Cell(NamedTuple):
    """One figure of a table."""

    value: str  # NONE where there is no figure
    low: str = ""  # of the 95 % interval; "" where there is none
    high: str = ""
    mark: str = ""  # ABOVE or BELOW: a difference whose interval excludes 0

    def __str__(self) -> str:
        """The figure and its interval, as a terminal shows them."""
        return f"{self.value} [{self.low}, {self.high}]" if self.low else self.value


class Row(NamedTuple):
    """One row of a table."""

    title: str
    cells: Sequence[Cell]  # one per metric
    difference: bool = False


class Table(NamedTuple):
    """One evaluation of a report."""

    name: str  # as in report.json
    title: str
    description: str  # with the numbers of queries and of gallery images
    metrics: Sequence[str]
    rows: Sequence[Row]
    note: str  # one sentence about figures that are missing, or ""


def distinguishable(value: Mapping[str, Any] | None) -> int:
    """1 where the 95 % interval of a figure lies above 0, -1 where it lies below, 0 where it contains 0 or is missing.

    >>> [distinguishable({"mean": 0.2, "ci95": ci}) for ci in ([0.1, 0.3], [0.0, 0.4], [-0.3, -0.1])]
    [1, 0, -1]
    """
    if not defined(value) or not all(map(_is_finite, value["ci95"])):
        return 0
    low, high = value["ci95"]
    return int(low > ROUNDING) - int(high < -ROUNDING)


def defined(value: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Whether there is a figure: neither missing, nor null or NaN because no query has a value."""
    return value is not None and _is_finite(value["mean"])


def make_cell(value: Mapping[str, Any] | None, signed: bool = False) -> Cell:
    """A figure with four decimals and its interval; signed figures have a sign, and a mark as ``distinguishable``."""
    if not defined(value):
        return Cell(NONE)
    sign = "+" if signed else ""
    mean, low, high = (f"{x:{sign}.4f}" if _is_finite(x) else "" for x in (value["mean"], *value["ci95"]))
    mark = ("", ABOVE, BELOW)[distinguishable(value)] if signed else ""
    return Cell(mean, low if high else "", high if low else "", mark)


def figure(value: Mapping[str, Any] | None, signed: bool = False) -> str:
    """``3.9420 [3.9210, 3.9600]``; a dash where there is no figure.

    >>> figure({"mean": 0.5, "ci95": [0.25, 0.75]}, signed=True)
    '+0.5000 [+0.2500, +0.7500]'
    """
    return str(make_cell(value, signed))


def tables(report: Mapping[str, Any]) -> list[Table]:
    """One table per evaluation: published figures, those of the frozen features and the heads, and differences."""
    published = report.get("published", report["config"]["evaluation"]["published"])
    return [_table(name, evaluation, published) for name, evaluation in report["evaluations"].items()]


def _table(name: str, evaluation: Mapping[str, Any], published: Sequence[Sequence[Any]]) -> Table:
    metrics = list(evaluation["trained"])
    rows = []
    for source in dict.fromkeys(entry[0] for entry in published if entry[1] == name):
        figures = {metric: value for who, where, metric, value in published if (who, where) == (source, name)}
        rows.append(Row(source, [Cell(f"{figures[m]:g}" if m in figures else NONE) for m in metrics]))
    present = {key: title for key, title in ROWS.items() if key in evaluation}
    for key, title in present.items():
        signed = key.startswith("difference")
        rows.append(Row(title, [make_cell(evaluation[key].get(metric), signed) for metric in metrics], signed))
    undefined = any(value is not None and not defined(value) for key in present for value in evaluation[key].values())
    return Table(
        name=name,
        title=name.replace("_", " "),
        description=f"{TITLES[name]} ({_counts(name, evaluation)})",
        metrics=metrics,
        rows=rows,
        note=_missing(evaluation) if undefined else "",
    )


def _counts(name: str, evaluation: Mapping[str, Any]) -> str:
    kind = "triplets" if name == "triplets" else "queries"
    counts = f"{evaluation['queries']} {kind}, gallery of {evaluation['gallery']}"
    if left_out := evaluation["without_relatives"]:
        counts += f", {left_out} without a relevant image left out"
    if lines := evaluation.get("left_out"):
        counts += f", {len(lines)} lines of the file left out"
    if tied := max(evaluation.get("tied", {}).values(), default=0):
        counts += f", up to {tied:g} of them cut off at a tie"
    return counts


def _missing(evaluation: Mapping[str, Any]) -> str:
    if evaluation["without_relatives"] == evaluation["queries"]:
        return "No query has a relevant image in the data set, so there is nothing to score."
    return f"{NONE}: no query has a value."


def _is_finite(number: float | int | None) -> bool:
    return number is not None and math.isfinite(number)
