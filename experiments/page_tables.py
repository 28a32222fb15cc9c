"""The tables of README and docs, from committed results: one function for each kind, and ``TABLES`` of all by name."""

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
RESULTS = "experiments/results/tables"
BENCHMARKS = "experiments/results/benchmarks.md"
LEVEL = 0.05


@cache
def load(source: str) -> Any:
    """A committed result: a JSON file, or the tables of the page of benchmarks, case by case."""
    text = (ROOT / source).read_text()
    return _benchmarks(text) if source.endswith(".md") else json.loads(text)


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
    return _number(one["mean"], signed=True) + _star(one) if one else "–"


def _star(one: Mapping[str, Any]) -> str:
    return "\\*" if one["p_holm"] < LEVEL else ""


def paths_table() -> str:
    """Heads trained on either set: precision on the triplets, and the headline metric on classes they have not seen."""
    header, columns = ["Deep Ranking and VisNet"], []
    for title, metric, words in (("GroceryStore", "map@r", "MAP@R"), ("UKBench", "ns_score", "N-S")):
        rows = load(f"{RESULTS}/deep_ranking.{title.lower()}.json")["rows"]
        header += [f"triplets, trained on {title}", f"{title}, {words}"]
        columns += [{row["row"]: row["metrics"].get(key) for row in rows} for key in ("similarity precision", metric)]
    return _markdown(
        [[name, *(_cell(one[name]) if one.get(name) else "not run" for one in columns)] for name in columns[0]], header
    )


SYSTEMS = {
    "closed set, N-S": "UKBench closed",
    "unseen objects, N-S": "unseen",
    "further objects, N-S": "further objects",
    "further objects, N-S, re-ranked": "re-ranked",
    "GroceryStore, recall@1": "GroceryStore recall@1",
    "GroceryStore, MAP@R": "MAP@R",
    "triplets, precision": "triplets",
}


def systems_table() -> str:
    """Means of the table of systems; those that were not measured have no row."""
    found = load(f"{RESULTS}/systems.all.json")
    cell = lambda row, name: _number(row["figures"][name]["mean"]) if name in row["figures"] else "–"
    rows = [[row["row"], *(cell(row, name) for name in SYSTEMS)] for row in found["rows"] if row["figures"]]
    for one in found["published"]:
        cells = [f"{one['figure']:g}" if name == one["column"] else "–" for name in SYSTEMS]
        rows.append([f"published: {one['row']}", *cells])
    return _markdown(rows, ["system", *SYSTEMS.values()])


def further_table() -> str:
    """Heads on other features: means on unseen and on further objects, and two paired differences (* significant)."""
    found = load(f"{RESULTS}/further_objects.transfer.json")
    header = [
        "head on", "unseen objects", "frozen", "before training", "trained", "− frozen", "− before training",
        "re-ranked", "learnt re-ranking",
    ]  # fmt: skip
    rows = []
    for row in (row for row in found["rows"] if not row["missing"]):
        means = [row["further"][kind]["ns_score"]["mean"] for kind in ("frozen", "untrained", "trained")]
        gains = [_cell(row[key], signed=True) + _star(row[key]) for key in ("minus_frozen", "minus_untrained")]
        again = [row["further"][f"trained+{kind}"]["ns_score"]["mean"] for kind in ("reranked", "learnt")]
        unseen = row["folds"]["trained"]["ns_score"]["mean"]
        rows.append([row["row"], *map(_number, (unseen, *means)), *gains, *map(_number, again)])
    return _markdown(rows, header)


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


LIMITS = [
    ("exact top 10, 10,000 queries among 10,000", "10k_x_10k"),
    ("exact top 10, 1,000 queries among 100,000", "1k_x_100k"),
    ("P@1, R-precision, MAP@R, MRR of 10,000 images", "10k"),
    ("14 metrics, whole rankings too, of 10,000 images", "10k_all"),
    ("train step, batch 1,024, batch-hard", "batch_hard_1024"),
    ("the same, one semi-hard negative a pair", "one_semi_hard_1024"),
    ("the same, distance-weighted", "distance_weighted_1024"),
    ("the same, all semi-hard triplets", "semi_hard_1024"),
]


def limits_table() -> str:
    """How far from the limit and from the peer, with either set of instructions."""
    found, rows = load(BENCHMARKS), []
    for words, case in LIMITS:
        both = [found[f"{case} {instructions}"] for instructions in ("avx512", "avx2")]
        cells = [f"{one['over_limit']:.2f}" + (f", {one['ratio']:.1f} ×" if one["ratio"] else "") for one in both]
        rows.append([words, *cells, f"{both[0]['bar']:g}"])
    return _markdown(rows, ["work", "AVX-512: over limit, against peer", "AVX2: the same", "bar"])


ENGINES = {
    "exact": "`exact`, of fgis",
    "flat": "milvus-lite, FLAT",
    "ivf": "milvus-lite, IVF_FLAT",
    "hnsw": "milvus-lite, HNSW",
}


def engines_table() -> str:
    """Every engine at every size that was measured."""
    found, rows = load(BENCHMARKS), []
    for size in ("100,000", "1,000,000"):
        for name, words in ENGINES.items():
            if one := found.get(f"{name}, {size}"):
                numbers = [f"{one[key]:,g}" for key in ("fill_s", "query_ms", "peak_mb")]
                rows.append([size, words, f"{one['recall@10']:g}", *numbers])
    return _markdown(rows, ["rows", "engine", "recall@10", "seconds until it answers", "ms a query", "MB at the most"])


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
    "limits": limits_table,
    "engines": engines_table,
    "systems": systems_table,
    "further_objects": further_table,
    "deep_ranking": paths_table,
    **{
        name: partial(ablation_table, name)
        for name in ("sampling", "losses", "heads", "distances", "margins_and_batch", "memory", "reranking")
    },
}
