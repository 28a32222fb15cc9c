"""Damaged inputs by the thousand: ``python -m tests.faults.fuzz --target=feature_file [--count=10000] [--seed=0]``.

An input is accepted, or refused by a ``UserError`` of one line, which a command ends with after exit code 2. Any other
exception, an end of the interpreter, more than ``SECONDS`` or more than ``MEGABYTES`` beyond what the process had is a
find: it is listed, its input is kept in ``--keep``, and the exit code is 1. Processes of their own run some hundred
inputs each, since HDF5 and decoders may take the interpreter with them. An input is a function of (target, seed,
number): ``--first=NUMBER --count=1`` repeats it.
"""

import argparse
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fgis.errors import UserError

SECONDS, MEGABYTES, BATCH, LONGEST_LINE = 10, 2000, 500, 4000


class Target(NamedTuple):
    """What is fuzzed."""

    prepare: Callable[[Path], Any]  # an empty folder -> what the other two want
    damage: Callable[[Any, random.Random], bytes]  # an input
    check: Callable[[Any, bytes, Path], None]  # reads it; the folder is for its files


def find_targets() -> dict[str, Target]:
    """All targets by name; imported here, since a parent of processes needs none."""
    from tests.faults import fuzz_features, fuzz_galleries, fuzz_lists, fuzz_pictures, fuzz_runs

    return {
        **fuzz_features.TARGETS, **fuzz_galleries.TARGETS, **fuzz_lists.TARGETS, **fuzz_pictures.TARGETS,
        **fuzz_runs.TARGETS,
    }  # fmt: skip


def outcome(target: Target, state: Any, content: bytes, folder: Path) -> str:
    """``accepted``, ``refused``, or the traceback of a find."""
    try:
        target.check(state, content, folder)
    except UserError as error:
        line = str(error)
        wrong = "\n" in line or not line.strip() or len(line) > LONGEST_LINE
        return f"a refusal of another form: {line[:300]!r}" if wrong else "refused"
    except Exception:
        return traceback.format_exc()
    return "accepted"


def run_inputs(name: str, seed: int, numbers: range, folder: Path) -> None:
    """Checks the inputs of some numbers in this process; ``folder/outcomes`` gets a line of JSON for each."""
    target = find_targets()[name]
    (folder / "state").mkdir()
    state = target.prepare(folder / "state")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEGABYTES * 10**6, -1))
    with (folder / "outcomes").open("a") as file:
        for number in numbers:
            content = target.damage(state, random.Random(f"{name} {seed} {number}"))
            (folder / "input").write_bytes(content)
            signal.alarm(SECONDS)  # unhandled: the process ends
            found = outcome(target, state, content, folder)
            signal.alarm(0)
            file.write(json.dumps([number, found]) + "\n")
            file.flush()


def fuzz(name: str, seed: int, first: int, count: int, keep: Path) -> tuple[Counter[str], dict[int, str]]:
    """How many inputs were accepted and refused, and the finds by number."""
    counts, finds, number = Counter[str](), dict[int, str](), first
    while number < first + count:
        batch = range(number, min(number + BATCH, first + count))
        with tempfile.TemporaryDirectory() as place:
            words = ["--target", name, "--seed", seed, "--first", batch.start, "--count", len(batch), "--child", place]
            ended = subprocess.run(
                [sys.executable, "-m", "tests.faults.fuzz", *map(str, words)], stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, check=False,
            )  # fmt: skip
            log = Path(place, "outcomes")
            done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            if ended.returncode and not log.exists():
                raise RuntimeError(ended.stderr.decode(errors="replace"))
            for one, found in done:
                if found in ("accepted", "refused"):
                    counts[found] += 1
                else:
                    finds[one] = found
            number = done[-1][0] + 1 if done else batch.start
            if ended.returncode:  # in the next one
                words_of_end = ended.stderr.decode(errors="replace")[-3000:]
                finds[number] = f"the process ended with {ended.returncode}: {words_of_end}"
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{seed}-{number}").write_bytes(Path(place, "input").read_bytes())
                number += 1
    return counts, finds


def main(arguments: list[str]) -> int:
    """Prints the finds, grouped by where they were raised, and one line of counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "fgis-fuzz"))
    parser.add_argument("--child", type=Path, help="of a process that this one starts")
    given = parser.parse_args(arguments)
    if given.child:
        run_inputs(given.target, given.seed, range(given.first, given.first + given.count), given.child)
        return 0
    if given.target not in (names := find_targets()):
        parser.error(f"--target: {given.target!r}; choose one of {', '.join(names)}")
    began = time.monotonic()
    counts, finds = fuzz(given.target, given.seed, given.first, given.count, given.keep)
    alike: dict[str, list[int]] = {}
    for number, found in finds.items():
        lines = [line.strip() for line in found.strip().splitlines()] or [""]
        places = [line for line in lines if line.startswith("File ") and "/fgis/" in line]
        alike.setdefault(f"{places[-1] if places else ''}: {lines[-1][:200]}", []).append(number)
    for words, numbers in alike.items():
        print(f"FOUND {len(numbers)} x, such as number {numbers[0]}: {words}\n{finds[numbers[0]]}")
    print(f"{given.target}: {counts['accepted']} accepted, {counts['refused']} refused, {len(finds)} finds; "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    return bool(finds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
