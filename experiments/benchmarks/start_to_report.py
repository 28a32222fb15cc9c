"""``configs/ukbench.py`` from start to report: ``python -m experiments.benchmarks.start_to_report [--repeats=3]``.

Each turn is a process with a new work directory; one that is not timed comes first and fills the compilation cache.
``training_s`` lies between the lines that announce training and evaluation, and holds making the runs; ``before_s`` is
imports and reading, ``after_s`` evaluation, figures and pages. All of the turn that took least.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from experiments.benchmarks import timing

ROOT = Path(__file__).parents[2]
TRAINS, EVALUATES = "preparing", "evaluating"  # what the lines hold that begin a part
COMMAND = (sys.executable, "-m", "fgis.main", "--config=configs/ukbench.py")


class Turn(NamedTuple):
    """Seconds of one run and of its parts."""

    whole: float
    before: float
    training: float
    after: float


def run(command: tuple[str, ...] = COMMAND) -> Turn:
    """One process in a new work directory.

    Raises:
      SystemExit: it failed, or did not print the lines.
    """
    began = time.perf_counter()
    seen: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*command, f"--workdir={folder}/run"]
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            for word in (TRAINS, EVALUATES):
                if word in line:
                    seen.setdefault(word, time.perf_counter())
        code = process.wait()
    ended = time.perf_counter()
    if code or len(seen) < 2:
        raise SystemExit(f"{' '.join(command)} ended with exit code {code}; run it to see why")
    return Turn(ended - began, seen[TRAINS] - began, seen[EVALUATES] - seen[TRAINS], ended - seen[EVALUATES])


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    timing.add_instructions(parser)
    options = parser.parse_args()
    timing.use_instructions(options.instructions)
    run()
    least = min(run() for _ in range(options.repeats))
    row = {"case": "ukbench", "ours_s": least.whole}
    row |= {f"{name}_s": getattr(least, name) for name in ("before", "training", "after")}
    timing.report("start_to_report", [row])


if __name__ == "__main__":
    main()
