"""Send signals to commands at random moments: ``python -m tests.faults.kills --of=training [--count=100] [--seed=0]``.

``--of`` is ``training``, ``extraction`` or ``indexing``. A command is struck (half of the time SIGKILL, else SIGTERM or
SIGINT) and started again until it is finished; then everything that it wrote has to be what an undisturbed command
writes, bit for bit. SIGTERM and SIGINT have to end a command with 143 and 130 and one line. Ends with a table of the
signals and the moments at which they came, or with the first broken promise.
"""

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults import kills_extraction, kills_indexing, kills_training

KILLS = {
    "training": kills_training.run_kills,
    "extraction": kills_extraction.run_kills,
    "indexing": kills_indexing.run_kills,
}


def main(arguments: list[str]) -> int:
    """Runs the kills; an exception tells of the first broken promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=list(KILLS), required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    began, counts = time.monotonic(), Counter[tuple[str, str, int]]()
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{place}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        kills = KILLS[given.of](Path(place), random.Random(given.seed))
        for struck in itertools.islice(kills, given.count):
            counts[struck] += 1
            print(f"{counts.total()} {struck.moment}: {struck.signal}, code {struck.code}", flush=True)
    for (moment, signal, code), count in sorted(counts.items()):
        print(f"{moment:14} {signal:8} code {code:4}: {count}")
    print(f"{counts.total()} of {given.count} survived; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
