"""Kill an indexing process at random moments: ``python -m tests.faults.kills [--count=50] [--seed=0]``.

A folder of some hundred pictures is indexed by processes that are killed (SIGKILL) after a random time, each of which
goes on where the last one was killed; half of the time a second process tries to index at once. After every kill the
database has to pass SQLite's own check, nothing that was stored may be missing, and what was stored may not be decoded
again: its files are overwritten with bytes that are no picture. When a gallery is finished a new one begins. Ends with
the gallery that nobody killed, compared number by number.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from fgis.gallery.scan import scan_folder
from fgis.gallery.store import open_store
from tests.faults.test_index import start, stored
from tests.gallery.photos import save

PICTURES, SLOWER, LONGEST = 120, 0.15, 1.5  # images; seconds that decoding one takes longer, and until a kill


def spoil(images: Path, names: set[str]) -> None:
    """Overwrite files, at the same size and time of modification: whoever reads them again leaves them out."""
    for file in scan_folder(images).files:
        if file.image_id in names:
            file.path.write_bytes(b"x" * file.bytes)
            os.utime(file.path, ns=(file.modified_ns, file.modified_ns))


def kill_once(images: Path, gallery: Path, rng: random.Random, twice: bool) -> str:
    """Start, kill after a random time; "finished" where the process was done before that, else "killed" or "twice"."""
    process = start(images, gallery, SLOWER)
    assert process.stdout.readline() == "writing\n", process.stderr.read()
    time.sleep(rng.uniform(0, LONGEST))
    if twice and process.poll() is None:
        other = start(images, gallery, 0)
        _, errors = other.communicate(timeout=60)
        refused = other.returncode == 1 and f"process {process.pid} on " in errors
        if not refused:  # the first one was done meanwhile
            assert other.returncode == 0, errors
            assert process.wait(timeout=60) == 0
    if process.poll() is not None:
        process.communicate()
        return "finished"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    return "twice" if twice else "killed"


def main() -> int:
    """Run the kills; the exit code is 1 after the first broken promise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, done, galleries, second = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        while done < options.count:
            images, gallery, whole = (Path(place) / f"{name}{galleries}" for name in ("images", "gallery", "whole"))
            for number in range(PICTURES):
                save(images / f"{number % 3}" / f"{number}.png", number)
            undisturbed = start(images, whole, 0)
            undisturbed.communicate(timeout=120)
            kept: set[str] = set()
            while done < options.count and len(kept) < PICTURES:
                what = kill_once(images, gallery, rng, rng.random() < 0.5)
                now = set(stored(gallery))
                assert kept <= now, f"lost: {sorted(kept - now)[:3]}"
                spoil(images, now - kept)
                kept = now
                done, second = done + (what != "finished"), second + (what == "twice")
            last = start(images, gallery, 0)
            _, errors = last.communicate(timeout=120)
            assert last.returncode == 0, errors
            with open_store(gallery) as one, open_store(whole) as other:
                assert [x.sha256 for x in one.records()] == [x.sha256 for x in other.records()]
                np.testing.assert_array_equal(one.vectors(), other.vectors())
            galleries += 1
            print(f"{done} kills, {second} with a second process, {galleries} galleries: all whole", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
