"""What each ``--mode`` does: the walk of a configuration through the rooms, and nothing numerical."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from fgis import build, choices
from fgis.features import collections, extract, store
from fgis.learning import checkpoint
from fgis.learning.train import Metrics, init_states, train
from fgis.report import gallery, records, render, summary
from fgis.retrieval.evaluate import compare, evaluate, evaluate_runs, protocol
from fgis.retrieval.search import search
from fgis.types import RunPlan, TrainState, UserError

SHOWN = 6  # queries, and answers to each, in the galleries of a report


def train_mode(config: ml_collections.ConfigDict, workdir: Path, step: int | None = None) -> None:
    """Trains, or resumes, or notices that it is finished; then evaluates and reports."""
    del step
    began = time.monotonic()
    source, rows = open_source(config)
    experiment = open_experiment(config, rows)
    claim(config, workdir)
    total = experiment.total_steps
    with checkpoint.open_checkpoints(workdir / "checkpoints") as manager:
        state = checkpoint.restore_latest(
            manager, jax.eval_shape(lambda: init_states(experiment.recipe, experiment.runs))
        )
        start = 0 if state is None else int(state.step[0])
        report = records.read_json(workdir / "report.json")
        if start == total and report and report["step"] == total and (workdir / "report.html").exists():
            print(f"{workdir} is finished: nothing left to train\n\n{summary.text(report)}")
            return
        if start:
            print(f"resuming at step {start} of {total}")
        records.rewind_records(workdir / "metrics.jsonl", start)
        with tqdm(total=total, initial=start, unit="step", disable=None) as bar:
            state = train(
                experiment.recipe,
                experiment.runs,
                training_features(source, rows, experiment),
                rows.labels,
                steps=total,
                record_every=experiment.record_every,
                coarse=rows.coarse,
                state=state,
                on_record=recorder(choices.plain(config), experiment, manager, workdir / "metrics.jsonl", bar),
            )
    report_on(config, workdir, experiment, rows, state.params, total)
    print(f"{time.monotonic() - began:.0f} s for {len(experiment.plans)} runs of {total} steps, evaluation and report")


def evaluate_mode(config: ml_collections.ConfigDict, workdir: Path, step: int | None = None) -> None:
    """Restores a checkpoint and evaluates it; on a feature file that it was not trained on, as ``transfer``."""
    found, params, saved = checkpoint.restore_params(workdir, step)
    choices.refuse_other(config, saved, str(workdir), but="features.")
    source, rows = open_source(config)
    if source.path == saved["features"]["path"]:
        experiment = open_experiment(config, rows)
        report_on(config, workdir, experiment, rows, params, found)
    else:
        transfer_on(config, workdir, rows, params, found)


def extract_mode(config: ml_collections.ConfigDict, workdir: Path, step: int | None = None) -> None:
    """Images → the feature file that ``config.features.path`` names."""
    del workdir, step
    source = build.source(config)
    if not source.path:
        raise UserError("config.features.path: empty; name the feature file to write, such as features/mine.h5")
    if not source.described:
        raise UserError("config.features.backbone: empty; name the network that makes the features")
    settings = {key: value for key, value in source.described.items() if key != "collection"}
    images = collections.load_collection(source.collection, source.images)
    with tqdm(total=len(images.labels), unit="image", disable=None) as bar:
        extract.extract(
            images,
            source.path,
            **settings,
            on_bad_image=source.on_bad_image,
            progress=lambda done, total: bar.update(done - bar.n),
            say=lambda line: tqdm.write(line),
        )


def open_source(config: ml_collections.ConfigDict) -> tuple[build.Source, store.Rows]:
    """The features of an experiment, checked against what the configuration says of them."""
    source = build.source(config)
    rows = store.open_rows(source.path)
    store.check_features(rows, source.path, source.described)
    return source, rows


def open_experiment(config: ml_collections.ConfigDict, rows: store.Rows) -> build.Experiment:
    """The experiment of ``config`` on the images of a feature file."""
    return build.build(config, rows.labels, rows.shape[-1], rows.read, rows.coarse)


def training_features(source: build.Source, rows: store.Rows, experiment: build.Experiment) -> Array | Callable:
    """The prepared features, where they fit on the device; otherwise a function that fetches rows of them."""
    if len(rows.labels) * rows.shape[-1] * 4 <= source.resident_bytes:
        return jnp.asarray(prepared(rows, experiment.scoring))

    def fetch(index: np.ndarray) -> np.ndarray:
        return np.asarray(experiment.scoring.prepare(rows.read(index.ravel()))).reshape(*index.shape, -1)

    return fetch


def prepared(rows: store.Rows, scoring: build.Scoring, block: int = 1024) -> Float[np.ndarray, "n f"]:
    """All prepared features, in the memory of the host."""
    blocks = (np.arange(start, min(start + block, len(rows.labels))) for start in range(0, len(rows.labels), block))
    return np.concatenate([np.asarray(scoring.prepare(rows.read(index))) for index in blocks])


def claim(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Writes ``config.json`` into a new workdir, or refuses one that holds another experiment."""
    workdir.mkdir(parents=True, exist_ok=True)
    saved = records.read_json(workdir / "config.json")
    if saved is None:
        records.write_json(workdir / "config.json", choices.plain(config))
    else:
        choices.refuse_other(config, saved, str(workdir))


def recorder(
    config: dict[str, Any], experiment: build.Experiment, manager: Any, path: Path, bar: tqdm
) -> Callable[[int, TrainState, Metrics], None]:
    """Writes each record to ``metrics.jsonl`` and shows it; saves a checkpoint where one is due."""

    def on_record(step: int, state: TrainState, metrics: Metrics) -> None:
        per_run = {name: values.mean(axis=0) for name, values in metrics.items()}
        records.append_record(path, {"step": step, **per_run})
        shown = {
            name: float(np.mean(per_run[name])) for name in ("loss", "active", "validation_loss") if name in per_run
        }
        if bar.disable:
            figures = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            print(f"step {step}/{experiment.total_steps}  {figures}", flush=True)
        else:
            bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()}, refresh=False)
            bar.update(step - bar.n)
        if step % experiment.checkpoint_every == 0 or step == experiment.total_steps:
            checkpoint.save(manager, state, config, loss=shown.get("validation_loss", shown["loss"]))

    return on_record


def report_on(
    config: ml_collections.ConfigDict,
    workdir: Path,
    experiment: build.Experiment,
    rows: store.Rows,
    params: Any,
    step: int,
) -> None:
    """Evaluates all runs, trained and untrained, beside the frozen features; writes and prints the report."""
    scoring, plans = experiment.scoring, experiment.plans
    features = prepared(rows, scoring)

    def values(embed: Callable[[int], Any], plans: Sequence[RunPlan]) -> dict[str, dict[str, np.ndarray]]:
        return evaluate_runs(embed, plans, experiment.folds, rows.labels, scoring.metrics, scoring.distance)

    untrained = init_states(experiment.recipe, experiment.runs).params
    found = {
        "frozen": values(lambda run: features, [plan for plan in plans if plan.seed == scoring.seed]),
        "untrained": values(partial(embed_run, scoring, untrained, features), plans),
        "trained": values(partial(embed_run, scoring, params, features), plans),
    }
    gallery_size = {"unseen_gallery": int(np.bincount(experiment.folds).max())}
    evaluations = {
        name: compare(
            {row: found[row][name] for row in found},
            rows.labels,
            gallery_size.get(name, len(rows.labels)),
            scoring.resamples,
            scoring.seed,
        )
        for name in found["trained"]
    }
    shown = galleries(build.source(config), experiment, rows, found, partial(embed_run, scoring, params, features))
    write_report(config, workdir, step, evaluations, plans, shown)


def transfer_on(config: ml_collections.ConfigDict, workdir: Path, rows: store.Rows, params: Any, step: int) -> None:
    """Evaluates heads on images of another feature file, none of which they have seen; heads of all objects if any."""
    scoring, plans = build.build_scoring(config), build.plan_runs(config)
    features, labels = prepared(rows, scoring), rows.labels
    runs = [run for run, plan in enumerate(plans) if plan.fold < 0] or list(range(len(plans)))
    if not build.head_fits(config, params, features.shape[1]):
        raise UserError(
            f"config.features.path: features of size {features.shape[1]}, but the heads in {workdir} were trained on "
            "features of another size; extract these images with the same backbone and pooling"
        )
    embedded = [embed_run(scoring, params, features, run) for run in runs]
    asked = protocol(labels, scoring.metrics)
    frozen = evaluate(features, labels, asked, scoring.metrics, scoring.distance)
    each = [evaluate(embeddings, labels, asked, scoring.metrics, scoring.distance) for embeddings in embedded]
    found = {
        "frozen": {name: values[None] for name, values in frozen.items()},
        "trained": {name: np.stack([values[name] for values in each]) for name in scoring.metrics},
    }
    evaluations = {"transfer": compare(found, labels, len(labels), scoring.resamples, scoring.seed)}
    write_report(config, workdir, step, evaluations, plans, {})


def embed_run(scoring: build.Scoring, params: Any, features: np.ndarray, run: int) -> np.ndarray:
    """The embeddings of all images under the head of one run."""
    return np.asarray(scoring.embed(jax.tree.map(lambda x: jnp.asarray(x[run]), params), jnp.asarray(features)))


def write_report(
    config: ml_collections.ConfigDict,
    workdir: Path,
    step: int,
    evaluations: dict[str, Any],
    plans: Sequence[RunPlan],
    shown: dict[str, list[gallery.Answers]],
) -> None:
    """``report.html`` and ``report.json`` in the workdir, and the same table on the terminal."""
    history = records.read_records(workdir / "metrics.jsonl", step)
    report = {
        "version": records.VERSION,
        "config": choices.plain(config),
        "step": step,
        "versions": records.versions(),
        "collapsed": [list(plans[run]) for run in summary.collapsed(history)],
        "evaluations": evaluations,
    }
    records.write_text(workdir / "report.html", render.html(report, history, plans, shown))
    records.write_json(workdir / "report.json", report)  # last: where it is, the run is finished
    print(f"\n{summary.text(report)}\n{workdir / 'report.json'}\n{workdir / 'report.html'}")


def galleries(
    source: build.Source,
    experiment: build.Experiment,
    rows: store.Rows,
    found: dict[str, dict[str, dict[str, np.ndarray]]],
    embed: Callable[[int], np.ndarray],
) -> dict[str, list[gallery.Answers]]:
    """The worst and the best queries, answered by heads that have not seen their objects if there are such heads."""
    name = "unseen_objects" if "unseen_objects" in found["trained"] else "closed_set"
    metric, trained = next(iter(found["trained"][name].items()))
    read_image = None
    if source.images:
        images = collections.load_collection(source.collection, source.images)
        place = {image_id: i for i, image_id in enumerate(images.image_ids)}
        read_image = lambda row: images.read(place[rows.image_ids[row]]) if rows.image_ids[row] in place else None
    shown = {}
    queries = gallery.worst_and_best(trained, found["frozen"][name][metric][0], rows.labels, SHOWN)
    for title, chosen in zip(("Worst", "Best"), queries, strict=True):
        answers = []
        for query in chosen:
            fold = int(experiment.folds[query]) if name == "unseen_objects" else -1
            embeddings = embed(experiment.plans.index(RunPlan(experiment.scoring.seed, fold)))
            own = np.array([query])
            ranked = search(embeddings[own], embeddings, SHOWN, experiment.scoring.distance, query_rows=own)
            answers += gallery.answers([query], ranked, rows.labels, rows.image_ids, read_image)
        shown[f"{title} queries: {name.replace('_', ' ')}, by {metric}"] = answers
    return shown


MODES = {"train": train_mode, "evaluate": evaluate_mode, "extract": extract_mode}
