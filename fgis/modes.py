"""What each ``--mode`` does: the walk of a configuration through the rooms, and nothing numerical."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from fgis import build, choices
from fgis.base import TrainState
from fgis.errors import UserError
from fgis.features import collection, extract, store
from fgis.learning import checkpoint
from fgis.learning.train import Metrics, init_states, train
from fgis.report import records, summary
from fgis.reporting import Wanted, prepared, report_on, transfer_on


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


def evaluate_mode(
    config: ml_collections.ConfigDict,
    workdir: Path,
    step: int | None = None,
    wanted: Wanted = Wanted(),  # noqa: B008
) -> None:
    """Restores a checkpoint and evaluates it; on a feature file that it was not trained on, as ``transfer``.

    How it is evaluated, and on what, may differ from what it was trained with.
    """
    found, params, saved = checkpoint.restore_params(workdir, step)
    choices.refuse_other(config, saved, str(workdir), but=("features.", "evaluation.", "rerank."))
    source, rows = open_source(config)
    if source.path == saved["features"]["path"]:
        experiment = open_experiment(config, rows)
        report_on(config, workdir, experiment, rows, params, found, wanted)
    elif wanted != Wanted():
        raise UserError("--triplets, --neighbours: for the features that the run was trained on; leave config.features")
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
    images = collection.load_collection(source.collection, source.images)
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


MODES = {"train": train_mode, "evaluate": evaluate_mode, "extract": extract_mode}
