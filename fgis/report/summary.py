"""The table of a report, as rows of text: one for the terminal, the HTML page and the README alike."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

TITLES = {
    "closed_set": "closed set: every image asks, every image answers, the head was trained on all of them",
    "unseen_objects": "unseen objects: queries show objects that the head was not trained on, all images answer",
    "unseen_gallery": "unseen gallery: the same queries, asked of unseen objects alone, which no fit can flatter",
    "open_set": "open set: is there anything like it? Every query asks with its object in the gallery, and without it",
    "triplets": "triplets: is the positive nearer to the query than the negative? Heads that have not seen its object",
    "transfer": "transfer: images of another feature file, none of them used in training",
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


def figure(value: Mapping[str, Any] | None, signed: bool = False) -> str:
    """``3.942 [3.921, 3.960]``; a dash where there is no figure."""
    if value is None or value["mean"] is None:
        return "–"
    sign = "+" if signed else ""
    low, high = value["ci95"]
    return f"{value['mean']:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def tables(report: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of every evaluation: what others published, the frozen features, the trained head."""
    published = report["config"]["evaluation"]["published"]
    found = []
    for name, evaluation in report["evaluations"].items():
        metrics = list(evaluation["trained"])
        rows = []
        for source in dict.fromkeys(entry[0] for entry in published if entry[1] == name):
            figures = {metric: value for who, where, metric, value in published if (who, where) == (source, name)}
            rows.append([source, *(f"{figures[metric]:g}" if metric in figures else "–" for metric in metrics)])
        for key, label in ((key, label) for key, label in ROWS.items() if key in evaluation):
            signed = key.startswith("difference")
            rows.append([label, *(figure(evaluation[key].get(metric), signed) for metric in metrics)])
        kind = "triplets" if name == "triplets" else "queries"
        counts = f"{evaluation['queries']} {kind}, gallery of {evaluation['gallery']}"
        if evaluation["without_relatives"]:
            counts += f", {evaluation['without_relatives']} without relatives left out"
        if tied := max(evaluation.get("tied", {}).values(), default=0):
            counts += f", up to {tied:g} of them cut off at a tie"
        found.append((f"{TITLES[name]} ({counts})", ["", *metrics], rows))
    return found


def collapsed(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """The runs whose embeddings were nearly one point or one line at the last record."""
    flags = history[-1].get("collapsed", []) if history else []
    return [run for run, flag in enumerate(flags) if flag]


def warning(report: Mapping[str, Any]) -> str:
    """What is to be said of collapsed runs, or nothing."""
    runs = report.get("collapsed", [])
    if not runs:
        return ""
    config = report["config"]
    named = ", ".join(f"seed {seed}" + (f" fold {fold}" if fold >= 0 else "") for seed, fold in runs[:6])
    return (
        f"COLLAPSED: {len(runs)} runs ({named}{', ...' if len(runs) > 6 else ''}) ended with embeddings that are "
        "nearly one point or one line; their figures say nothing about the features. They had the miner "
        f"{config['miner']['name']} and the loss {config['loss']['name']}: take easier negatives (semi_hard, "
        "distance_weighted) or a lower learning rate."
    )


def text(report: Mapping[str, Any]) -> str:
    """The tables for a terminal; figures are means with 95 % intervals over seeds and objects."""
    parts = [f"{warning(report)}\n"] if warning(report) else []
    parts += [
        f"{title}\n{tabulate(rows, header, tablefmt='simple', disable_numparse=True)}\n"
        for title, header, rows in tables(report)
    ]
    return "\n".join(parts)
