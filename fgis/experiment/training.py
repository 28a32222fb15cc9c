"""Training the runs of an experiment: claim the work directory, resume or begin, record, save."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from fgis import files, hosts, interrupts
from fgis.base import TrainState
from fgis.errors import UserError
from fgis.experiment import identity
from fgis.experiment.differences import DECORATION, OF_LENGTH, describe_difference, differences, refuse_other
from fgis.experiment.run import Run
from fgis.learning import checkpoint
from fgis.learning.train import Metrics, TrainingData, init_states, train
from fgis.report import metrics_log, summary

CONFIG = "config.json"
SAYS_WHAT_IT_IS = (CONFIG, identity.NAME)


def claim(run: Run, workdir: Path) -> None:
    """Writes what a run is into its work directory, or refuses one that holds another run.

    Raises:
      UserError: as ``refuse_other_run``.
    """
    found = refuse_other_run(run, workdir)
    if files.read_object(workdir / CONFIG) != run.config:
        files.write_json(workdir / CONFIG, run.config)
    if identity.saved_identity(workdir) is None:
        identity.save_identity(workdir, found)


def refuse_other_run(run: Run, workdir: Path) -> dict[str, Any]:
    """Compares a run with what its work directory holds; returns what ``digest_rows`` says of its images.

    The configuration is compared with ``config.json`` and with the one in the latest checkpoint, so that it is known
    where the file is lost.

    Raises:
      UserError: ``workdir`` holds a run of another configuration, one that was trained on other images, one that is
        trained beyond the last step already, or a file that is damaged.
    """
    saved, trained_on = files.read_object(workdir / CONFIG), identity.saved_identity(workdir)
    kept, found = checkpoint.read_saved(workdir), identity.digest_rows(run.rows)
    digest = trained_on["sha256"] if trained_on else kept.images if kept else ""
    # Where the content of the feature file is known, its path says nothing more.
    ignored = (*DECORATION, *OF_LENGTH, "features.path") if digest else (*DECORATION, *OF_LENGTH)
    if saved is not None and kept and not differences(run.config, kept.config, ignored):
        other = differences(saved, kept.config, ignored)
        if other:
            line = describe_difference(other, f"the checkpoint of step {kept.step}")
            raise UserError(f"{workdir / CONFIG}: {line}; remove this file, which is written anew")
    for config in (saved, kept.config if kept else None):
        if config is not None:
            refuse_other(run.config, config, workdir, ignored)
    if digest and digest != found["sha256"]:
        count = f" ({trained_on['images']} images)" if trained_on else ""
        raise UserError(
            f"config.features.path={run.settings.features.path}: its {found['images']} images, labels or features are "
            f"not those that the run in {workdir} was trained on{count}; name another "
            "--workdir to train on them, or --mode=evaluate to evaluate the run on them as a transfer"
        )
    total = run.settings.train.total_steps
    if kept and total < kept.step:
        raise UserError(
            f"config.train.total_steps: {total}, but the run in {workdir} is trained to step {kept.step}; write at "
            "least that, or name another --workdir"
        )
    return found


def finished_report(workdir: Path, total: int) -> str | None:
    """The report, for the terminal, of a run that is trained to its last step; None where anything is left to do.

    Raises:
      UserError: every checkpoint is damaged.
    """
    report = summary.read_report(workdir / "report.json")
    if report is None or report.get("step") != total or not (workdir / "report.html").exists():
        return None
    whole = checkpoint.latest_step(workdir) == total == checkpoint.restore_params(workdir, say=lambda line: None)[0]
    return summary.report_text(report, width=summary.terminal_width()) if whole else None


def train_run(run: Run, workdir: Path) -> int:
    """Trains all runs to the last step, from the latest checkpoint if there is one; returns the step it began at.

    The parameters become those of ``run``. ``metrics.jsonl`` gets a line at every record, and a checkpoint is saved
    every ``config.train.checkpoint_every_steps``. Several processes train together: all of them call this, and the
    first alone reads and writes ``workdir``.

    Raises:
      UserError: another process has another configuration, other images or other versions.
    """
    experiment, total, first = run.experiment, run.settings.train.total_steps, hosts.is_first()
    if hosts.are_several():
        hosts.same_in_all(identity.digest_command(run.rows, run.config), "another configuration, images or versions")
    with interrupts.put_off() as waiting, _own_checkpoints(workdir) as manager:
        state = _begin(run, manager)
        start = int(state.step[0])
        if start and first:
            print(f"resuming at step {start} of {total}", flush=True)
        if first:
            metrics_log.rewind_records(workdir / "metrics.jsonl", start)
        data = TrainingData(run.training_features(), run.rows.labels, run.rows.coarse)
        with tqdm(total=total, initial=start, unit="step", disable=None if first else True) as bar:
            state = train(
                experiment.recipe,
                experiment.runs,
                data,
                steps=total,
                record_every=run.settings.train.record_every_steps,
                state=state,
                on_record=recorder(run, manager, workdir, bar, waiting),
            )
    run.set_checkpoint(total, jax.tree.map(hosts.to_own_host, state.params) if hosts.are_several() else state.params)
    return start


@contextmanager
def _own_checkpoints(workdir: Path) -> Iterator[Any]:
    """The checkpoints of a run in the first process, None in the others."""
    if not hosts.is_first():
        yield None
        return
    with checkpoint.open_checkpoints(workdir / "checkpoints") as manager:
        yield manager


def _begin(run: Run, manager: Any) -> TrainState:
    """The state of the latest checkpoint, or that before the first step: the same bits in all processes."""
    fresh = partial(init_states, run.experiment.recipe, run.experiment.runs)
    state = jax.eval_shape(fresh)
    if hosts.is_first():
        found = checkpoint.restore_latest(manager, state)
        state = fresh() if found is None else found
    return hosts.from_first(state)


def recorder(
    run: Run, manager: Any, workdir: Path, bar: tqdm, waiting: Callable[[], int]
) -> Callable[[int, TrainState, Metrics], None]:
    """Writes each record to ``metrics.jsonl`` and shows it; saves a checkpoint where one is due.

    Where a signal is ``waiting`` in any process, a checkpoint is saved and an ``Interruption`` ends the training.
    """
    settings, images = run.settings.train, identity.trained_digest(workdir) if hosts.is_first() else ""

    def on_record(step: int, state: TrainState, metrics: Metrics) -> None:
        number = hosts.largest(waiting())
        due = number > 0 or step % settings.checkpoint_every_steps == 0 or step == settings.total_steps
        if due and hosts.are_several():
            state = jax.tree.map(hosts.to_own_host, state)
        if hosts.is_first():
            write(step, state, metrics, due)
        if number:
            if manager is not None:
                manager.wait_until_finished()
            hosts.leave()
            raise interrupts.Interruption(number)

    def write(step: int, state: TrainState, metrics: Metrics, due: bool) -> None:
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
        if due:
            checkpoint.save(manager, state, run.config, shown.get("validation_loss", shown["loss"]), images)

    return on_record
