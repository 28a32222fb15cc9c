"""The picture of the table of systems: ``python -m docs.systems_picture`` reads the committed table and draws it."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "experiments" / "results" / "tables" / "systems.all.json"
PICTURE = Path(__file__).parent / "pictures" / "systems.svg"
COLUMNS = {"further objects, N-S": "UKBench, further objects: N-S score", "triplets, precision": "triplets: precision"}
FROM = {"further objects, N-S": 1.0, "triplets, precision": 0.5}


def draw(table: Path = TABLE, picture: Path = PICTURE) -> None:
    """Bars with their 95 % intervals, one panel for each column, in the order of the first."""
    rows = [row for row in json.loads(table.read_text())["rows"] if set(COLUMNS) & set(row["figures"])]
    first = next(iter(COLUMNS))
    rows.sort(key=lambda row: row["figures"].get(first, {"mean": 0})["mean"])
    plt.rcParams.update({"svg.hashsalt": "fgis", "font.size": 9})
    figure, panels = plt.subplots(1, len(COLUMNS), figsize=(9, 0.6 + 0.27 * len(rows)), sharey=True)
    for panel, (name, words) in zip(panels, COLUMNS.items(), strict=True):
        for place, row in enumerate(rows):
            found = row["figures"].get(name)
            if found is None:
                continue
            low, high = found["ci95"]
            error = None if low is None else [[found["mean"] - low], [high - found["mean"]]]
            panel.barh(
                place, found["mean"] - FROM[name], left=FROM[name], xerr=error, color="#5b8db8", ecolor="#333333"
            )
        panel.set_xlabel(words)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [row["row"] for row in rows])
    figure.tight_layout()
    figure.savefig(picture, metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    draw()
