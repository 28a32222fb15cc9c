"""Signals to the indexing of a folder of some hundred pictures.

Each command goes on where the last one was struck; now and then a second one tries to index at once. After every signal
the database has to pass SQLite's own check, nothing that was stored may be missing, and what was stored may not be
decoded again: its files are overwritten with bytes that are no picture.
"""

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fgis.gallery.scan import scan_folder
from fgis.gallery.store import DATABASE, open_store
from tests.faults import victims
from tests.faults.test_index import stored
from tests.faults.victims import Moment, Struck
from tests.gallery.photos import TINY, save

PICTURES, MOST = 240, 6  # images; signals to one gallery, which then is finished


def spoil(images: Path, names: set[str]) -> None:
    """Overwrite files, at the same size and time of modification: whoever reads them again leaves them out."""
    for file in scan_folder(images).files:
        if file.image_id in names:
            file.path.write_bytes(b"x" * file.bytes)
            os.utime(file.path, ns=(file.modified_ns, file.modified_ns))


def command_of(images: Path, gallery: Path) -> list[str]:
    return ["--config=configs/photos.py", "--mode=index", *TINY, f"--images={images}", f"--gallery={gallery}"]


def count_images(gallery: Path) -> int:
    """How many images are stored now, while another process writes."""
    if not (gallery / DATABASE).exists():
        return 0
    try:
        with sqlite3.connect(f"file:{gallery / DATABASE}?mode=ro", uri=True, timeout=0) as connection:
            return int(connection.execute("SELECT count(*) FROM images").fetchone()[0])
    except sqlite3.Error:  # no table yet, or in the middle of a change
        return 0


def moments(gallery: Path, kept: int, rng: random.Random) -> list[Moment]:
    """While it imports, loads the network, describes batches and leaves."""
    more = rng.randint(1, 48)
    described = lambda victim: count_images(gallery) >= min(kept + more, PICTURES)
    return [
        Moment("imports", lambda victim: True, 1.5),
        Moment("loading", lambda victim: victim.lines(f"{PICTURES} images in") > 0, 2.0),
        Moment("batch", described, 0.3),
        Moment("batch", described, 0.05),
        Moment("end", lambda victim: count_images(gallery) == PICTURES, 0.3),
        Moment("exit", lambda victim: victim.lines(f"{PICTURES} images in the gallery") > 0, 0.7),
    ]


def refuse_second(images: Path, gallery: Path, logs: Path) -> None:
    """Indexes in the background until it holds the lock; a second command has to name the first one, or it is done."""
    first = victims.launch(command_of(images, gallery), logs)
    while first.process.poll() is None and not (gallery / DATABASE).exists():
        time.sleep(victims.POLL)
    second = victims.launch(command_of(images, gallery), logs / "second")
    code, errors = second.process.wait(victims.LONGEST), second.errors.read_text()
    if code:
        assert code == 2, (code, errors)
        assert f"process {first.process.pid} on " in errors, errors
    first.process.kill()
    first.process.wait()


def run_kills(place: Path, rng: random.Random) -> Iterator[Struck]:
    """Galleries whose indexing is struck again and again until they are finished, without end; yields each strike."""
    number = 0
    while True:
        images, gallery, whole = (place / f"{name}{number}" for name in ("images", "gallery", "whole"))
        number += 1
        for image in range(PICTURES):
            save(images / f"{image % 3}" / f"{image}.png", image)
        victims.finish(command_of(images, whole), place / "logs")
        kept: set[str] = set()
        for _ in range(MOST):
            moment = rng.choice(moments(gallery, len(kept), rng))
            if rng.random() < 0.2:
                refuse_second(images, gallery, place / "logs")
            struck = victims.strike(
                command_of(images, gallery), place / "logs", moment, rng.choice(victims.SIGNALS), rng
            )
            now = set(stored(gallery)) if count_images(gallery) else set()  # a kill may come before the tables
            assert kept <= now, f"lost: {sorted(kept - now)[:3]}"
            spoil(images, now - kept)
            kept = now
            if struck.moment:
                yield struck
        victims.finish(command_of(images, gallery), place / "logs")
        with open_store(gallery) as one, open_store(whole) as other:
            assert [x.sha256 for x in one.records()] == [x.sha256 for x in other.records()]
            np.testing.assert_array_equal(one.vectors(), other.vectors())
            assert one.bad() == []
