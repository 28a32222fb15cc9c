"""Evaluates a checkpoint; on a feature file that it was not trained on, as a transfer."""

from typing import Annotated, Any, NamedTuple

WORKDIR = "needed"
READS_SAVED_CONFIG = True


class Options(NamedTuple):
    """The flags of ``--mode=evaluate``."""

    step: Annotated[int | None, "the checkpoint to evaluate; the latest without it"] = None
    triplets: Annotated[str, "a CSV file of query,positive,negative image ids to score as well"] = ""
    strict: Annotated[bool, "refuse a triplet file with a line that cannot be scored, instead of leaving it out"] = (
        False
    )
    neighbours: Annotated[bool, "save the nearest images of every image as well, in neighbours.h5"] = False


def run(config: Any, workdir: Any, options: Options) -> None:
    """Writes the report of the run, or one into ``evaluations/NAME`` where anything differs from it.

    How a run is evaluated, and on what, may differ from how it was trained; everything else must be the same.

    Raises:
      UserError: there is no such checkpoint, it was trained with another configuration, or the feature file is refused.
    """
    from fgis.experiment import reports
    from fgis.experiment.run import Run

    opened = Run.open(config, workdir, options.step)
    print(f"checkpoint of step {opened.step} in {workdir}", flush=True)
    reports.report_on(opened, triplet_file=options.triplets, strict=options.strict, neighbours=options.neighbours)
