"""Every system that the published experiment names, in one table: classical descriptors, networks, and trained heads.

    python -m experiments.systems [--features=features] [--only=mobilenet_v2,bag_of_words]

Each system is measured on the feature files ``FEATURES/SET.NAME.h5`` that are there, of the sets ukbench (first 1,000
images), ukbench_transfer, grocerystore and deep_ranking (with ``--triplets=FILE``); for those that are not, the table
gives the command that makes them. No head sees an image or an object of the columns it is measured in, but for the
closed set, whose name says so: heads are trained on the first 1,000 images of UKBench alone.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.command_line import ROWS_HELP, guarded, is_own, read_share, say_share
from experiments.machine import machine
from experiments.rendering import Grid, Page, columns, write_table
from experiments.system_rows import COLUMNS, PUBLISHED, SETS, SYSTEMS, VIEW, System, command_of, config_of, paths_of
from experiments.verification import Matches, count_matches, spatially_verified
from fgis import files
from fgis.base import RunPlan
from fgis.errors import UserError
from fgis.experiment import training
from fgis.experiment.build import build_folds
from fgis.experiment.run import Run
from fgis.experiment.start import prepare_jax
from fgis.ranges import nearest
from fgis.report.contents import versions
from fgis.report.tables import figure
from fgis.retrieval.evaluate import evaluate, protocol
from fgis.retrieval.intervals import summarize
from fgis.retrieval.rerank import DIRECTIONS, RERANKERS, Rerank
from fgis.retrieval.triplets import SCORE_DEPTH, evaluate_triplets, read_triplets

TEST = "test/"  # what the ids of GroceryStore's test images begin with
RERANK = "augmented_local_scaling"  # with its own parameters, which were chosen on the frozen features of UKBench


class Embedded(NamedTuple):
    """The images of one set under one system."""

    each: Callable[[RunPlan | None], Float[np.ndarray, "n d"]]  # of the run of a plan; of any where that is None
    labels: Int[np.ndarray, " n"]
    image_ids: np.ndarray
    distance: str
    matches: Matches | None = None  # verifies two images, where answers are ordered again by that


def score_set(
    dataset: str, one: Embedded, plans: Sequence[RunPlan], folds: np.ndarray, triplets: str
) -> dict[str, Any]:
    """{column: mean and interval} of one set; trained heads are measured run by run."""
    everywhere: list[RunPlan | None] = [plan for plan in plans if plan.fold < 0] or [None]
    figures: dict[str, Any] = {}
    for column in (column for column in COLUMNS if column.dataset == dataset):
        if column.metric == "similarity_precision":
            figures |= score_triplets([one.each(plan) for plan in everywhere], one, triplets)
            continue
        if column.reranked and one.distance not in DIRECTIONS:
            continue
        rows = np.arange(len(one.labels))
        if dataset == "grocerystore":
            rows = np.flatnonzero([str(name).startswith(TEST) for name in one.image_ids])
        rerank = RERANKERS[RERANK] if column.reranked else None
        if column.name.startswith("unseen"):
            values = score_folds(one, plans, folds, column.metric)
        else:
            values = np.stack(
                [score_rows(one.each(plan)[rows], one, rows, column.metric, rerank) for plan in everywhere]
            )
        figures[column.name] = summarize(values, one.labels[rows])
    return figures


def score_rows(
    embeddings: Float[np.ndarray, "m d"], one: Embedded, rows: Int[np.ndarray, " m"], metric: str, rerank: Rerank | None
) -> Float[np.ndarray, " m"]:
    """One metric of every query of a gallery of these images alone."""
    labels = one.labels[rows]
    if one.matches:
        verified = partial(spatially_verified, rows=rows, matches=one.matches)
        before = rerank or attrgetter("neighbours")
        rerank = lambda first: verified(first._replace(neighbours=before(first)))
    return evaluate(embeddings, labels, protocol(labels, [metric]), [metric], one.distance, rerank=rerank)[metric]


def score_folds(
    one: Embedded, plans: Sequence[RunPlan], folds: Int[np.ndarray, " n"], metric: str
) -> Float[np.ndarray, "s n"]:
    """One metric, in galleries of the objects that a run has not seen; features as they are in the same galleries."""
    seen = [plan for plan in plans if plan.fold >= 0]
    asked: list[RunPlan | None] = [*seen] or [None]
    seeds = sorted({plan.seed for plan in seen}) or [0]
    values = np.full((len(seeds), len(folds)), np.nan)
    for plan in asked:
        embeddings = one.each(plan)
        for fold in range(folds.max() + 1) if plan is None else [plan.fold]:
            rows = np.flatnonzero(folds == fold)
            place = 0 if plan is None else seeds.index(plan.seed)
            values[place, rows] = score_rows(embeddings[rows], one, rows, metric, None)
    return values


def score_triplets(each: Sequence[Float[np.ndarray, "n d"]], one: Embedded, path: str) -> dict[str, Any]:
    """Similarity precision over triplets, with intervals over query images, and score@30 in the gallery of a label."""
    triplets = read_triplets(path, one.image_ids).rows
    correct, score = [], 0.0
    for embeddings in each:
        own = evaluate_triplets(embeddings, triplets, one.distance)
        correct.append(own.correct.astype(float))
        score += score_within_labels(embeddings, triplets, one) / len(each)
    found = summarize(np.stack(correct), triplets[:, 0])
    return {"triplets, precision": found, f"triplets, score@{SCORE_DEPTH}": {"mean": score, "triplets": len(triplets)}}


def score_within_labels(embeddings: Float[np.ndarray, "n d"], triplets: Int[np.ndarray, "t 3"], one: Embedded) -> int:
    """score@30 where the gallery of a query is the images of its own label, the text query that found them."""
    total = 0
    for label in np.unique(one.labels[triplets[:, 0]]):
        rows = np.flatnonzero(one.labels == label)
        own = triplets[one.labels[triplets[:, 0]] == label]
        own = own[np.isin(own, rows).all(axis=1)]
        if len(own):
            total += evaluate_triplets(embeddings[rows], np.searchsorted(rows, own), one.distance).score
    return total


def measure(system: System, folder: Path, workdir: Path, triplets: str) -> tuple[dict[str, Any], dict[str, str]]:
    """({column: figure} of the sets whose features are there, {set: the command that makes what is missing})."""
    figures: dict[str, Any] = {}
    missing: dict[str, str] = {}
    there = feature_files(system, folder)
    trained: Run | None = None
    if system.variant and "ukbench" in there:
        trained = train_head(system, there["ukbench"], workdir)
    for name in SETS:
        if system.verified and not name.startswith("ukbench"):  # views of one object; a class has no perspective
            continue
        unseen = system.verified and not Path(SETS[name]["images"]).exists()
        lacks_triplets = name == "deep_ranking" and not triplets
        if name not in there or unseen or lacks_triplets or (system.variant and trained is None):
            missing[name] = command_of(system, name, str(folder))
            continue
        run = Run.open(config_of(system, name, there[name]))
        plans = trained.plans if trained else ()
        if trained:
            run.set_checkpoint(trained.step, trained.params)
        embed = lambda plan, run=run, plans=plans: run.embed(run.features, plans.index(plan)) if plan else run.features
        matches = count_matches(SETS[name], run.rows.image_ids, VIEW) if system.verified else None
        one = Embedded(embed, run.rows.labels, run.rows.image_ids, run.scoring.distance, matches)
        found = score_set(name, one, plans, build_folds(run.settings, run.rows.labels), triplets)
        figures |= found
        shown = ", ".join(f"{key} {value['mean']:.4f}" for key, value in found.items())
        print(f"systems: {system.name}: {name}: {shown}", file=sys.stderr, flush=True)
    return figures, missing


def feature_files(system: System, folder: Path) -> dict[str, str]:
    """{set: its feature file under a system} of the sets whose features are there."""
    is_there = lambda path: not path or path.startswith("bundled:") or Path(path).is_file()
    paths = {name: paths_of(system, name, str(folder)) for name in SETS}
    return {name: ",".join(files) for name, files in paths.items() if all(map(is_there, files))}


def train_head(system: System, path: str, workdir: Path) -> Run:
    """The run of a system's head on UKBench's first 1,000 images, trained where it is not yet."""
    place = workdir / f"{system.variant}.{system.features}"
    run = Run.open(config_of(system, "ukbench", path), place)
    place.mkdir(parents=True, exist_ok=True)
    training.claim(run, place)
    training.train_run(run, place)
    return run


def chance() -> dict[str, Any]:
    """What a random order gives where it can be worked out: 1 + 3 · 3 / (n − 1) of n images in fours, and one half."""
    closed, further = ({"mean": 1 + 9 / (n - 1), "ci95": [float("nan")] * 2} for n in (1000, 500))
    unseen = {"mean": 1 + 9 / 199, "ci95": [float("nan")] * 2}
    half = {"mean": 0.5, "ci95": [float("nan")] * 2}
    return {"closed set, N-S": closed, "unseen objects, N-S": unseen, "further objects, N-S": further,
            "triplets, precision": half}  # fmt: skip


def summarize_systems(systems: Sequence[System], folder: Path, workdir: Path, triplets: str) -> dict[str, Any]:
    """The table as a JSON object without its command."""
    rows = [{"row": "chance", "figures": chance(), "missing": {}}]
    for system in systems:
        figures, missing = measure(system, folder, workdir, triplets)
        rows.append({"row": system.name, "figures": figures, "missing": missing})
    return {
        "table": "systems",
        "dataset": "all",
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "machine": machine(),
        "rows": rows,
        "published": [dict(zip(("row", "column", "figure", "source"), one, strict=True)) for one in PUBLISHED],
    }


def with_earlier(summary: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """A table with the figures of an earlier one in the cells, and the rows, that it has none for."""
    now, before = ({row["row"]: row for row in table["rows"]} for table in (summary, earlier))
    rows = []
    for name in ("chance", *(one.name for one in SYSTEMS)):
        own, old = (table.get(name, {"row": name, "figures": {}, "missing": None}) for table in (now, before))
        unknown = [one["missing"] for one in (own, old) if one["missing"] is not None]
        missing = {key: command for key, command in unknown[0].items() if all(key in one for one in unknown)}
        rows.append({"row": name, "figures": {**old["figures"], **own["figures"]}, "missing": missing})
    history = [*earlier.get("earlier", []), {"command": earlier["command"], "date": earlier["date"]}]
    return {**summary, "rows": rows, "earlier": history}


def page(summary: Mapping[str, Any]) -> Page:
    """A grid of UKBench, one of the other sets, and what has to be run for the cells that are empty."""
    grids = []
    for title, chosen in (
        ("UKBench:", [column for column in COLUMNS if column.dataset.startswith("ukbench")]),
        ("GroceryStore's test photos, and triplets of Deep Ranking:", [
            column for column in COLUMNS if not column.dataset.startswith("ukbench")
        ]),
    ):  # fmt: skip
        names = [column.name for column in chosen]
        rows = [
            [row["row"], *(figure(row["figures"].get(name)) for name in names)]
            for row in summary["rows"]
            if any(name in row["figures"] for name in names)
        ]
        for one in summary["published"]:
            if one["column"] in names:
                cells = [f"{one['figure']:g}" if name == one["column"] else "–" for name in names]
                rows.append([f"published: {one['row']} ({one['source']})", *cells])
        grids.append(Grid(title, ["system", *names], rows, columns(0.26, len(names))))
    commands = {  # of several rows on the same features, the first
        command: f"{row['row']}, {name}: `{command}`"
        for row in reversed(summary["rows"])
        for name, command in reversed(row["missing"].items())
    }
    notes = list(reversed(commands.values()))
    caption = (
        "Means over queries with 95 % bootstrap intervals over objects (of triplets, over query images) and, of heads, "
        "over three seeds. Heads are trained on the first 1,000 images of UKBench alone, which are the closed set. "
        f"Re-ranking is {RERANK.replace('_', ' ')}, with the same parameters everywhere, of cosine distances; spatial "
        "verification orders the first 20 answers again, after any re-ranking. Rows "
        "that begin with 'published' were measured by others, under the protocol that is named. A cell without a "
        "figure has no features here, or no re-ranking of its distance; the list has the commands that make features."
    )
    for one in summary.get("earlier", []):
        caption += f" Cells that this command did not measure are of `{one['command']}`, {one['date']}."
    return Page(grids, notes, caption)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes the table; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m experiments.systems")
    parser.add_argument("--features", type=Path, default=Path("features"), help="the folder of the feature files")
    parser.add_argument("--triplets", default="", help="the triplet file of Deep Ranking, in CSV")
    parser.add_argument("--only", default="", help="names of features, with commas; all without it")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tables"), help="where heads and the table live")
    parser.add_argument(
        "--earlier", type=Path, help="systems.all.json of before: its figures fill what is not measured"
    )
    parser.add_argument("--rows", default="", help=ROWS_HELP)
    given = parser.parse_args(arguments)

    def work() -> int:
        wanted = [name.strip() for name in given.only.split(",") if name.strip()]
        known = {system.features for system in SYSTEMS}
        for name in wanted:
            if name not in known:
                raise UserError(f"--only={name}: no such system; {nearest(name, known)}")
        chosen = [one for one in SYSTEMS if not wanted or one.features in wanted]
        earlier = files.read_object(given.earlier) if given.earlier else None
        if given.earlier and (earlier is None or earlier.get("table") != "systems"):
            raise UserError(f"--earlier={given.earlier}: is no table of systems; name a systems.all.json")
        share = read_share(given.rows)
        prepare_jax()
        if share:
            for one in (one for index, one in enumerate(chosen) if is_own(index, share)):
                if one.variant and "ukbench" in (there := feature_files(one, given.features)):
                    train_head(one, there["ukbench"], given.workdir / "systems")
            say_share("systems", share)
            return 0
        summary = summarize_systems(chosen, given.features, given.workdir / "systems", given.triplets)
        summary = with_earlier(summary, earlier) if earlier else summary
        command = shlex.join(["python", "-m", "experiments.systems", *arguments])
        write_table({"command": command, **summary}, page, given.workdir)
        return 0

    return guarded("systems", work, "the same command continues with the heads that are trained")


if __name__ == "__main__":
    sys.exit(main())
