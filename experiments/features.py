"""Several networks at once on objects that nothing was chosen on: features, whitening, and re-rankings.

    python -m experiments.features [--first=A.h5,B.h5 --further=C.h5,D.h5]

Files hold the same images in any order, each described by another network; without flags the bundled ones of
MobileNetV2 are taken. Every file is prepared (square root, unit length), and all are laid side by side with equal
weights, so that the cosine of the whole is the mean of the cosines. Whitening is learnt on the first images without
labels, its strength chosen on folds of their objects; re-rankings and their parameters are chosen on them as well, and
one is learnt from them. The further images are measured once, in a gallery of these alone.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.command_line import guarded
from experiments.learnt_reranking import learn_weights, pairs_of, reorder
from experiments.machine import machine
from experiments.rendering import Grid, Page, columns, difference, write_table
from experiments.reranking import combinations, readable
from experiments.summaries import FLIPS, Measured, compare_rows
from fgis.errors import UserError
from fgis.experiment.start import prepare_jax
from fgis.features.joined import FILES, join_rows
from fgis.learning.heads import prepare
from fgis.report.contents import versions
from fgis.report.tables import figure
from fgis.retrieval.evaluate import evaluate, protocol, score_neighbours
from fgis.retrieval.folds import object_folds
from fgis.retrieval.measures import to_unit
from fgis.retrieval.rerank import RERANKERS, first_search

METRICS = ("ns_score", "map@r")
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of the mean variance, which is added to every variance before its root
FOLDS, LISTED = 5, 24
Vectors = Float[np.ndarray, "n f"]
PerQuery = dict[str, Float[np.ndarray, " n"]]


class Images(NamedTuple):
    """The same images by every network."""

    names: tuple[str, ...]  # of the networks
    each: tuple[Vectors, ...]  # prepared
    labels: Int[np.ndarray, " n"]


def read_images(paths: Sequence[str]) -> Images:
    """The prepared features of files that hold the same images.

    Raises:
      UserError: a file cannot be read, lacks images of another, or gives one another label.
    """
    joined = join_rows(paths)
    order = np.argsort(joined.image_ids)
    parts = np.split(joined.read(order), np.cumsum(joined.widths)[:-1], axis=1)
    each = tuple(np.asarray(prepare(part, power=0.5, normalize=True)) for part in parts)
    names = tuple(str(one.get("backbone", "features")) for one in joined.source[FILES])
    return Images(names, each, joined.labels[order])


def learn_whitening(vectors: Vectors, strength: float) -> Callable[[Vectors], Vectors]:
    """x -> V' (x - mean) / sqrt(variance + strength · mean variance), scaled to unit length; V are all components."""
    mean = vectors.mean(axis=0)
    _, values, components = np.linalg.svd(vectors - mean, full_matrices=False)
    variances = values**2 / len(vectors)
    scale = 1 / np.sqrt(variances + strength * variances.mean())
    return lambda x: to_unit(((x - mean) @ components.T * scale).astype(np.float32))


def choose_strength(vectors: Vectors, labels: Int[np.ndarray, " n"], seed: int = 0) -> float:
    """The strength that is best, by N-S score, on objects that the whitening was not learnt on."""
    folds = object_folds(labels, FOLDS, seed)

    def score(strength: float) -> float:
        found = []
        for fold in range(FOLDS):
            unseen = folds == fold
            whitened = learn_whitening(vectors[~unseen], strength)(vectors[unseen])
            asked = protocol(labels[unseen], METRICS[:1])
            found.append(evaluate(whitened, labels[unseen], asked, METRICS[:1])["ns_score"])
        return float(np.mean(np.concatenate(found)))

    return max(STRENGTHS, key=score)


def choose_rerank(vectors: Vectors, labels: Int[np.ndarray, " n"]) -> Any:
    """The method and its parameters that are best, by N-S score, on all of these images."""
    return max(combinations(), key=lambda key: float(np.mean(reranked(vectors, labels, key)["ns_score"])))


def reranked(vectors: Vectors, labels: Int[np.ndarray, " n"], key: Any) -> PerQuery:
    """The values of every query under one re-ranking."""
    found = RERANKERS[key[0]](first_search(vectors, vectors, LISTED), **dict(key[1]))
    return score_neighbours(found, labels, protocol(labels, METRICS), METRICS)


def measure(first: Images, further: Images) -> tuple[dict[str, PerQuery], dict[str, str]]:
    """{row: values of every further query}, and what was chosen for the rows where something was."""
    own = lambda images: np.concatenate(images.each, axis=1) / np.float32(np.sqrt(len(images.each)))
    asked = protocol(further.labels, METRICS)
    plain = lambda x: evaluate(x, further.labels, asked, METRICS)
    rows = {name: plain(x) for name, x in zip(further.names, further.each, strict=True)}
    sides = [("together", own(first), own(further))] if len(first.each) > 1 else []
    sides.insert(0, (first.names[0], first.each[0], further.each[0]))
    chosen = {}
    for name, ours, theirs in sides:
        rows[name] = plain(theirs)
        strength = choose_strength(ours, first.labels)
        whiten = learn_whitening(ours, strength)
        rows[f"{name}, whitened"], chosen[f"{name}, whitened"] = plain(whiten(theirs)), f"strength {strength:g}"
        for words, mine, others in ((name, ours, theirs), (f"{name}, whitened", whiten(ours), whiten(theirs))):
            key = choose_rerank(mine, first.labels)
            rows[f"{words}, re-ranked"] = reranked(others, further.labels, key)
            chosen[f"{words}, re-ranked"] = readable(key)
            print(f"features: {words}, re-ranked: {readable(key)}", file=sys.stderr, flush=True)
            weights = learn_weights(*pairs_of(first_search(mine, mine, LISTED), first.labels))
            learnt = reorder(first_search(others, others, LISTED), weights)
            rows[f"{words}, learnt re-ranking"] = score_neighbours(learnt, further.labels, asked, METRICS)
            chosen[f"{words}, learnt re-ranking"] = "a regression of what neighbourhoods say"
    return rows, chosen


def summarize_rows(first: Images, further: Images) -> dict[str, Any]:
    """The table as a JSON object without its command."""
    rows, chosen = measure(first, further)
    measured = {name: Measured({m: x[None] for m, x in one.items()}, further.labels) for name, one in rows.items()}
    figures = compare_rows(measured, {"minus_first": first.names[0]}, METRICS)
    return {
        "table": "features",
        "dataset": "transfer",
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "machine": machine(),
        "images": {"first": len(first.labels), "further": len(further.labels)},
        "objects": len(np.unique(further.labels)),
        "reference": first.names[0],
        "rows": [{"row": name, "metrics": figures[name], "chosen": chosen.get(name, "")} for name in rows],
    }


def page(summary: Mapping[str, Any]) -> Page:
    """One row for each combination."""
    reference = summary["reference"]
    header = ["row", *METRICS, f"Δ {reference}, {METRICS[0]}", "chosen on the first images"]
    rows = [
        [
            row["row"],
            *(figure(row["metrics"][metric]) for metric in METRICS),
            difference(row["metrics"][METRICS[0]].get("minus_first")),
            row["chosen"].replace("_", " "),
        ]
        for row in summary["rows"]
    ]
    caption = (
        f"{summary['images']['further']} further images of {summary['objects']} objects, each a query in a gallery of "
        f"these alone; whitening and re-ranking were learnt and chosen on {summary['images']['first']:,} other images. "
        f"95 % bootstrap intervals over objects. Δ: paired differences; * marks a Holm-corrected p < .05: sign-flip "
        f"permutation test over objects ({FLIPS:,} random flips), corrected over the rows."
    )
    return Page([Grid("", header, rows, columns(0.3, len(header) - 1))], (), caption)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes the table; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m experiments.features")
    parser.add_argument("--first", default="", help="feature files of the images that are learnt from, with commas")
    parser.add_argument("--further", default="bundled:ukbench_transfer", help="likewise, of those that are measured")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tables"), help="where the table is written")
    given = parser.parse_args(arguments)

    def work() -> int:
        paths = given.first.split(","), given.further.split(",")
        if len(paths[0]) != len(paths[1]):
            raise UserError(f"--first, --further: {len(paths[0])} and {len(paths[1])} files; name one of each network")
        prepare_jax()
        first, further = map(read_images, paths)
        if [one.shape[1] for one in first.each] != [one.shape[1] for one in further.each]:
            raise UserError("--first, --further: features of different sizes; name the files in the same order")
        command = shlex.join(["python", "-m", "experiments.features", *arguments])
        write_table({"command": command, **summarize_rows(first, further)}, page, given.workdir)
        return 0

    return guarded("features", work, "the same command begins again")


if __name__ == "__main__":
    sys.exit(main())
