"""Training the runs of an experiment: claim the work directory, resume or begin, record, save."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fgis import files
from fgis.base import TrainState
from fgis.errors import UserError
from fgis.experiment import identity
from fgis.experiment.differences import DECORATION, refuse_other
from fgis.experiment.run import Run
from fgis.learning import checkpoint
from fgis.learning.train import Metrics, TrainingData, init_states, train
from fgis.report import metrics_log

CONFIG = "config.json"


def claim(run: Run, workdir: Path) -> None:
    """Writes what a new run is into its work directory, or refuses one that holds another run.

    Raises:
      UserError: ``workdir`` holds a run of another configuration, or one that was trained on other images.
    """
    saved, trained_on = files.read_json(workdir / CONFIG), identity.saved_identity(workdir)
    if saved is not None:  # where the content of the feature file is known, its path says nothing more
        refuse_other(run.config, saved, workdir, (*DECORATION, "features.path") if trained_on else DECORATION)
    found = identity.digest_rows(run.rows)
    if trained_on and trained_on["sha256"] != found["sha256"]:
        raise UserError(
            f"config.features.path={run.settings.features.path}: its {found['images']} images, labels or features are "
            f"not those that the run in {workdir} was trained on ({trained_on['images']} images); name another "
            "--workdir to train on them, or --mode=evaluate to evaluate the run on them as a transfer"
        )
    if saved is None:
        files.write_json(workdir / CONFIG, run.config)
    if trained_on is None:
        identity.save_identity(workdir, found)


def is_finished(workdir: Path, total: int) -> bool:
    """Whether the run is trained to its last step, and its report is written."""
    report = files.read_json(workdir / "report.json")
    done = isinstance(report, dict) and report.get("step") == total and (workdir / "report.html").exists()
    return done and checkpoint.latest_step(workdir) == total


def train_run(run: Run, workdir: Path) -> int:
    """Trains all runs to the last step, from the latest checkpoint if there is one; returns the step it began at.

    The parameters become those of ``run``. ``metrics.jsonl`` gets a line at every record, and a checkpoint is saved
    every ``config.train.checkpoint_every_steps``.
    """
    experiment, total = run.experiment, run.settings.train.total_steps
    with checkpoint.open_checkpoints(workdir / "checkpoints") as manager:
        like = jax.eval_shape(lambda: init_states(experiment.recipe, experiment.runs))
        state = checkpoint.restore_latest(manager, like)
        start = 0 if state is None else int(state.step[0])
        if start:
            print(f"resuming at step {start} of {total}", flush=True)
        metrics_log.rewind_records(workdir / "metrics.jsonl", start)
        data = TrainingData(run.training_features(), run.rows.labels, run.rows.coarse)
        with tqdm(total=total, initial=start, unit="step", disable=None) as bar:
            state = train(
                experiment.recipe,
                experiment.runs,
                data,
                steps=total,
                record_every=run.settings.train.record_every_steps,
                state=state,
                on_record=recorder(run, manager, workdir, bar),
            )
    run.set_checkpoint(total, state.params)
    return start


def recorder(run: Run, manager: Any, workdir: Path, bar: tqdm) -> Callable[[int, TrainState, Metrics], None]:
    """Writes each record to ``metrics.jsonl`` and shows it; saves a checkpoint where one is due."""
    settings = run.settings.train

    def on_record(step: int, state: TrainState, metrics: Metrics) -> None:
        per_run = {name: values.mean(axis=0) for name, values in metrics.items()}
        metrics_log.append_record(workdir / "metrics.jsonl", {"step": step, **per_run})
        shown = {
            name: float(np.mean(per_run[name])) for name in ("loss", "active", "validation_loss") if name in per_run
        }
        if bar.disable:
            figures = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            print(f"step {step}/{settings.total_steps}  {figures}", flush=True)
        else:
            bar.set_postfix({name: f"{value:.4f}" for name, value in shown.items()}, refresh=False)
            bar.update(step - bar.n)
        if step % settings.checkpoint_every_steps == 0 or step == settings.total_steps:
            checkpoint.save(manager, state, run.config, loss=shown.get("validation_loss", shown["loss"]))

    return on_record
