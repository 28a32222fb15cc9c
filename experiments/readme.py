"""README's sampling table, from the committed results: ``python -m experiments.readme``."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from experiments.tables import LEVEL

RESULTS = Path(__file__).parent / "results" / "tables"


def sampling_table() -> str:
    """The rows that both data sets have: the headline metric of each, and its difference to batch-hard."""
    summaries = [json.loads((RESULTS / f"sampling.{name}.json").read_text()) for name in ("ukbench", "grocerystore")]
    header = ["sampling or mining"]
    for summary, title in zip(summaries, ("UKBench N-S", "GroceryStore MAP@R"), strict=True):
        header += [title, f"− {summary['reference']}"]
    figures = [
        {row["row"]: row["metrics"].get(summary["headline"]) for row in summary["rows"]} for summary in summaries
    ]
    rows = []
    for name, row in figures[0].items():
        both = [row, figures[1].get(name)]
        if all(both):
            rows.append([name, *(cell for one in both if one for cell in (_plain(one), _difference(one)))])
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def _plain(found: Mapping[str, Any]) -> str:
    low, high = found["ci95"]
    return f"{found['mean']:.3f} [{low:.3f}, {high:.3f}]"


def _difference(found: Mapping[str, Any]) -> str:
    one = found.get("minus_reference")
    return f"{one['mean']:+.3f}" + ("*" if one["p_holm"] < LEVEL else "") if one else "–"


if __name__ == "__main__":
    print(sampling_table())
