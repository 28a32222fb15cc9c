"""The figures of README and docs, from committed results: tables are written, figures in sentences are checked.

    python -m experiments.readme            # writes the tables anew; names every figure that its source does not give
    python -m experiments.readme --check    # writes nothing

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. A figure in a sentence is a number with a
decimal point or with a unit (%, ×, s, ms, MB, GB); settings are written as code and are no figures. The paragraph ends
with a comment that gives the source of each of its figures, in order: a file, then a path into it on a line each; or
``given: TEXT`` for a number that nobody measured, such as a level of confidence::

    Training adds +0.097 [+0.083, +0.113].
    <!-- figures: docs/results/grocerystore.json
    unseen_gallery/difference_untrained/map@r
    -->
"""

import itertools
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
RESULTS = "experiments/results/tables"
BENCHMARKS = "experiments/results/benchmarks.md"
LEVEL = 0.05
DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
NUMBER = rf"[+−]?(?:{DIGITS}?\.\d+|{DIGITS})"
UNIT = r"\s?(?:%|×(?!\s?\d)|s|ms|MB|GB)(?!\w)"
FIGURE = re.compile(
    rf"(?<![\w.:/−+-])(?P<value>[+−]?{DIGITS}?\.\d+(?![\w.]\d)(?P<unit>{UNIT})?|{NUMBER}(?P<whole>{UNIT}))"
    rf"(?P<interval>\s\[(?P<low>{NUMBER}),\s(?P<high>{NUMBER})\])?"
)
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
SOURCES = re.compile(r"<!-- figures:\s(.*?)-->", re.DOTALL)
NO_FIGURES = re.compile(r"```.*?```|^---\n.*?\n---$|<!-- table:.*?<!-- end of table -->|`[^`]*`|\]\([^)]*\)", re.DOTALL)


class Figure(NamedTuple):
    """One number of a text, as it is written: ``+0.097``, ``%`` or nothing, and the two ends of its interval."""

    text: str
    unit: str
    interval: tuple[str, ...]


def pages() -> list[Path]:
    """README and all pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def load(source: str) -> Any:
    """A committed result: a JSON file, or the tables of the page of benchmarks, case by case."""
    text = (ROOT / source).read_text()
    return _benchmarks(text) if source.endswith(".md") else json.loads(text)


def lookup(source: str, path: str) -> Any:
    """What ``source`` holds at ``path``; ``A minus B`` is the difference of two paths.

    Raises:
      KeyError: there is nothing at that path; the message says which part is unknown.
    """
    first, minus, second = path.partition(" minus ")
    if minus:
        return _mean(lookup(source, first)) - _mean(lookup(source, second))
    found, parts = load(source), re.split(r"(?<! )/(?! )", path)
    found = found["evaluations"] if parts[0] in found.get("evaluations", ()) else found
    for name in parts:
        if isinstance(found, list):
            found = {str(row.get("row", i)): row for i, row in enumerate(found)}
        if name not in found:
            raise KeyError(f"{source}: {path}: no {name!r}; known: {', '.join(map(str, found))}")
        found = found[name]
    return found


def figures(text: str) -> list[Figure]:
    """The figures of a paragraph whose code, tables and links are left out."""
    return [
        Figure(
            found["value"].removesuffix(found["unit"] or found["whole"] or ""),
            (found["unit"] or found["whole"] or "").strip(),
            (found["low"], found["high"]) if found["interval"] else (),
        )
        for found in FIGURE.finditer(SOURCES.sub("", text))
    ]


def sources(text: str) -> list[tuple[str, str]]:
    """(file, path) of each figure of a paragraph; ("given", TEXT) where nobody measured it."""
    found, source = [], ""
    for line in (line.strip() for comment in SOURCES.findall(text) for line in comment.splitlines()):
        if line.startswith("given: "):
            found.append(("given", line.removeprefix("given: ")))
        elif line.endswith((".json", ".md")):
            source = line
        elif line:
            found.append((source, line))
    return found


def wrong(text: str) -> list[str]:
    """One line for every figure of a page that has no source, or of which its source says something else."""
    complaints = []
    plain = NO_FIGURES.sub(lambda found: "\n" * found[0].count("\n"), text)
    for paragraph in re.split(r"\n\s*\n", plain):
        written, named = figures(paragraph), sources(paragraph)
        if len(written) != len(named):
            words = ", ".join(one.text + one.unit for one in written)
            complaints.append(f"{len(written)} figures ({words}) and {len(named)} sources: {paragraph.strip()[:80]!r}")
            continue
        for figure, (source, path) in zip(written, named, strict=True):
            if source == "given":
                if path != f"{figure.text} {figure.unit}".strip():
                    complaints.append(f"{figure.text} {figure.unit}: the source says given: {path}")
                continue
            try:
                found = lookup(source, path)
            except KeyError as error:
                complaints.append(f"{figure.text}{figure.unit}: {error.args[0]}")
                continue
            values = [_mean(found), *(found["ci95"] if figure.interval else ())]
            for shown, value in zip((figure.text, *figure.interval), values, strict=True):
                right = _as_written(shown, value * _scale(figure.unit, path))
                if right != shown:
                    complaints.append(f"{shown}{figure.unit}: {right} in {source}, {path}")
    return complaints


def with_tables(text: str) -> str:
    """The page with its tables made anew."""
    return TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def _mean(found: Any) -> float:
    return float(found["mean"] if isinstance(found, Mapping) else found)


def _scale(unit: str, path: str) -> float:
    if unit == "GB" and path.endswith(("mb", "megabytes")):
        return 1e-3
    return {"%": 100.0, "ms": 1000.0}.get(unit, 1.0)


def _as_written(shown: str, value: float) -> str:
    """``value`` with the decimals, the separators and the sign of ``shown``."""
    decimals = len(shown.partition(".")[2])
    text = f"{abs(value):,.{decimals}f}" if "," in shown else f"{abs(value):.{decimals}f}"
    is_zero = not float(text.replace(",", ""))
    text = text.removeprefix("0") if shown.lstrip("+−").startswith(".") else text
    sign = "−" if value < 0 and not is_zero else "+" if shown.startswith("+") and not is_zero else ""
    return (shown[0] if is_zero and shown[0] in "+−" else sign) + text


def _benchmarks(text: str) -> dict[str, dict[str, Any]]:
    """{case: {column: value}} of the tables of a page, of pipes or of plain text over a line of dashes.

    A case that stands there twice is ``CASE, PEER`` as well.
    """
    found: dict[str, dict[str, Any]] = {}
    split: Callable[[str], list[str]]
    lines = text.splitlines()
    for header, dashes, *rows in (lines[i:] for i in range(len(lines) - 2)):
        if re.fullmatch(r"-{3,}(\s+-{3,})+", dashes):
            spans = [span.span() for span in re.finditer("-+", dashes)]
            split = partial(lambda spans, row: [row[low:high].strip() for low, high in spans], spans)
        elif re.fullmatch(r"[|-]{4,}", dashes):
            split = lambda row: [cell.strip() for cell in row.strip("|").split("|")]
        else:
            continue
        for row in itertools.takewhile(lambda row: row and not re.match("`|\\d+ CPU cores", row), rows):
            columns, cells = split(header), split(row)
            values = {name: _leading_number(cell) for name, cell in zip(columns, cells, strict=True)}
            found.setdefault(cells[0], values)
            found.setdefault(f"{cells[0]}, {values.get('peer')}", values)
    return found


def _leading_number(cell: str) -> Any:
    number = re.match(r"\d*\.?\d+(?= \[|$)", cell)
    return float(number[0]) if number else cell


def _cell(found: Mapping[str, Any], decimals: int = 3, signed: bool = False) -> str:
    """``3.961 [3.938, 3.981]``, with a sign where it is a difference."""
    mean, low, high = (_number(value, decimals, signed) for value in (found["mean"], *found["ci95"]))
    return f"{mean} [{low}, {high}]"


def _number(value: float, decimals: int = 3, signed: bool = False) -> str:
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    return (text[1:] if not float(text) and signed else text).replace("-", "−")


ROWS = {
    "frozen": "frozen features",
    "untrained": "head before training",
    "trained": "**trained head**",
    "difference": "trained − frozen, paired",
    "difference_untrained": "trained − untrained, paired",
}
EVALUATIONS = {
    "closed_set": "closed set", "unseen_objects": "unseen objects", "unseen_gallery": "unseen gallery",
    "new_photos": "new photos", "transfer": "125 further objects",
}  # fmt: skip


def run_table(name: str, metric: str, title: str) -> str:
    """One metric of a run's report in its evaluations; a published figure of it comes first."""
    result = load(f"docs/results/{name}.json")
    shown = {each: words for each, words in EVALUATIONS.items() if each in result["evaluations"]}
    rows = [
        [
            one["name"].partition(" (")[0],
            *(f"{one['value']:g}" if one["evaluation"] == each else "–" for each in shown),
        ]
        for one in result["published"]
        if one["metric"] == metric
    ]
    for row, words in ROWS.items():
        signed = row.startswith("difference")
        found = [_cell(result["evaluations"][each][row][metric], signed=signed) for each in shown]
        rows.append([words, *found])
    return _markdown(rows, [title, *shown.values()])


def open_set_table(name: str, evaluation: str = "open_set") -> str:
    """An open-set evaluation of a run's report."""
    found = load(f"docs/results/{name}.json")["evaluations"][evaluation]
    metrics = {
        "auroc": "AUROC", "fpr@95tpr": "FPR at 95 % TPR",
        "dir@1far": "detection and identification at 1 % false alarms",
        "dir@10far": "the same at 10 %",
    }  # fmt: skip
    rows = [[words, *(_cell(found[row][metric]) for row in list(ROWS)[:3])] for metric, words in metrics.items()]
    return _markdown(rows, ["open set", *(ROWS[row].strip("*") for row in list(ROWS)[:3])])


def ablation_table(name: str) -> str:
    """The headline metric of both data sets, and its paired difference to the reference row (* where significant)."""
    summaries = [load(f"{RESULTS}/{name}.{dataset}.json") for dataset in ("ukbench", "grocerystore")]
    header, columns = [name.replace("_", " ")], []
    for summary, title in zip(summaries, ("UKBench N-S", "GroceryStore MAP@R"), strict=True):
        header += [title, f"− {summary.get('reference', 'no re-ranking')}"]
        columns.append({row["row"]: row["metrics"].get(summary["headline"]) for row in summary["rows"]})
    rows = []
    for row in dict.fromkeys([*columns[0], *columns[1]]):
        found = [column.get(row) for column in columns]
        if any(found):
            cells = [cell for one in found for cell in ((_cell(one), _difference(one)) if one else ("not run", "–"))]
            rows.append([row.replace("_", " "), *cells])
    return _markdown(rows, header)


def _difference(found: Mapping[str, Any]) -> str:
    one = found.get("minus_reference", found.get("minus_none"))
    return _number(one["mean"], signed=True) + ("\\*" if one["p_holm"] < LEVEL else "") if one else "–"


SPEED = [
    ("JPEG → MobileNetV2 features, 128 images at 224 px", "mobilenet_v2"),
    ("N-S score of 1,000 images, in a fresh process", "evaluate"),
    ("the same, compiled already", "evaluate_warm"),
    ("train step with all semi-hard triplets, batch 1,024", "semi_hard_1024"),
    ("the same, distance-weighted", "distance_weighted_1024"),
    ("the same, batch-hard", "batch_hard_1024"),
    ("the same, without mining: the network alone", "network_1024"),
    ("train step with all semi-hard triplets, batch 4,096", "semi_hard_4096"),
    ("exact top 10, 10,000 queries among 10,000", "10k_x_10k"),
    ("exact top 10, 1,000 queries among 100,000", "1k_x_100k"),
    ("one query among 100,000", "1_x_100k"),
    ("1,000 queries among a million rows of 256, streamed", "1k_x_1m_stream"),
    ("P@1, R-precision, MAP@R, MRR of 10,000 images", "10k"),
    ("14 metrics, whole rankings too, of 10,000 images", "10k_all"),
    ("the same of 100,000 images", "100k_all"),
    ("the published training, 10 epochs on 9×9×512 maps", "train_spatial"),
    ("the same on 1,280 pooled features", "train"),
]


def speed_table() -> str:
    """Chosen rows of the benchmarks: seconds and megabytes of ours and of the peer."""
    found, rows = load(BENCHMARKS), []
    for words, case in SPEED:
        one = found[case]
        peer = f"{one['peer_s']:g} s" if one["peer_s"] else "not run"
        ratio = f"{one['ratio']:.1f} ×" if one["ratio"] else "–"
        rows.append([words, f"{one['ours_s']:g} s, {one['ours_mb']:g} MB", f"{one['peer'] or '–'}: {peer}", ratio])
    return _markdown(rows, ["work", "fgis", "peer", "ratio"])


def _markdown(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


TABLES: dict[str, Callable[[], str]] = {
    "ukbench": partial(run_table, "ukbench", "ns_score", "N-S score (0–4) of 250 objects × 4 views"),
    "grocerystore": partial(run_table, "grocerystore", "map@r", "MAP@R of 81 classes, 5,421 photos"),
    "ukbench-published": partial(run_table, "ukbench-published", "ns_score", "N-S score of the published experiment"),
    "open set of ukbench": partial(open_set_table, "ukbench"),
    "open set of the further objects": partial(open_set_table, "ukbench", "transfer_open_set"),
    "open set of grocerystore": partial(open_set_table, "grocerystore"),
    "speed": speed_table,
    **{
        name: partial(ablation_table, name)
        for name in ("sampling", "losses", "heads", "distances", "margins_and_batch", "memory", "reranking")
    },
}


def main(arguments: Sequence[str]) -> int:
    """Writes the tables, or only checks them; returns 1 where a figure or a table is not that of its source."""
    complaints = []
    for page in pages():
        text = page.read_text()
        renewed = with_tables(text)
        if "--check" not in arguments and renewed != text:
            page.write_text(renewed)
        elif renewed != text:
            complaints.append(f"{page.relative_to(ROOT)}: its tables are not those of the results")
        complaints += [f"{page.relative_to(ROOT)}: {complaint}" for complaint in wrong(renewed)]
    print("\n".join(complaints) or "every figure has its source")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
