"""Deep Ranking and VisNet: which paths, which triplets; trained on one data set, measured on another's triplets.

    python -m experiments.deep_ranking --triplets=FILE [--dataset=grocerystore|ukbench] [--features=features]

Heads are trained on frozen features of the data set, in folds that each leave out a share of its classes. Every head is
measured twice: in a gallery of the classes that it has not seen, and on the triplets, whose photos no head has seen.
Feature files are ``FEATURES/SET.NETWORK.h5``, of the sets that are trained on and of ``triplets``, of the networks
deep_ranking and visnet; the table gives the commands that make those that are missing. A row that is there is not run
again.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.command_line import ROWS_HELP, guarded, is_own, read_share, say_share
from experiments.deep_ranking_rows import FROZEN, NOT_FOUND, PAIRS, PUBLISHED, ROWS, Row
from experiments.machine import machine
from experiments.rendering import Grid, Page, columns, difference, write_table
from experiments.rows import identity, unseen_gallery
from experiments.summaries import FLIPS, Measured, compare_rows
from fgis import files
from fgis.errors import UserError
from fgis.experiment.build import build_folds
from fgis.experiment.config_file import load_config
from fgis.experiment.differences import to_plain
from fgis.experiment.run import Run
from fgis.experiment.start import prepare_jax
from fgis.learning.train import Runs, TrainingData, init_states, train
from fgis.report.contents import versions
from fgis.report.tables import NONE, figure
from fgis.retrieval.significance import corrected, paired_difference
from fgis.retrieval.triplets import evaluate_triplets, read_triplets

METRICS = {"grocerystore": ("map@r", "ndcg@10", "recall@1"), "ukbench": ("ns_score", "map@r", "recall@1")}
PRECISION, NO_COARSE = "similarity precision", "needs coarse labels, and UKBench has none"
WIDTH, STEPS = 512, 200


class Options(NamedTuple):
    """The flags."""

    dataset: str
    features: Path
    triplets: str
    workdir: Path
    seeds: int = 10
    heavy_seeds: int = 2
    folds: int = 3
    steps: int = STEPS
    kept: bool = False  # whether only what was measured before is shown


def config_of(row: Row, dataset: str, options: Options) -> dict[str, Any]:
    """The plain configuration of a row on the features of a set, which may be ``triplets``."""
    config = load_config(row.network)
    shared = {
        "features.path": str(options.features / f"{dataset}.{row.network}.h5"),
        "features.collection": {"triplets": "csv"}.get(dataset, dataset),
        "seeds": options.seeds if row.light else min(options.seeds, options.heavy_seeds),
        "folds": options.folds, "closed_set": False, "evaluation.metrics": METRICS[options.dataset],
        f"head.{row.network}.width": WIDTH, "train.total_steps": options.steps,
        "train.record_every_steps": options.steps, "train.checkpoint_every_steps": options.steps,
    }  # fmt: skip
    with config.unlocked():
        config.update_from_flattened_dict({**shared, **row.overrides})
    return to_plain(config)


def reason_against(row: Row, options: Options) -> str:
    """Why a row cannot be measured: coarse labels or feature files that are missing."""
    if row.graded and options.dataset == "ukbench":
        return NO_COARSE
    places = {options.dataset: options.dataset, "triplets": "deep_ranking/images.csv"}
    for name, images in places.items():
        features = config_of(row, name, options)["features"]
        if not Path(features["path"]).exists():
            flags = {"collection": features["collection"], "images": images, "path": features["path"]}
            given = [f"--config.features.{key}={value}" for key, value in flags.items()]
            command = ["python", "-m", "fgis.main", f"--config={row.network}", "--mode=extract", *given]
            return f"needs {features['path']}; run `{shlex.join(command)}`"
    first = None if row.light or row.kind == "frozen" else 0
    return "was not measured" if options.kept and not is_kept(row, options, first) else ""


def measure(row: Row, options: Options, seed: int | None) -> dict[str, np.ndarray]:
    """{metric: [seeds, images]}, ``labels`` of these, {PRECISION: [heads, triplets]}, ``queries`` of these, seconds.

    Args:
      row, options: which heads.
      seed: that of the heads; None for all.
    """
    began = time.perf_counter()
    run, other = (Run.open(config_of(row, name, options)) for name in (options.dataset, "triplets"))
    labels, chosen = run.rows.labels, [seed is None or plan.seed == run.settings.seed + seed for plan in run.plans]
    plans = tuple(plan for plan, own in zip(run.plans, chosen, strict=True) if own)
    if row.kind == "frozen":
        plans = tuple(plan for plan in plans if plan.seed == run.settings.seed)
        embed = lambda number, images: run.frozen[images]
        elsewhere = [other.frozen]
    else:
        runs = jax.tree.map(lambda leaf: leaf[np.flatnonzero(chosen)], run.experiment.runs)
        params = train_heads(run, runs) if row.kind == "trained" else untrained(run, runs)
        run.set_checkpoint(options.steps, params)
        other.set_checkpoint(options.steps, params)
        embed = lambda number, images: run.embed(run.features[images], number)
        elsewhere = [other.embed(other.features, number) for number in range(len(plans))]
    values: dict[str, Any] = unseen_gallery(embed, plans, build_folds(run.settings, labels), labels, run.scoring)
    triplets = read_triplets(options.triplets, other.rows.image_ids).rows
    correct = [evaluate_triplets(one, triplets, run.settings.distance).correct for one in elsewhere]
    values |= {PRECISION: np.stack(correct).astype(float), "labels": labels, "queries": triplets[:, 0]}
    return {**values, "seconds": np.array(time.perf_counter() - began), "heads": np.array(len(elsewhere))}


def untrained(run: Run, runs: Runs) -> Any:
    """The parameters that runs begin with."""
    return init_states(run.experiment.recipe, runs).params


def train_heads(run: Run, runs: Runs) -> Any:
    """The parameters of runs of an experiment after their last step."""
    experiment, steps = run.experiment, run.settings.train.total_steps
    data = TrainingData(run.training_features(), run.rows.labels, run.rows.coarse)
    return train(experiment.recipe, runs, data, steps=steps, record_every=steps).params


def kept(row: Row, options: Options) -> dict[str, np.ndarray]:
    """The values of a row, measured where they are not there yet: seed by seed where a seed takes minutes."""
    if row.light or row.kind == "frozen":
        return kept_seeds(row, options, None)
    seeds = [
        seed
        for seed in range(min(options.seeds, options.heavy_seeds))
        if not options.kept or is_kept(row, options, seed)
    ]
    parts = [kept_seeds(row, options, seed) for seed in seeds]
    values = {name: np.concatenate([one[name] for one in parts]) for name in (PRECISION, *METRICS[options.dataset])}
    totals = {name: np.array(sum(one[name] for one in parts)) for name in ("seconds", "heads")}
    return {**parts[0], **values, **totals}


def kept_seeds(row: Row, options: Options, seed: int | None) -> dict[str, np.ndarray]:
    """The values of a row, or of one of its seeds, measured where they are not there yet."""
    place = place_of(row, options, seed)
    if not place.exists():
        values = measure(row, of_seed(options, seed), seed)
        place.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(place) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **dict[str, Any](values))
    with np.load(place) as file:
        return {key: file[key] for key in file.files}


def is_kept(row: Row, options: Options, seed: int | None) -> bool:
    """Whether the values of a row, or of one of its seeds, are there."""
    return place_of(row, options, seed).exists()


def of_seed(options: Options, seed: int | None) -> Options:
    """The options under which one seed is the last: its figures do not depend on how many there are."""
    return options if seed is None else options._replace(seeds=seed + 1, heavy_seeds=seed + 1)


def place_of(row: Row, options: Options, seed: int | None) -> Path:
    """The file of a row, or of one of its seeds: its name depends on all that its figures depend on."""
    config = config_of(row, options.dataset, of_seed(options, seed))
    wanted = {**identity(row.kind, config), "triplets": str(options.triplets)}
    wanted |= {} if seed is None else {"seed": seed}
    name = hashlib.sha256(json.dumps(files.json_types(wanted), sort_keys=True).encode()).hexdigest()[:16]
    return options.workdir / "deep_ranking" / f"{options.dataset}.{name}.npz"


def summarize_rows(rows: Sequence[Row], options: Options) -> dict[str, Any]:
    """The table as a JSON object without its command."""
    found: dict[str, dict[str, np.ndarray]] = {}
    reasons = {row.name: reason_against(row, options) for row in rows}
    for row in (row for row in rows if not reasons[row.name]):
        found[row.name] = kept(row, options)
        means = {key: float(np.nanmean(found[row.name][key])) for key in (PRECISION, *METRICS[options.dataset])}
        shown = ", ".join(f"{key} {value:.4f}" for key, value in means.items())
        print(f"deep_ranking: {row.name}: {shown}, {found[row.name]['seconds']:.0f} s", file=sys.stderr, flush=True)
    metrics = METRICS[options.dataset]
    own = {name: Measured({key: one[key] for key in metrics}, one["labels"]) for name, one in found.items()}
    elsewhere = {name: Measured({PRECISION: one[PRECISION]}, one["queries"]) for name, one in found.items()}
    references = {"minus_frozen": FROZEN}
    figures = compare_rows(elsewhere, references, (PRECISION,))
    for name, more in compare_rows(own, references, metrics).items():
        figures[name] |= more
    return {
        "table": "deep_ranking",
        "dataset": options.dataset,
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "machine": machine(),
        "settings": {"folds": options.folds, "steps": options.steps, "width": WIDTH},
        "metrics": list(metrics),
        "comparisons": compare_pairs(own, metrics[0]),
        "triplets": max((len(one["queries"]) for one in found.values()), default=0),
        "rows": [
            {
                "row": row.name,
                "reason": reasons[row.name],
                "overrides": dict(row.overrides),
                "metrics": figures.get(row.name, {}),
                "heads": int(found[row.name]["heads"]) if row.name in found else 0,
                "seconds": float(found[row.name]["seconds"]) if row.name in found else 0.0,
            }
            for row in rows
        ],
        "published": [{"row": name, "precision": value, "score": score} for name, value, score in PUBLISHED],
    }


def compare_pairs(own: Mapping[str, Measured], metric: str) -> dict[str, Any]:
    """{"ROW − OTHER": their paired difference over the seeds that both have, corrected over the pairs}."""
    found = {}
    for name, other in PAIRS:
        if name in own and other in own:
            seeds = min(len(own[row].values[metric]) for row in (name, other))
            one, two = (own[row].values[metric][:seeds] for row in (name, other))
            found[f"{name} − {other}"] = {**paired_difference(one, two, own[name].labels), "seeds": seeds}
    return corrected(found)


def page(summary: Mapping[str, Any]) -> Page:
    """Precision on the triplets, then the metrics on unseen classes."""
    metrics = summary["metrics"]
    header = ["row", PRECISION, "Δ frozen", *metrics, f"Δ frozen, {metrics[0]}", "heads", "s"]
    rows = []
    for row in (row for row in summary["rows"] if not row["reason"]):
        found = row["metrics"]
        cells = [figure(found[PRECISION]), difference(found[PRECISION].get("minus_frozen"))]
        cells += [figure(found[metric]) for metric in metrics]
        cells += [difference(found[metrics[0]].get("minus_frozen")), str(row["heads"]), f"{row['seconds']:.0f}"]
        rows.append([row["row"], *cells])
    for one in summary["published"]:
        precision = (
            NONE if one["precision"] is None or one["precision"] != one["precision"] else f"{one['precision']:g}"
        )
        rows.append([f"published: {one['row']} (Wang 2014)", precision, *[NONE] * (len(header) - 2)])
    notes = [f"not run: {row['row']}: {row['reason']}" for row in summary["rows"] if row["reason"]]
    for name, one in summary.get("comparisons", {}).items():
        notes.append(f"{name}, {metrics[0]}: {difference(one)} ({one['seeds']} seeds)")
    notes += [f"published: {one['row']} (Wang 2014): score@30 {one['score']}" for one in summary["published"]]
    settings = summary["settings"]
    caption = (
        f"Similarity precision: the share of {summary['triplets']} public triplets of Deep Ranking that are ordered as "
        "people ordered them, with 95 % bootstrap intervals over query photos and heads; none of these photos was "
        "trained on. "
        f"Other columns: in galleries of the classes of {summary['dataset']} that a head has not seen, with intervals "
        f"over classes and seeds. Heads: seeds × {settings['folds']} class-disjoint folds, {settings['width']} "
        f"dimensions and {settings['steps']} steps; unless a row says otherwise, weighted triplets with 20 % of the "
        "negatives out of class. Score@30 needs galleries of 1,000 photos of a text query, which are not public; with "
        "the dozen that are, every triplet counts, and it says no more than precision. Δ: paired differences; * marks "
        f"a Holm-corrected p < .05: sign-flip permutation test ({FLIPS:,} random flips), corrected over the rows. s: "
        "wall time of all heads of a row. Published figures are of the paper's own training and all its triplets. "
        f"{NOT_FOUND}"
    )
    return Page([Grid("", header, rows, columns(0.26, len(header) - 1))], notes, caption)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes the table; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, default = argparse.ArgumentParser(prog="python -m experiments.deep_ranking"), Options._field_defaults
    parser.add_argument("--dataset", choices=list(METRICS), default="grocerystore", help="what heads are trained on")
    parser.add_argument("--features", type=Path, default=Path("features"), help="the folder of the feature files")
    parser.add_argument("--triplets", required=True, help="the triplet file, in CSV")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tables"), help="where rows and the table live")
    parser.add_argument("--only", default="", help="names of rows, with semicolons; all without it")
    parser.add_argument("--seeds", type=int, default=default["seeds"], help="of rows without shallow paths")
    parser.add_argument("--heavy_seeds", type=int, default=default["heavy_seeds"], help="of rows with them")
    parser.add_argument("--kept", action="store_true", help="run nothing: show the rows and seeds that are there")
    for name in ("folds", "steps"):
        parser.add_argument(f"--{name}", type=int, default=default[name])
    parser.add_argument("--rows", default="", help=ROWS_HELP)
    given = vars(parser.parse_args(arguments))

    def work() -> int:
        wanted = {name.strip() for name in given.pop("only").split(";") if name.strip()}
        if unknown := wanted - {row.name for row in ROWS}:
            raise UserError(f"--only={sorted(unknown)[0]}: no such row; known: {'; '.join(row.name for row in ROWS)}")
        share = read_share(given.pop("rows"))
        prepare_jax()
        chosen = [row for row in ROWS if not wanted or row.name in wanted]
        command = shlex.join(["python", "-m", "experiments.deep_ranking", *arguments])
        options = Options(**given)
        if share:
            for row in (row for index, row in enumerate(chosen) if is_own(index, share)):
                if not reason_against(row, options):
                    kept(row, options)
            say_share("deep_ranking", share)
            return 0
        write_table({"command": command, **summarize_rows(chosen, options)}, page, options.workdir)
        return 0

    return guarded("deep_ranking", work, "the same command continues in the row it was in")


if __name__ == "__main__":
    sys.exit(main())
