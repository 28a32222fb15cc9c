"""Signals to a training of 30 steps, at every phase: imports, records, checkpoints, evaluation, report, exit."""

import random
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from fgis.learning import checkpoint
from tests.faults import victims
from tests.faults.victims import Moment, Struck, Victim
from tests.tiny import arguments, write_features

TOTAL, MOST = 30, 9  # steps; signals to one run, which then finishes
# A memory and a learned boundary: everything a train state can hold.
OPTIONS = (
    f"--config.train.total_steps={TOTAL}", "--config.folds=2", "--config.memory.size=60", "--config.loss.name=margin",
    "--config.loss.margin.margin=0.01", "--config.distance=unit_euclidean", "--config.train.devices=1",
    "--config.evaluation.transfer=",
)  # fmt: skip
FILES = ("report.json", "report.html", "metrics.jsonl", "config.json", "trained_on.json")


def early_moments(workdir: Path, rng: random.Random) -> list[Moment]:
    """While it imports, prepares, records and saves."""
    records, saves = rng.randint(1, TOTAL // 2), rng.randint(1, 4)
    held: set[str] = set()

    def saving(victim: Victim) -> bool:
        held.update(path.name for path in workdir.glob("checkpoints/*tmp*"))
        return len(held) >= saves

    return [
        Moment("imports", lambda victim: True, 1.5),
        Moment("preparing", lambda victim: victim.lines("48 images") > 0, 1.5),
        Moment("record", lambda victim: victim.lines("step ") >= records, 0.02),
        Moment("checkpoint", saving, 0.15),
        Moment("checkpoint", saving, 0.02),
    ]


def late_moments(workdir: Path) -> list[Moment]:
    """While it evaluates, writes the report and leaves."""
    begun = lambda victim: (workdir / "report.html.partial").exists() or (workdir / "report.html").exists()
    return [
        Moment("evaluation", lambda victim: victim.lines("evaluating") > 0, 1.2),
        Moment("report", begun, 0.01),
        Moment("exit", lambda victim: (workdir / "report.json").exists(), 0.8),
    ]


def run_kills(place: Path, rng: random.Random) -> Iterator[Struck]:
    """Trainings that are struck again and again until they are finished, without end; yields each strike."""
    features = write_features(place / "tiny.h5")
    calm = place / "calm"
    for _ in range(2):  # the second one reads all compiled programs from the cache
        victims.finish(arguments(features, place / "warm", *OPTIONS), place / "logs")
        (place / "warm").rename(calm) if not calm.exists() else None
    number = 0
    while True:
        workdir, number, count = place / f"run{number}", number + 1, 0
        command = arguments(features, workdir, *OPTIONS)
        while count < MOST:
            trained = checkpoint.latest_step(workdir) == TOTAL
            late = rng.random() < (0.75 if trained else 0.2)
            moment = rng.choice(late_moments(workdir) if late else early_moments(workdir, rng)[: 1 if trained else 5])
            struck = victims.strike(command, place / "logs", moment, rng.choice(victims.SIGNALS), rng)
            if (workdir / "report.json").exists():
                assert (workdir / "report.json").read_bytes() == (calm / "report.json").read_bytes()
            if struck.code == 0 and not struck.moment:
                break
            count += 1
            yield struck
        victims.finish(command, place / "logs")
        compare(workdir, calm)
        yield from strike_evaluation(workdir, calm, place / "logs", rng)


def strike_evaluation(workdir: Path, calm: Path, logs: Path, rng: random.Random) -> Iterator[Struck]:
    """The same of ``--mode=evaluate`` on a finished run."""
    command = ["--mode=evaluate", f"--workdir={workdir}"]
    moment = Moment("mode=evaluate", lambda victim: True, 3.5)
    struck = victims.strike(command, logs, moment, rng.choice(victims.SIGNALS), rng)
    victims.finish(command, logs)
    compare(workdir, calm)
    if struck.moment:
        yield struck


def compare(workdir: Path, calm: Path) -> None:
    """Every file and every bit of the parameters."""
    for name in FILES:
        assert (workdir / name).read_bytes() == (calm / name).read_bytes(), name
    assert not victims.leftovers(workdir), victims.leftovers(workdir)
    ours, theirs = (checkpoint.restore_params(one) for one in (workdir, calm))
    assert ours[0] == theirs[0] == TOTAL
    jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])
