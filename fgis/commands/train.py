"""Trains an experiment, resumes it, or notices that it is finished; then evaluates and reports."""

from time import monotonic
from typing import Any, NamedTuple

WORKDIR = "needed"
READS_SAVED_CONFIG = False


class Options(NamedTuple):
    """No flags of its own."""


def run(config: Any, workdir: Any, options: Options) -> None:
    """Writes ``config.json``, ``checkpoints``, ``metrics.jsonl`` and the report into ``workdir``.

    Raises:
      UserError: the configuration or the feature file is refused, ``workdir`` holds another run, or training diverged.
    """
    del options
    from fgis import files
    from fgis.experiment import reports, training
    from fgis.experiment.run import Run
    from fgis.experiment.transfer import open_transfer
    from fgis.report import summary

    began = monotonic()
    opened = Run.open(config, workdir)
    total = opened.settings.train.total_steps
    opened.find_picture  # noqa: B018  a folder of pictures that is not there is said before training, not after it
    if not training.is_finished(workdir, total):
        open_transfer(opened)  # so is a second feature file that cannot be used
    training.claim(opened, workdir)
    report = files.read_json(workdir / "report.json")
    if training.is_finished(workdir, total) and report:
        print(f"{workdir} is finished: nothing left to train\n\n{summary.report_text(report)}")
        return
    plans = opened.plans
    print(f"{len(opened.rows.labels)} images; preparing {len(plans)} runs of {total} steps", flush=True)
    training.train_run(opened, workdir)
    print("evaluating", flush=True)
    reports.report_on(opened)
    print(f"{monotonic() - began:.0f} s for {len(plans)} runs of {total} steps, evaluation and report")
