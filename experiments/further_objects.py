"""Heads on other features, batches and images: chosen on unseen objects, measured once on further objects.

    python -m experiments.further_objects [--features=features] [--only="mean; GeM"] [--seeds=10] [--fold_seeds=2]

Each row is the default head of configs/ukbench.py on the feature files ``FEATURES/SET.NAME.h5`` that the row joins, of
the sets ukbench (first 1,000 images), ukbench_transfer (500 images of 125 further objects) and, for heads that learn
from both, grocerystore. Heads are compared on folds of the first 1,000 images: objects that a head has not seen. The
further images are measured with heads of all first images, in a gallery of these alone; nothing is chosen on them. A
row that is there is not run again.
"""

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.command_line import guarded
from experiments.further_page import DIFFERENCES, RERANK, page
from experiments.further_rows import FEATURES, REFERENCE, ROWS, Row, commands_of, config_of, path_of, write_stacked
from experiments.learnt_reranking import learn_weights, pairs_of, reorder
from experiments.machine import machine
from experiments.rendering import write_table
from experiments.rows import identity
from fgis import files
from fgis.errors import UserError
from fgis.experiment.identity import digest_rows
from fgis.experiment.run import Run
from fgis.experiment.start import prepare_jax
from fgis.learning.train import TrainingData, init_states, train
from fgis.report.contents import versions
from fgis.retrieval.evaluate import protocol, score_neighbours
from fgis.retrieval.first_search import FirstSearch, first_search
from fgis.retrieval.folds import object_folds
from fgis.retrieval.intervals import summarize
from fgis.retrieval.rerank import RERANKERS
from fgis.retrieval.significance import corrected, paired_difference

METRICS = ("ns_score", "map@r")
LISTED, FOLDS = 24, 5
ASKED = 3  # folds of classes of a second set that are measured: training on both takes minutes
KINDS = ("frozen", "untrained", "trained")
Values = dict[str, np.ndarray]
Pairs = tuple[np.ndarray, np.ndarray]  # features [p, f], and whether a pair shows the same object [p]
Embed = Callable[[str, int, np.ndarray], list[np.ndarray]]  # (kind, fold, prepared features) -> embeddings by seed


class Options(NamedTuple):
    """The flags."""

    features: Path
    workdir: Path
    seeds: int = 10
    fold_seeds: int = 2


def measure_folds(row: Row, options: Options) -> Values:
    """{"folds/KIND/METRIC": [seeds, 1000], "pairs/KIND" and "same/KIND": what is to be learnt from}, and the labels.

    KIND is frozen, untrained or trained; of values also each of the first and the last with "+reranked" and "+learnt".
    """
    first = Run.open(config_of(row, path_of(row, "ukbench", options.features)))
    labels = first.rows.labels
    folds = object_folds(labels, FOLDS, first.settings.seed)
    unseen = [np.flatnonzero(folds == fold) for fold in range(FOLDS)]
    embed = heads(row, options, options.fold_seeds, unseen)
    values: Values = {"labels": labels}
    for kind in KINDS:
        searches = [[search_all(x) for x in embed(kind, fold, first.features)] for fold in range(FOLDS)]
        pairs = [[pairs_of(one, labels, unseen[fold]) for one in each] for fold, each in enumerate(searches)]
        for fold, rows in enumerate(unseen):
            for seed, found in enumerate(searches[fold]):
                known = [each[seed] for other, each in enumerate(pairs) if other != fold]
                for name, one in score(labels, found, together(known), kind).items():
                    table = values.setdefault(f"folds/{name}", np.full((len(searches[fold]), len(labels)), np.nan))
                    table[seed, rows] = one[rows]
        values[f"pairs/{kind}"], values[f"same/{kind}"] = together([one for each in pairs for one in each])
    return values


def measure_further(row: Row, options: Options) -> Values:
    """{"further/KIND/METRIC": [seeds, 500]} as of ``measure_folds``, whose pairs are learnt from, and the labels."""
    further = Run.open(config_of(row, path_of(row, "ukbench_transfer", options.features)))
    labels, embed, known = further.rows.labels, heads(row, options, options.seeds, ()), kept(row, options, "folds")
    values: Values = {"further_labels": labels}
    for kind in KINDS:
        pairs = known[f"pairs/{kind}"], known[f"same/{kind}"]
        scored = [score(labels, search_all(x), pairs, kind) for x in embed(kind, 0, further.features)]
        values |= {f"further/{name}": np.stack([one[name] for one in scored]) for name in scored[0]}
    return values


def together(pairs: Sequence[Pairs]) -> Pairs:
    """Pairs of several galleries as one."""
    features, same = zip(*pairs, strict=True)
    return np.concatenate(features), np.concatenate(same)


def search_all(x: np.ndarray) -> FirstSearch:
    """Images among themselves."""
    return first_search(x, x, min(LISTED, len(x)))


def score(labels: np.ndarray, found: FirstSearch, known: Pairs, kind: str) -> dict[str, np.ndarray]:
    """{"KIND/METRIC": values of every query}; a learnt re-ranking learns from ``known`` pairs of other objects."""
    orders = {kind: found.neighbours}
    if kind != "untrained":
        orders[f"{kind}+reranked"] = RERANKERS[RERANK](found)
        orders[f"{kind}+learnt"] = reorder(found, learn_weights(*known))
    asked = protocol(labels, METRICS)
    return {
        f"{name}/{metric}": values
        for name, order in orders.items()
        for metric, values in score_neighbours(order, labels, asked, METRICS).items()
    }


def heads(row: Row, options: Options, seeds: int, unseen: Sequence[np.ndarray]) -> Embed:
    """The heads of a row: one of each seed that has not seen the fold that it is asked for, if there are folds."""
    path = path_of(row, "ukbench", options.features)
    if not row.also:
        run = Run.open(config_of(row, path, seeds, len(unseen)))
        return partial_embed(
            [trained_run(run, options.workdir / "further_objects")] * max(1, len(unseen)),
            [fold for fold in range(max(1, len(unseen)))],
        )
    runs = []
    for rows in unseen or [np.zeros(0, int)]:
        place = str(options.workdir / "further_objects" / "seen.h5")
        seen = np.setdiff1d(np.arange(len(Run.open(config_of(row, path)).rows.labels)), rows)
        write_stacked(place, [(path, seen), *((path_of(row, name, options.features), None) for name in row.also)])
        runs.append(trained_run(Run.open(config_of(row, place, seeds)), options.workdir / "further_objects"))
    return partial_embed(runs, [0] * len(runs))


def trained_run(run: Run, folder: Path) -> tuple[Run, dict[str, Any]]:
    """A run with its parameters before and after training; those that are in ``folder`` are not trained again."""
    experiment, steps = run.experiment, run.settings.train.total_steps
    begun = init_states(experiment.recipe, experiment.runs).params
    config = {key: value for key, value in run.config.items() if key != "features"}
    name = json.dumps([config, digest_rows(run.rows), versions()], sort_keys=True)
    place = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.heads.npz"
    if place.exists():
        with np.load(place) as file:
            leaves = [file[f"arr_{number}"] for number in range(len(file.files))]
        return run, {"untrained": begun, "trained": jax.tree.unflatten(jax.tree.structure(begun), leaves)}
    data = TrainingData(run.training_features(), run.rows.labels, run.rows.coarse)
    ended = train(experiment.recipe, experiment.runs, data, steps=steps, record_every=steps).params
    with files.replacing(place) as partial, partial.open("wb") as file:
        np.savez(file, *jax.tree.leaves(ended))
    return run, {"untrained": begun, "trained": ended}


def partial_embed(runs: Sequence[tuple[Run, dict[str, Any]]], own: Sequence[int]) -> Embed:
    """``Embed`` of runs by fold, each of which has heads of the folds 0 … of which ``own[fold]`` is meant."""

    def embed(kind: str, fold: int, x: np.ndarray) -> list[np.ndarray]:
        if kind == "frozen":
            return [x]
        run, params = runs[fold]
        run.set_checkpoint(run.settings.train.total_steps, params[kind])
        seeds = run.settings.seeds
        return [run.embed(x, own[fold] * seeds + seed) for seed in range(seeds)]

    return embed


def measure_classes(row: Row, options: Options) -> Values:
    """{"classes/KIND": MAP@R [seeds, images]} on unseen classes of the further sets that a row learns from.

    KIND is frozen, alone (heads of the other classes of these sets) or joint (of these and of UKBench). Images of folds
    that are not asked are NaN.
    """
    name, seeds, metrics = row.also[0], options.fold_seeds, ("map@r",)
    path, place = path_of(row, name, options.features), str(options.workdir / "further_objects" / "seen.h5")
    whole = Run.open(config_of(row, path))
    labels, folds = whole.rows.labels, object_folds(whole.rows.labels, FOLDS, whole.settings.seed)
    values = {f"classes/{kind}": np.full((seeds, len(labels)), np.nan) for kind in ("frozen", "alone", "joint")}
    for fold in range(min(ASKED, FOLDS)):
        rows, seen = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        asked = protocol(labels[rows], metrics)
        depth = int(np.bincount(labels[rows]).max()) + 1
        for kind, more in (("alone", []), ("joint", [(path_of(row, "ukbench", options.features), None)])):
            write_stacked(place, [(path, seen), *more])
            embed = partial_embed(
                [trained_run(Run.open(config_of(row, place, seeds)), options.workdir / "further_objects")], [0]
            )
            for named, each in (("frozen", "frozen"), (kind, "trained")):
                found = [first_search(x, x, depth).neighbours for x in embed(each, 0, whole.features[rows])]
                scored = [score_neighbours(one, labels[rows], asked, metrics)["map@r"] for one in found]
                values[f"classes/{named}"][:, rows] = np.stack(scored)
    return {**values, "classes_labels": labels}


STAGES = {"folds": measure_folds, "further": measure_further, "classes": measure_classes}


def kept(row: Row, options: Options, stage: str) -> Values:
    """The values of one stage of a row, with its "seconds", measured where they are not there yet."""
    sets = ("ukbench", "ukbench_transfer", *row.also)
    paths = {name: path_of(row, name, options.features) for name in sets}
    made_of = {name: identity("trained", config_of(row, path))["features_sha256"] for name, path in paths.items()}
    config = {key: value for key, value in config_of(row, "").items() if key != "features"}
    seeds = [options.seeds if stage == "further" else 0, options.fold_seeds]
    wanted = {"config": config, "features": made_of, "seeds": seeds, "versions": versions()}
    name = hashlib.sha256(json.dumps(files.json_types(wanted), sort_keys=True).encode()).hexdigest()[:16]
    place = options.workdir / "further_objects" / f"{name}.{stage}.npz"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        values: dict[str, Any] = STAGES[stage](row, options)
        values["seconds"] = np.array(time.perf_counter() - began)
        with files.replacing(place) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **values)
    with np.load(place) as file:
        return {key: file[key] for key in file.files}


def all_stages(row: Row, options: Options) -> Values:
    """The values of a row."""
    each = [kept(row, options, stage) for stage in STAGES if stage != "classes" or row.also]
    return {key: value for one in each for key, value in one.items()} | {
        "seconds": np.array(sum(float(one["seconds"]) for one in each))
    }


def summarize_rows(rows: Sequence[Row], options: Options) -> dict[str, Any]:
    """The table as a JSON object without its command."""
    found: dict[str, Values] = {}
    missing = {row.name: commands_of(row, options.features) for row in rows}
    for row in (row for row in rows if not missing[row.name]):
        found[row.name] = one = all_stages(row, options)
        shown = ", ".join(f"{place} {one[f'{place}/trained/ns_score'].mean():.4f}" for place in ("folds", "further"))
        print(f"further_objects: {row.name}: {shown}, {one['seconds']:.0f} s", file=sys.stderr, flush=True)
    figures = {name: figures_of(one) for name, one in found.items()}
    for key, (kind, other) in DIFFERENCES.items():
        against = found.get(REFERENCE) if kind == other else None
        compared = {
            name: paired_difference(
                one[f"further/{kind}/ns_score"], (against or one)[f"further/{other}/ns_score"], one["further_labels"]
            )
            for name, one in found.items()
            if kind != other or (against is not None and name != REFERENCE)
        }
        for name, one in corrected(compared).items():
            figures[name][key] = one
    network = lambda name: FEATURES.get(name, {}).get("backbone", name)
    singles = {row.name for row in rows if len({network(name) for name in row.features}) == 1}
    return {
        "table": "further_objects",
        "dataset": "transfer",
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(),
        "machine": machine(),
        "settings": {"seeds": options.seeds, "fold_seeds": options.fold_seeds, "folds": FOLDS},
        "reference": REFERENCE,
        "chosen": choose(found, singles),
        "rows": [
            {
                "row": row.name,
                "features": list(row.features),
                "overrides": dict(row.overrides),
                "also": list(row.also),
                "missing": missing[row.name],
                **figures.get(row.name, {}),
            }
            for row in rows
        ],
    }


def figures_of(one: Values) -> dict[str, Any]:
    """{"folds" and "further": {KIND: {METRIC: mean and interval}}, "classes": {KIND: of MAP@R}, "seconds"} of a row."""
    found: dict[str, Any] = {"seconds": float(one["seconds"])}
    for key in one:
        place, _, rest = key.partition("/")
        kind, _, metric = rest.partition("/")
        if rest and place in STAGES:
            summary = summarize(one[key], one[{"folds": "labels"}.get(place, f"{place}_labels")])
            found.setdefault(place, {}).setdefault(kind, {})[metric or "map@r"] = summary
    return found


def choose(found: Mapping[str, Values], singles: set[str]) -> dict[str, dict[str, str]]:
    """The rows, and re-rankings, that are best on folds of the first images; ties go to the first."""
    best = lambda keys: max(keys, key=lambda key: float(np.nanmean(found[key[0]][f"folds/{key[1]}/ns_score"])))
    wanted = {
        "one network": [(name, "trained") for name in found if name in singles],
        "all": [(name, "trained") for name in found],
        "one network, re-ranked": [
            (name, kind) for name in found if name in singles for kind in ("trained+reranked", "trained+learnt")
        ],
        "all, re-ranked": [(name, kind) for name in found for kind in ("trained+reranked", "trained+learnt")],
    }
    chosen = {words: best(keys) for words, keys in wanted.items() if keys}
    return {words: {"row": name, "kind": kind} for words, (name, kind) in chosen.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes the table; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, default = argparse.ArgumentParser(prog="python -m experiments.further_objects"), Options._field_defaults
    parser.add_argument("--features", type=Path, default=Path("features"), help="the folder of the feature files")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tables"), help="where rows and the table live")
    parser.add_argument("--only", default="", help="names of rows, with semicolons; all without it")
    parser.add_argument("--seeds", type=int, default=default["seeds"], help="of heads of all first images")
    parser.add_argument("--fold_seeds", type=int, default=default["fold_seeds"], help="of heads of folds")
    given = vars(parser.parse_args(arguments))

    def work() -> int:
        wanted = {name.strip() for name in given.pop("only").split(";") if name.strip()}
        if unknown := wanted - {row.name for row in ROWS}:
            raise UserError(f"--only={sorted(unknown)[0]}: no such row; known: {'; '.join(row.name for row in ROWS)}")
        prepare_jax()
        chosen = [row for row in ROWS if not wanted or row.name in wanted]
        command = shlex.join(["python", "-m", "experiments.further_objects", *arguments])
        options = Options(**given)
        write_table({"command": command, **summarize_rows(chosen, options)}, page, options.workdir)
        return 0

    return guarded("further_objects", work, "the same command continues with the rows that are missing")


if __name__ == "__main__":
    sys.exit(main())
