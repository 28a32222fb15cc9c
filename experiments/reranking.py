"""Re-ranking frozen features: what a gallery knows about itself, without training and without a label.

    python -m experiments.reranking [--dataset=ukbench|grocerystore|all] [--folds=5]

Every image asks and every image answers, the query included. Each method is run with every combination of ``GRID``;
the images of a fold of objects are scored with the combination that is best, by the headline metric, on all other
folds. The last row chooses the method in the same way.
"""

import argparse
import itertools
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from tabulate import tabulate

from experiments.grid import machine
from experiments.tables import DATASETS, LEVEL, RESAMPLES, Options, Row, Table, escape, reason_against, row_config
from fgis import build, choices, modes, reporting
from fgis.errors import UserError
from fgis.report import records
from fgis.report.summary import figure
from fgis.retrieval.evaluate import judge, object_folds, protocol, summarize
from fgis.retrieval.rerank import RERANKERS, choose_on_other_folds
from fgis.retrieval.search import search
from fgis.retrieval.significance import FLIPS, corrected, paired

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
COMMENTARY: dict[str, str] = {
    "ukbench": (
        "What it shows: without a label, database augmentation lifts N-S from 3.939 to 3.981, k-reciprocal "
        "sets to 3.986, and augmentation with local scaling behind it to 3.990; four folds of five choose the"
        " same parameters for it. Asked for objects that it has not seen, in the same gallery, the default "
        "head gives 3.961, and 3.966 before training (README; other heads that were tried there reach 3.974 "
        "at most, experiments/results/heads.md). Recall@1 hardly moves, .997 to .999: what is gained are the "
        "third and fourth view. An object has four views here, and methods that average over three or four "
        "neighbours profit from that; a gallery with single images would not."
    ),
    "grocerystore": (
        "What it shows: a trade that averages hide. Diffusion adds .114 MAP@R and database augmentation .091,"
        " but both lose what is nearest: recall@1 falls by .073 and .044, presumably because a query that was"
        " answered rightly is drawn towards the middle of its neighbourhood. Local scaling is the one method "
        "that improves both (+.024 and +.008). Parameters were chosen by MAP@R; whoever looks at the first "
        "answer should take local scaling or nothing. Every method has a parameter at the end of its grid in most "
        "folds, so these are not the best that it can do. Diffusion takes 37 s, the others 1 to 3."
    ),
}

Key = Any  # (method, ((parameter, value), ...))
PerQuery = dict[str, Float[np.ndarray, " n"]]  # by metric


class Found(NamedTuple):
    """One row: the values of every query, the parameters of every fold, and the seconds of one re-ranking."""

    name: str
    values: PerQuery
    chosen: Mapping[int, Key]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes the tables; returns the exit code: 0, or 2 after a line about what is missing."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, code = shlex.join(["python", "-m", "experiments.reranking", *arguments]), 0
    parser = argparse.ArgumentParser(prog="python -m experiments.reranking")
    parser.add_argument("--dataset", choices=[*DATASETS, "all"], default="all")
    parser.add_argument("--folds", type=int, default=Options().folds)
    parser.add_argument("--workdir", type=Path, default=Options().workdir, help="where the tables are written")
    parser.add_argument("--features.path", dest="features_path", default="", help="a feature file of the data set")
    given = parser.parse_args(arguments)
    for dataset in DATASETS if given.dataset == "all" else [given.dataset]:
        options = Options((dataset,), folds=given.folds, workdir=given.workdir, features_path=given.features_path)
        try:
            if given.features_path and given.dataset == "all":
                raise UserError("--features.path: holds the features of one data set; name it with --dataset")
            write(run(dataset, options), command, options)
        except UserError as error:
            print(f"reranking: {dataset}: {error}", file=sys.stderr)
            code = 2
    return code


def run(dataset: str, options: Options) -> dict[str, Any]:
    """The table of one data set, as a JSON object without its command; ``UserError`` where its features are missing."""
    config = row_config(Table("reranking", (), NONE), dataset, Row(""), options)
    choices.check(config)
    if reason := reason_against(dataset, Row(""), config):
        raise UserError(reason)
    _, rows = modes.open_source(config)
    scoring = build.build_scoring(config)
    if options.folds > (objects := len(np.unique(rows.labels))):
        raise UserError(f"--folds: {options.folds} folds of {objects} objects; write at most {objects}")
    folds = object_folds(rows.labels, options.folds, config.seed)
    headline = DATASETS[dataset].headline
    found = rerank_all(reporting.prepared(rows, scoring), rows.labels, folds, scoring, headline, rows.coarse)
    return summarize_rows(found, rows.labels, scoring.metrics, headline) | {
        "table": "reranking",
        "dataset": dataset,
        "date": time.strftime("%Y-%m-%d"),
        "versions": records.versions(),
        "machine": machine(),
        "features": {"images": len(rows.labels), "size": rows.shape[-1], **rows.source},
        "settings": {"folds": options.folds, "objects": objects, "grid": GRID},
        "commentary": COMMENTARY.get(dataset, ""),
    }


def rerank_all(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], folds: Int[np.ndarray, " n"],
    scoring: build.Scoring, headline: str, coarse: Int[np.ndarray, " n"] | None = None,
) -> list[Found]:  # fmt: skip
    """Every row: none, each method with parameters from other objects, and the method from other objects too."""
    images, asked = np.arange(len(labels)), protocol(labels, scoring.metrics)
    once = lambda: search(features, features, asked.depth + 1, scoring.distance)  # the query is in its own list
    first = once()  # compiles what the second one, which is timed, has compiled
    values: dict[Key, PerQuery] = {}
    seconds: dict[Key, float] = {}
    for key in [(NONE, ()), *combinations()]:
        method, parameters = RERANKERS.get(key[0]), dict(key[1])
        began = time.perf_counter()
        found = method(features, features, first, scoring.distance, images, **parameters) if method else once()
        seconds[key] = time.perf_counter() - began
        values[key] = judge(found, labels, asked, scoring.metrics, coarse)
        shown = f"{headline} {np.nanmean(values[key][headline]):.4f}, {seconds[key]:.1f} s"
        print(f"reranking: {readable(key)}: {shown}", file=sys.stderr, flush=True)
    rows = []
    for name in (NONE, *GRID, ANY):
        keys = [key for key in values if name in (key[0], ANY)]
        _, chosen = choose_on_other_folds({key: values[key][headline] for key in keys}, folds)
        picked = {metric: np.full(len(labels), np.nan) for metric in scoring.metrics}
        for fold, key in chosen.items():
            for metric in picked:
                picked[metric][folds == fold] = values[key][metric][folds == fold]
        rows.append(Found(name, picked, chosen, float(np.mean([seconds[key] for key in chosen.values()]))))
    return rows


def combinations() -> list[Key]:
    """Every method with every combination of its parameters."""
    return [
        (name, tuple(zip(grid, values, strict=True)))
        for name, grid in GRID.items()
        for values in itertools.product(*grid.values())
    ]


def summarize_rows(
    found: Sequence[Found], labels: Int[np.ndarray, " n"], metrics: Sequence[str], headline: str
) -> dict[str, Any]:
    """Means and intervals of every row, and paired differences to no re-ranking, Holm-corrected over the rows."""
    base = found[0].values
    figures: dict[str, dict[str, Any]] = {one.name: {} for one in found}
    for metric in metrics:
        for one in found:
            figures[one.name][metric] = summarize(one.values[metric][None], labels, RESAMPLES)
        against = {
            one.name: paired(one.values[metric][None], base[metric][None], labels, RESAMPLES) for one in found[1:]
        }
        for name, comparison in corrected(against).items():
            figures[name][metric]["minus_none"] = comparison
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


def write(summary: dict[str, Any], command: str, options: Options) -> None:
    """Prints the table, and writes it into the workdir, as Markdown, LaTeX and JSON."""
    stem = options.workdir / f"{summary['table']}.{summary['dataset']}"
    options.workdir.mkdir(parents=True, exist_ok=True)
    records.write_json(f"{stem}.json", {"command": command, **summary})
    plain: dict[str, Any] = records.read_json(f"{stem}.json") or {}
    for ending, text in ((".md", markdown(plain)), (".tex", latex(plain))):
        records.write_text(f"{stem}{ending}", text)
        print(text)
    print(json.dumps(plain, ensure_ascii=False), flush=True)


def markdown(summary: Mapping[str, Any]) -> str:
    """The table for GitHub."""
    parts = [
        f"## {summary['table']}: {summary['dataset']}",
        " · ".join(["`" + summary["command"] + "`", *_made(summary)]),
    ]
    for title, header, rows in _grids(summary):
        parts += [title, tabulate(rows, header, tablefmt="github", disable_numparse=True)]
    return "\n\n".join(part for part in [*parts, _caption(summary), summary["commentary"]] if part) + "\n"


def latex(summary: Mapping[str, Any]) -> str:
    r"""The same as a fragment for ``\input``; needs ``\usepackage{booktabs}``."""
    head = [f"{summary['table']}: {summary['dataset']}", summary["command"], *_made(summary)]
    lines = [f"% {line}" for line in head] + [r"% needs \usepackage{booktabs}"]
    for title, header, rows in _grids(summary):
        lines += [r"\par\medskip\noindent " + escape(title)] if title else []
        columns = r"p{0.22\linewidth}" + ("l" * (len(header) - 1) if title != CHOSEN else r"p{0.7\linewidth}")
        lines += [r"\par\smallskip\noindent", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        body = [" & ".join(escape(cell) for cell in row) + r" \\" for row in rows]
        lines += [" & ".join(escape(cell) for cell in header) + r" \\", r"\midrule", *body, r"\bottomrule"]
        lines += [r"\end{tabular}"]
    below = [_caption(summary), *summary["commentary"].split("\n\n")]
    lines += [r"\par\smallskip\noindent " + escape(" ".join(text.split())) for text in below if text.strip()]
    return "\n".join(lines) + "\n"


def _made(summary: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return [summary["date"], versions, summary["machine"]]


def _grids(summary: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of the figures, the differences in metrics other than the headline, and the parameters."""
    metrics, headline = summary["metrics"], summary["headline"]
    others = [metric for metric in metrics if metric != headline]
    figures, differences, chosen = [], [], []
    for row in summary["rows"]:
        name, found = row["row"].replace("_", " "), row["metrics"]
        figures.append([
            name, *(figure(found[metric]) for metric in metrics), _difference(found[headline]), f"{row['seconds']:.2f}",
        ])  # fmt: skip
        if row["row"] != NONE:
            differences.append([name, *(_difference(found[metric]) for metric in others)])
            chosen.append([name, row["shown"].replace("_", " ")])
    grids = [("", ["row", *metrics, f"Δ {NONE}, {headline}", "s"], figures)]
    if others:
        titles = [f"Δ {NONE}, {metric}" for metric in others]
        grids.append(("Differences in the other metrics:", ["row", *titles], differences))
    return [*grids, (CHOSEN, ["row", "parameters"], chosen)]


def _difference(found: Mapping[str, Any]) -> str:
    one = found.get("minus_none")
    return figure(one, signed=True) + ("*" if one and one["p_holm"] < LEVEL else "")


def _caption(summary: Mapping[str, Any]) -> str:
    settings, features = summary["settings"], summary["features"]
    return (
        f"Frozen features ({features['size']} dimensions, {features.get('backbone') or 'as given'}), no training; all "
        f"{features['images']:,} images ask, and all answer. Means over queries with 95 % bootstrap intervals over "
        f"{settings['objects']} objects. Parameters: for each of {settings['folds']} folds of objects those with the "
        f"best {summary['headline']} on the other folds. Δ: paired differences; * marks a Holm-corrected p < .05: "
        f"sign-flip permutation test over objects ({FLIPS:,} random flips), corrected over the rows of the table for "
        "each metric. s: seconds of one re-ranking of all queries, whatever the gallery needs included, and of the "
        f"first search in the row '{NONE}'."
    )


if __name__ == "__main__":
    sys.exit(main())
