"""Trains an experiment, resumes it, or notices that it is finished; then evaluates and reports."""

import os
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

WORKDIR = "needed"
READS_SAVED_CONFIG = False
SEVERAL_PROCESSES = True


def saved_words(workdir: Path) -> str:
    """What is saved of an interrupted training, and how to go on; quick, since JAX may not be imported yet."""
    try:
        steps = [int(name) for name in os.listdir(workdir / "checkpoints") if name.isdecimal()]
    except OSError:
        steps = []
    if not steps:
        return f"no checkpoint was saved yet in {workdir}; the same command starts anew"
    return f"{workdir} is saved at step {max(steps)}; the same command goes on from there"


GO_ON = saved_words
BEGUN, FINISHED = 1, 2  # what the first process finds in the work directory, for the others


class Options(NamedTuple):
    """No flags of its own."""


def run(config: Any, workdir: Any, options: Options) -> None:
    """Writes ``config.json``, ``checkpoints``, ``metrics.jsonl`` and the report into ``workdir``.

    Of several processes, the first alone writes, and evaluates after all have trained.

    Raises:
      UserError: the configuration or the feature file is refused, ``workdir`` holds another run, or training diverged.
    """
    del options
    from fgis import hosts
    from fgis.experiment import training
    from fgis.experiment.run import Run

    opened = Run.open(config, workdir)
    if hosts.is_first():
        _train_and_report(opened, workdir)
    elif hosts.largest(BEGUN) == BEGUN:
        training.train_run(opened, workdir)


def _train_and_report(opened: Any, workdir: Path) -> None:
    """What the first process does: all that touches ``workdir``."""
    from fgis import files, hosts, locks
    from fgis.experiment import reports, training
    from fgis.experiment.transfer import open_transfer

    began = monotonic()
    total = opened.settings.train.total_steps
    opened.find_picture  # noqa: B018  a folder of pictures that is not there is said before training, not after it
    if report := training.finished_report(workdir, total):
        # What it was trained with is written anew where it is lost, and the place allows it.
        lost = not all((workdir / name).exists() for name in training.SAYS_WHAT_IT_IS) and files.can_write(workdir)
        (training.claim if lost else training.refuse_other_run)(opened, workdir)
        hosts.largest(FINISHED)
        print(f"{workdir} is finished: nothing left to train\n\n{report}")
        return
    opened.require_room()  # as is said what does not fit
    open_transfer(opened)  # so is a second feature file that cannot be used
    plans = opened.plans
    with locks.only_process(workdir / locks.OF_RUN, workdir, "is training in it"):
        training.claim(opened, workdir)
        print(f"{len(opened.rows.labels)} images; preparing {len(plans)} runs of {total} steps", flush=True)
        hosts.largest(BEGUN)
        training.train_run(opened, workdir)
        hosts.leave()
        print("evaluating", flush=True)
        reports.report_on(opened)
    print(f"{monotonic() - began:.0f} s for {len(plans)} runs of {total} steps, evaluation and report")
