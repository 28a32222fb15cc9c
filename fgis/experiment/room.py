"""Whether an experiment fits into memory, said before anything is computed."""

from contextlib import suppress
from pathlib import Path

from fgis.errors import UserError
from fgis.experiment.config import ExperimentSettings

COPIES = 4  # of resident features: prepared, on the device, as a distance compares them, and less their centre
ROWS, EVALUATIONS = 5, 3  # of a report that keep a value for each query at a time, at most
OPEN_SET = 3  # values of a query in the open set


def free_memory(proc: Path = Path("/proc"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a process may still take: what the system has, or what its control group allows; None: not known."""
    free = []
    with suppress(OSError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    with suppress(OSError, ValueError, KeyError):
        held = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(held["inactive_file"])
        free.append(int((group / "memory.max").read_text()) - used)
    return min(free, default=None)


def require_room(settings: ExperimentSettings, images: int, feature_size: int, *, resident: bool) -> None:
    """Refuses features that are to stay in memory, or values of so many queries, where they would not fit.

    Args:
      settings: of the experiment.
      images: how many there are.
      feature_size: numbers of each.
      resident: whether all prepared features stay in memory.

    Raises:
      UserError: they take more than is free; the line names the setting that takes less.
    """
    free = free_memory()
    if free is None:
        return
    size = 4 * images * feature_size
    if resident and COPIES * size > free:
        raise UserError(
            f"config.train.resident_megabytes: {settings.train.resident_megabytes} keeps {size >> 20} MB of features "
            f"in memory, which takes {COPIES * size >> 20} MB in all, and {free >> 20} MB are free; write "
            "--config.train.resident_megabytes=0 to read them from their file whenever they are used"
        )
    queries = min(images, settings.evaluation.queries or images)
    values = ROWS * (EVALUATIONS * (len(settings.evaluation.metrics) + 2) + OPEN_SET) * settings.seeds
    if 8 * values * queries > free:
        raise UserError(
            f"config.evaluation.queries: the values of {queries} queries take {8 * values * queries >> 20} MB, and "
            f"{free >> 20} MB are free; write --config.evaluation.queries={max(1, free // (16 * values))}, or fewer"
        )
