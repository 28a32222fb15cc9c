"""Re-ranking frozen features: what a gallery knows about itself, without training and without a label.

    python -m experiments.reranking [--dataset=ukbench|grocerystore|all] [--folds=5]

Every image is a query, and all images form the gallery, the query included. Each method is run with every combination
of ``GRID``; the images of a fold of objects are scored with the combination that is best, by the headline metric, on
all other folds. The last row chooses the method in the same way.
"""

import itertools
import shlex
import sys
import time
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.command_line import guarded, parse
from experiments.machine import machine
from experiments.rendering import Grid, Page, columns, difference, write_table
from experiments.summaries import FLIPS, RESAMPLES, Measured, compare_rows
from experiments.tables import DATASETS, Options, Row, Table, reason_against, row_config
from fgis.errors import UserError
from fgis.experiment.build import build_folds
from fgis.experiment.config import read_settings
from fgis.experiment.run import Run
from fgis.report.contents import versions
from fgis.report.tables import figure
from fgis.retrieval.evaluate import protocol, score_neighbours
from fgis.retrieval.rerank import RERANKERS, first_search
from fgis.retrieval.selection import choose_on_other_folds

GRID: dict[str, dict[str, tuple]] = {
    "average_query_expansion": {"n": (2, 3, 4, 6, 10)},
    "weighted_query_expansion": {"n": (2, 3, 4, 6, 10), "alpha": (1.0, 3.0, 8.0)},
    "database_augmentation": {"k": (2, 3, 4, 6, 10, 16), "alpha": (1.0, 3.0)},
    "local_scaling": {"k": (2, 3, 4, 6, 10, 30, 100)},
    "augmented_local_scaling": {"k": (2, 3, 4, 8, 16), "alpha": (3.0,), "scale_k": (2, 3, 4, 10, 30)},
    "k_reciprocal": {"k1": (4, 6, 10, 20), "k2": (1, 2, 3, 6, 10), "weight": (0.1, 0.3)},
    "diffusion": {"k": (3, 4, 5, 10, 20), "alpha": (0.5, 0.9, 0.99)},
}
NONE, ANY = "no re-ranking", "the best of all"
CHOSEN = "Parameters chosen, and in how many folds:"
FIRST = 0.22  # of LaTeX's line: the names of the rows

Key = Any  # (method, ((parameter, value), ...))
PerQuery = dict[str, Float[np.ndarray, " n"]]  # by metric


class Reranked(NamedTuple):
    """One row: the values of every query, the parameters of every fold, and the seconds of one re-ranking."""

    name: str
    values: PerQuery
    chosen: Mapping[int, Key]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes the tables; returns the exit code: 0, or 2 after a line about what is missing."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "experiments.reranking", *arguments])

    def work() -> int:
        options = parse("reranking", arguments, trains=False)
        return max(run_and_write(dataset, options, command) for dataset in options.datasets)

    return guarded("reranking", work, "nothing is kept of a data set that was not finished")


def run_and_write(dataset: str, options: Options, command: str) -> int:
    """The table of one data set, printed and written; what is missing of one concerns no other."""

    def work() -> int:
        write_table({"command": command, **run(dataset, options)}, rerank_page, options.workdir)
        return 0

    return guarded(f"reranking: {dataset}", work, "nothing is kept of a data set that was not finished")


def run(dataset: str, options: Options) -> dict[str, Any]:
    """The table of one data set, as a JSON object without its command.

    Raises:
      UserError: its features are missing, or there are more folds than objects.
    """
    config = row_config(Table("reranking", (), NONE), dataset, Row(""), options)
    read_settings(config)
    if reason := reason_against(dataset, Row(""), config):
        raise UserError(reason)
    opened = Run.open(config)
    rows, headline = opened.rows, DATASETS[dataset].headline
    folds = build_folds(opened.settings, rows.labels)
    return summarize_rows(rerank_all(opened, folds, headline), rows.labels, opened.scoring.metrics, headline) | {
        "table": "reranking",
        "dataset": dataset,
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "machine": machine(),
        "features": {"images": len(rows.labels), "size": rows.shape[-1], **rows.source},
        "settings": {"folds": options.folds, "objects": len(np.unique(rows.labels)), "grid": GRID},
    }


def rerank_all(opened: Run, folds: Int[np.ndarray, " n"], headline: str) -> list[Reranked]:
    """Every row: none, each method with parameters from other objects, and the method from other objects too."""
    features, scoring, labels, coarse = opened.features, opened.scoring, opened.rows.labels, opened.rows.coarse
    everything = protocol(labels, scoring.metrics)
    depth = everything.depth + 1  # the query is in its own list
    first = first_search(features, features, depth, scoring.distance)  # compiles what is timed below
    values: dict[Key, PerQuery] = {}
    seconds: dict[Key, float] = {}
    for key in [(NONE, ()), *combinations()]:
        method, parameters = RERANKERS.get(key[0]), dict(key[1])
        began = time.perf_counter()
        if method:
            found = method(first, **parameters)
        else:
            found = first_search(features, features, depth, scoring.distance).neighbours
        seconds[key] = time.perf_counter() - began
        values[key] = score_neighbours(found, labels, everything, scoring.metrics, coarse)
        shown = f"{headline} {np.nanmean(values[key][headline]):.4f}, {seconds[key]:.1f} s"
        print(f"reranking: {readable(key)}: {shown}", file=sys.stderr, flush=True)
    rows = []
    for name in (NONE, *GRID, ANY):
        keys = [key for key in values if name in (key[0], ANY)]
        _, chosen = choose_on_other_folds({key: values[key][headline] for key in keys}, folds)
        picked = pick(values, chosen, folds)
        rows.append(Reranked(name, picked, chosen, float(np.mean([seconds[key] for key in chosen.values()]))))
    return rows


def pick(values: Mapping[Key, PerQuery], chosen: Mapping[int, Hashable], folds: Int[np.ndarray, " n"]) -> PerQuery:
    """The values of every query by the parameters that were chosen for its fold."""
    picked = {metric: np.full(len(folds), np.nan) for metric in next(iter(values.values()))}
    for fold, key in chosen.items():
        for metric in picked:
            picked[metric][folds == fold] = values[key][metric][folds == fold]
    return picked


def combinations() -> list[Key]:
    """Every method with every combination of its parameters."""
    return [
        (name, tuple(zip(grid, values, strict=True)))
        for name, grid in GRID.items()
        for values in itertools.product(*grid.values())
    ]


def summarize_rows(
    found: Sequence[Reranked], labels: Int[np.ndarray, " n"], metrics: Sequence[str], headline: str
) -> dict[str, Any]:
    """Means and intervals of every row, and paired differences to no re-ranking, Holm-corrected over the rows."""
    measured = {one.name: Measured({name: x[None] for name, x in one.values.items()}, labels) for one in found}
    figures = compare_rows(measured, {"minus_none": NONE}, metrics, RESAMPLES)
    rows = [
        {
            "row": one.name,
            "metrics": figures[one.name],
            "chosen": {str(fold): {"method": key[0], **dict(key[1])} for fold, key in one.chosen.items()},
            "shown": "; ".join(f"{readable(key)} ×{n}" for key, n in Counter(one.chosen.values()).most_common()),
            "seconds": one.seconds,
        }
        for one in found
    ]
    return {"metrics": list(metrics), "headline": headline, "rows": rows}


def readable(key: Key) -> str:
    """``method k=3 alpha=1``."""
    return " ".join([key[0], *(f"{name}={value:g}" for name, value in key[1])])


def rerank_page(summary: Mapping[str, Any]) -> Page:
    """The figures, the differences in metrics other than the headline, and the parameters."""
    metrics, headline = summary["metrics"], summary["headline"]
    others = [metric for metric in metrics if metric != headline]
    minus_none = lambda figures, metric: difference(figures[metric].get("minus_none"))
    figures, differences, chosen = [], [], []
    for row in summary["rows"]:
        name, found = row["row"].replace("_", " "), row["metrics"]
        cells = [figure(found[metric]) for metric in metrics]
        figures.append([name, *cells, minus_none(found, headline), f"{row['seconds']:.2f}"])
        if row["row"] != NONE:
            differences.append([name, *(minus_none(found, metric) for metric in others)])
            chosen.append([name, row["shown"].replace("_", " ")])
    header = ["row", *metrics, f"Δ {NONE}, {headline}", "s"]
    grids = [Grid("", header, figures, columns(FIRST, len(header) - 1))]
    if others:
        header = ["row", *(f"Δ {NONE}, {metric}" for metric in others)]
        grids.append(Grid("Differences in the other metrics:", header, differences, columns(FIRST, len(others))))
    grids.append(Grid(CHOSEN, ["row", "parameters"], chosen, columns(FIRST, 0) + r"p{0.7\linewidth}"))
    return Page(grids, (), _caption(summary))


def _caption(summary: Mapping[str, Any]) -> str:
    settings, features = summary["settings"], summary["features"]
    return (
        f"Frozen features ({features['size']} dimensions, {features.get('backbone') or 'as given'}), no training; all "
        f"{features['images']:,} images are queries, and all form the gallery. Means over queries with 95 % bootstrap "
        f"intervals over {settings['objects']} objects. Parameters: for each of {settings['folds']} folds of objects "
        f"those with the best {summary['headline']} on the other folds. Δ: paired differences; * marks a "
        f"Holm-corrected p < .05: sign-flip permutation test over objects ({FLIPS:,} random flips), corrected over the "
        "rows of the table for each metric. s: seconds of one re-ranking of all queries, including what has to be "
        f"computed of the gallery, and of the first search in the row '{NONE}'."
    )


if __name__ == "__main__":
    sys.exit(main())
