"""What a paper's table is: rows as configurations, the statistics over them, and JSON, Markdown and LaTeX.

``summarize_table`` makes the JSON object; ``markdown`` and ``latex`` render that object and nothing else.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from jaxtyping import Float, Int
from tabulate import tabulate

from configs import grocerystore, ukbench
from fgis import choices
from fgis.errors import UserError
from fgis.report.summary import figure
from fgis.retrieval.evaluate import summarize
from fgis.retrieval.significance import FLIPS, corrected, paired

LEVEL = 0.05
RESAMPLES = 2000


class Row(NamedTuple):
    """One experiment: what it changes in the data set's configuration."""

    name: str
    overrides: Mapping[str, Any] = {}  # dotted keys of the config -> values
    note: str = ""
    kind: str = "trained"  # or "untrained": the head as it begins; or "frozen": no head
    impossible: Mapping[str, str] = {}  # data set -> why this row cannot be there


class Published(NamedTuple):
    """What others printed: a row of its own, with a dash for every metric that it does not give on this data set."""

    name: str
    source: str
    protocol: str
    figures: Mapping[str, float] = {}  # of this data set's metrics, though perhaps under another protocol
    elsewhere: str = ""  # figures on other data sets, as text


class Table(NamedTuple):
    """One module of experiments: its rows, and what is printed beside and below them."""

    name: str
    rows: Sequence[Row]
    reference: str  # the name of the row that the others are compared with: batch-hard, the default
    published: Mapping[str, Sequence[Published]] = {}  # data set -> rows of others
    commentary: Mapping[str, str] = {}  # data set -> what the table shows
    base: Mapping[str, Any] = {}  # overrides that all rows share


class Found(NamedTuple):
    """What a row gave; no values where it did not run, and then why."""

    row: Row
    values: Mapping[str, Float[np.ndarray, "s n"]] | None = None
    labels: Int[np.ndarray, " n"] | None = None
    result: Mapping[str, Any] = {}  # seconds, megabytes, machine, date, features, training
    reason: str = ""


class Dataset(NamedTuple):
    """A configuration, the folder of its images as README names it, and what its tables show."""

    file: str
    get_config: Callable[[], ml_collections.ConfigDict]
    images: str
    metrics: tuple[str, ...]
    headline: str


DATASETS = {
    "ukbench": Dataset(
        "configs/ukbench.py", ukbench.get_config, "ukbench", ("ns_score", "recall@1", "map@r"), "ns_score"
    ),
    "grocerystore": Dataset(
        "configs/grocerystore.py",
        grocerystore.get_config,
        "grocerystore",
        ("recall@1", "map@r", "r_precision"),
        "map@r",
    ),
}


class Options(NamedTuple):
    """The command line."""

    datasets: Sequence[str] = tuple(DATASETS)
    seeds: int = 10
    folds: int = 5
    steps: int | None = None
    workdir: Path = Path("runs/tables")
    features_path: str = ""


FROZEN = Row("frozen features", note="no head, no training", kind="frozen")
UNTRAINED = Row("untrained head", note="its whitened start, fitted without labels", kind="untrained")


def row_config(table: Table, dataset: str, row: Row, options: Options) -> ml_collections.ConfigDict:
    """The configuration of one row; a key that does not exist is left for ``choices.check`` to name."""
    config = DATASETS[dataset].get_config()
    shared: dict[str, Any] = {
        "seeds": options.seeds, "folds": options.folds, "closed_set": False, "evaluation.published": (),
        "evaluation.metrics": DATASETS[dataset].metrics,
    }  # fmt: skip
    if options.steps is not None:
        shared["train.total_steps"] = options.steps
    if options.features_path:  # a file of the user's own: taken as it is, and described in the table by what it says
        shared |= {"features.path": options.features_path, "features.backbone": ""}
    for key, value in {**shared, **table.base, **row.overrides}.items():
        *groups, last = key.split(".")
        inner = config
        for group in groups:
            if group not in inner:
                inner[group] = ml_collections.ConfigDict()
            inner = inner[group]
        inner[last] = value
    return config


def reason_against(dataset: str, row: Row, config: ml_collections.ConfigDict) -> str:
    """Why a row cannot run: what the data set has not, what its configuration has wrong, or which file is missing."""
    if dataset in row.impossible:
        return row.impossible[dataset]
    try:
        choices.check(config)
    except UserError as error:
        return f"failed: {error}"
    path = config.features.path
    if not path or Path(path).exists():
        return ""
    changed = {key: value for key, value in row.overrides.items() if key.startswith("features.")}
    flags = {"features.images": DATASETS[dataset].images, "features.path": path, **changed}
    given = " ".join(shlex.quote(f"--config.{key}={value}".replace(" ", "")) for key, value in flags.items())
    command = f"python -m fgis.main --config={DATASETS[dataset].file} --mode=extract {given}"
    return f"needs {path}; run `{command}` and then this command again"


def place_of(folder: Path, kind: str, overrides: Mapping[str, Any]) -> Path:
    """A folder for each experiment, whatever the tables call it: readable at the front, unique by its end."""
    settled = json.dumps([kind, overrides], sort_keys=True)
    words = [kind, *(f"{key}={value}" for key, value in sorted(overrides.items()))]
    readable = re.sub(r"[^\w.,=+-]+", "_", ",".join(words))[:60]
    return folder / f"{readable}-{hashlib.sha256(settled.encode()).hexdigest()[:8]}"


def summarize_table(
    table: Table,
    dataset: str,
    metrics: Sequence[str],
    headline: str,
    found: Sequence[Found],
    context: Mapping[str, Any],
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The table as one JSON object: ``context`` (command, versions, settings), then the statistics of every row.

    Differences are paired with the frozen features and with the reference row; each comparison of each metric is a
    family of its own, corrected over all rows of the table.
    """
    ran = {one.row.name: one for one in found if one.values is not None}
    figures: dict[str, dict[str, Any]] = {name: {} for name in ran}
    for metric in metrics:
        for name, one in ran.items():
            figures[name][metric] = summarize(_values(one, metric), _labels(one), resamples)
        for key, other in (("minus_frozen", FROZEN.name), ("minus_reference", table.reference)):
            comparisons = {
                name: paired(_values(one, metric), _values(ran[other], metric), _labels(one), resamples)
                for name, one in ran.items()
                if other in ran and name != other and np.array_equal(_labels(one), _labels(ran[other]))
            }
            for name, comparison in corrected(comparisons).items():
                figures[name][metric][key] = comparison
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
        "dataset": dataset,
        **context,
        "date": max((result["date"] for result in results), default=""),
        "machine": "; ".join(sorted({result["machine"] for result in results})),
        "features": results[0]["features"] if results else {},
        "metrics": list(metrics),
        "headline": headline,
        "reference": table.reference,
        "rows": rows,
        "published": [one._asdict() for one in table.published.get(dataset, ())],
        "commentary": table.commentary.get(dataset, ""),
    }


def _values(found: Found, metric: str) -> np.ndarray:
    assert found.values is not None
    return found.values[metric]


def _labels(found: Found) -> np.ndarray:
    assert found.labels is not None
    return found.labels


def markdown(summary: Mapping[str, Any]) -> str:
    """The table for GitHub: figures and differences of the headline metric, then those of the other metrics."""
    parts = [
        f"## {summary['table']}: {summary['dataset']}",
        " · ".join(["`" + summary["command"] + "`", *_made(summary)]),
    ]
    for title, header, rows in _grids(summary):
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
        parts += [title, tabulate(cells[1:], cells[0], tablefmt="github", disable_numparse=True)]
    below = [f"- {line}" for line in _reasons(summary) + _notes(summary)]
    parts += ["\n".join(below)] if below else []
    return "\n\n".join(part for part in [*parts, _caption(summary), summary["commentary"]] if part) + "\n"


def latex(summary: Mapping[str, Any]) -> str:
    r"""The same as a fragment for ``\input``; needs ``\usepackage{booktabs}``."""
    head = [f"{summary['table']}: {summary['dataset']}", summary["command"], *_made(summary)]
    lines = [f"% {line}" for line in head] + [r"% needs \usepackage{booktabs}"]
    for title, header, rows in _grids(summary):
        lines += [r"\par\medskip\noindent " + escape(title)] if title else []
        columns = r"p{0.28\linewidth}" + "l" * (len(header) - 1)
        lines += [r"\par\smallskip\noindent", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
        body = [" & ".join(escape(cell) for cell in row) + r" \\" for row in rows]
        lines += [" & ".join(escape(cell) for cell in header) + r" \\", r"\midrule", *body, r"\bottomrule"]
        lines += [r"\end{tabular}"]
    below = [*_reasons(summary), *_notes(summary), _caption(summary), *summary["commentary"].split("\n\n")]
    lines += [r"\par\smallskip\noindent " + escape(" ".join(text.split())) for text in below if text.strip()]
    return "\n".join(lines) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": r"\textsuperscript{*}", '"': r"\textquotedbl{}",
    "Δ": r"$\Delta$", "−": "$-$", "–": "--", "×": r"$\times$", "±": r"$\pm$", "·": r"$\cdot$", "≥": r"$\geq$",
    "≤": r"$\leq$", "→": r"$\rightarrow$", "²": r"\textsuperscript{2}", "χ": r"$\chi$", "β": r"$\beta$",
    "…": r"\ldots{}",
}  # fmt: skip


def escape(text: str) -> str:
    r"""``text`` for LaTeX: special characters escaped, `code` in typewriter, **bold** in bold.

    Brackets are braced, since a row that begins with one after ``\\`` would be read as its argument.
    """
    done = []
    for i, piece in enumerate(re.split(r"`([^`]*)`|\*\*(.+?)\*\*", text)):  # text, code, bold, text, code, bold, ...
        if piece and i % 3 != 1:
            piece = re.sub(r"(?<![\w-])-(?=[\d.])", "−", piece)  # in front of a number: a minus sign
        plain = "".join(LATEX.get(character, character) for character in piece or "")
        done.append(("%s", r"\texttt{%s}", r"\textbf{%s}")[i % 3] % plain if plain else "")
    return "".join(done)


def _made(summary: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return [text for text in (summary["date"], versions, summary["machine"]) if text]


def _grids(summary: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of the main table, and of the differences in the metrics that are not its headline."""
    metrics, headline, reference = summary["metrics"], summary["headline"], summary["reference"]
    header = ["row", *metrics, f"Δ frozen, {headline}", f"Δ {reference}, {headline}", "s", "MB"]
    rows = []
    for row in summary["rows"]:
        figures = row["metrics"]
        cells = [figure(figures.get(metric)) for metric in metrics] + _differences(figures, headline)
        cost = [f"{row[key]:.0f}" if key in row else "–" for key in ("seconds", "megabytes")]
        rows.append([row["row"], *(["not run", *["–"] * (len(header) - 2)] if row["reason"] else cells + cost)])
    for other in summary["published"]:
        cells = [f"{other['figures'][metric]:g}" if metric in other["figures"] else "–" for metric in metrics]
        if other["figures"]:  # what was measured on other data sets is told below
            rows.append([f"published: {other['name']} ({other['source']})", *cells, "–", "–", "–", "–"])
    grids = [("", header, rows)]
    others = [metric for metric in metrics if metric != headline]
    if others and any(row["metrics"] for row in summary["rows"]):
        header = ["row", *(f"Δ {other}, {metric}" for metric in others for other in ("frozen", reference))]
        more = [
            [row["row"], *(cell for metric in others for cell in _differences(row["metrics"], metric))]
            for row in summary["rows"]
            if row["metrics"]
        ]
        grids.append(("Differences in the other metrics:", header, more))
    return grids


def _differences(figures: Mapping[str, Any], metric: str) -> list[str]:
    found = [figures.get(metric, {}).get(key) for key in ("minus_frozen", "minus_reference")]
    return [figure(one, signed=True) + ("*" if one and one["p_holm"] < LEVEL else "") for one in found]


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
        f"Means over queries, asked of a gallery of classes that the head has not seen ({settings['seeds']} seeds × "
        f"{settings['folds']} class-disjoint folds, {settings['steps']} steps unless a row says otherwise), with 95 % "
        "bootstrap intervals over classes and seeds. Δ: paired differences to the frozen features and to "
        f"{summary['reference']}. * marks a Holm-corrected p < .05: sign-flip permutation test over classes ({FLIPS:,} "
        "random flips), corrected over the rows of the table for each metric and comparison. s, MB: wall time, with "
        "compilation or its cache, and peak memory of a process that trains and evaluates all runs of the row. Figures "
        "of others were measured as their row says, and not under this protocol."
    )
