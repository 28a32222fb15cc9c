"""Evaluates a checkpoint; on a feature file that it was not trained on, as a transfer."""

from functools import partial
from typing import Annotated, Any, NamedTuple

WORKDIR = "needed"
READS_SAVED_CONFIG = True
SEVERAL_PROCESSES = True


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

    How a run is evaluated, and on what, may differ from how it was trained; everything else must be the same. Of
    several processes, the first alone does this.

    Raises:
      UserError: there is no such checkpoint, it was trained with another configuration, or the feature file is refused.
    """
    from fgis import files, hosts, locks
    from fgis.errors import warn
    from fgis.experiment import reports
    from fgis.experiment.run import Run

    hosts.leave()
    if not hosts.is_first():
        return
    opened = Run.open(config, workdir, options.step)
    print(f"checkpoint of step {opened.step} in {workdir}", flush=True)
    folder = reports.evaluation_folder(opened, opened.has_own_images, options.triplets)
    report = partial(
        reports.report_on, opened, triplet_file=options.triplets, strict=options.strict, neighbours=options.neighbours
    )
    if not files.can_write(folder):
        warn(f"{folder}: cannot be written; the report is printed alone")
        report(save=False)
        return
    with locks.only_process(folder / locks.OF_RUN, folder, "is evaluating into it"):
        report()
