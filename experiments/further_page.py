"""The page of the table of further objects."""

from collections.abc import Mapping
from typing import Any

from experiments.further_rows import REFERENCE
from experiments.rendering import Grid, Page, columns, difference
from experiments.summaries import FLIPS
from fgis.report.tables import figure

RERANK = "augmented_local_scaling"  # with its own parameters
SHOWN = ("frozen", "untrained", "trained", "trained+reranked", "trained+learnt")
DIFFERENCES = {  # {KEY: (a kind, what it is compared with; of the reference row where that is its own)}
    "minus_frozen": ("trained", "frozen"),
    "minus_untrained": ("trained", "untrained"),
    "minus_reference": ("trained", "trained"),
    "minus_reranked": ("trained+learnt", "trained+reranked"),
}


def page(summary: Mapping[str, Any]) -> Page:
    """What heads were compared by and what they give on the further objects, then the paired differences."""
    metric = "ns_score"
    header = ["row", "folds, trained", "folds, re-ranked", "folds, learnt", *SHOWN, "s"]
    rows, more, notes = [], [], []
    for row in summary["rows"]:
        if row["missing"]:
            commands = ", ".join(f"`{one}`" for one in row["missing"])
            notes.append(f"not run: {row['row']}: needs features; run {commands}")
            continue
        folds = [figure(row["folds"][kind][metric]) for kind in SHOWN[2:]]
        cells = [figure(row["further"][kind][metric]) for kind in SHOWN]
        rows.append([row["row"], *folds, *cells, f"{row['seconds']:.0f}"])
        more.append([row["row"], *(difference(row.get(key)) for key in DIFFERENCES)])
        for kind, one in row.get("classes", {}).items():
            notes.append(f"{row['row']}: MAP@R on unseen classes of {row['also'][0]}, {kind}: {figure(one['map@r'])}")
    for words, one in summary["chosen"].items():
        notes.append(f"best on the folds, {words}: {one['row']}, {one['kind'].replace('+', ', ')}")
    differences = [f"trained − {key.removeprefix('minus_')}" for key in DIFFERENCES][:-1]
    differences[-1] = f"trained − trained on {REFERENCE}"
    settings = summary["settings"]
    caption = (
        "N-S scores. Folds: unseen objects of the first 1,000 images in a gallery of all of these, "
        f"{settings['fold_seeds']} seeds × {settings['folds']} folds. The other columns: 500 images of 125 further "
        f"objects in a gallery of these alone, heads of {settings['seeds']} seeds. Re-ranked: "
        f"{RERANK.replace('_', ' ')}, with its own parameters; learnt: a logistic regression of what neighbourhoods "
        "say, learnt on the folds. 95 % bootstrap intervals over objects and seeds. Δ: paired differences; * marks a "
        f"Holm-corrected p < .05: sign-flip permutation test over objects ({FLIPS:,} random flips), corrected over the "
        "rows. s: wall time of a row."
    )
    grids = [
        Grid("", header, rows, columns(0.2, len(header) - 1)),
        Grid("Differences:", ["row", *differences, "learnt − re-ranked"], more, columns(0.2, len(DIFFERENCES))),
    ]
    return Page(grids, notes, caption)
