"""Commands of processes of their own, and signals that reach them at chosen moments."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.tiny import ROOT

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # drawn from; half of them SIGKILL
POLL, LONGEST = 0.001, 240.0  # seconds
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Victim(NamedTuple):
    """A running command, and the files that it prints into."""

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path

    def lines(self, start: str) -> int:
        """How many lines of its output begin with ``start``."""
        return sum(line.startswith(start) for line in self.output.read_text().splitlines())


class Moment(NamedTuple):
    """When a signal is sent: a random time, of at most ``spread`` seconds, after something was seen."""

    name: str
    seen: Callable[[Victim], bool]
    spread: float


class Struck(NamedTuple):
    """What became of a command."""

    moment: str  # "" where it ended before it came
    signal: str
    code: int


def launch(arguments: Sequence[str], logs: Path) -> Victim:
    """Starts a command of fgis."""
    logs.mkdir(parents=True, exist_ok=True)
    output, errors = logs / "output", logs / "errors"
    with output.open("wb") as one, errors.open("wb") as other:
        command = [sys.executable, "-u", "-m", "fgis.main", *map(str, arguments)]
        return Victim(subprocess.Popen(command, cwd=ROOT, stdout=one, stderr=other), output, errors)


def finish(arguments: Sequence[str], logs: Path) -> str:
    """Runs a command undisturbed; returns what it printed."""
    victim = launch(arguments, logs)
    code = victim.process.wait(LONGEST)
    assert code == 0, (code, victim.errors.read_text())
    return victim.output.read_text()


def catches_signals(process: subprocess.Popen[Any]) -> bool:
    """Whether a process has a handler for SIGTERM: before, Python itself has not come to the command."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def strike(arguments: Sequence[str], logs: Path, moment: Moment, number: signal.Signals, rng: random.Random) -> Struck:
    """Starts a command and sends it a signal at a moment; checks how it ends.

    SIGTERM and SIGINT have to end it with 143 and 130 and one line, or come too late and leave a command that ends with
    0 and without a line.
    """
    victim, wait = launch(arguments, logs), rng.uniform(0, moment.spread)
    process, deadline = victim.process, time.monotonic() + LONGEST
    while process.poll() is None and not moment.seen(victim):
        assert time.monotonic() < deadline, f"{moment.name} never came"
        time.sleep(POLL)
    while number != signal.SIGKILL and process.poll() is None and not catches_signals(process):
        time.sleep(POLL)
    if process.poll() is None:
        time.sleep(wait)
    came = process.poll() is None
    if came:
        os.kill(process.pid, number)
    code = process.wait(LONGEST)
    errors = victim.errors.read_text()
    told = (moment.name, number.name, code, errors)
    assert "Traceback" not in errors, told
    if code == 0:
        assert not errors, told
        return Struck("" if not came else moment.name, number.name, code)
    assert came, told
    if number == signal.SIGKILL:
        assert code == -number, told
    else:
        assert code == CODES[number], told
        assert len(errors.splitlines()) == 1, told
        assert errors.startswith(f"fgis: interrupted by {number.name}: "), told
    return Struck(moment.name, number.name, code)


def leftovers(folder: Path) -> list[Path]:
    """Files below a folder that no finished command leaves behind."""
    return [path for path in folder.rglob("*") if path.name.endswith((".partial", ".lock")) or path.name == "lock"]
