"""Indexing in a process that is killed (SIGKILL) again and again: what was stored stays, and is never decoded twice."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

from fgis.gallery.scan import scan_folder
from fgis.gallery.store import DATABASE, open_store
from tests.gallery.photos import save
from tests.tiny import ROOT

PROGRAM = """
import sys, time
from pathlib import Path
from fgis.errors import UserError
from fgis.gallery import index
from fgis.gallery.scan import scan_folder
from fgis.gallery.store import open_store, writing
from tests.gallery.photos import SETTINGS, Network

images, gallery, delay = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
decode = index.to_rgb

def slow(image):
    time.sleep(delay)
    return decode(image)

index.to_rgb = slow
try:
    with writing(gallery), open_store(gallery, create=True) as store:
        print("writing", flush=True)
        index.index_folder(scan_folder(images), store, SETTINGS, Network())
except UserError as error:
    sys.exit(str(error))
"""
COUNT, KILLS = 40, 5


def start(images, gallery, delay):
    command = [sys.executable, "-c", PROGRAM, *map(str, (images, gallery, delay))]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def stored(gallery):
    """The ids that are stored, from a database that passes SQLite's own check."""
    if not (gallery / DATABASE).exists():
        return []
    with sqlite3.connect(gallery / DATABASE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with open_store(gallery) as store:
        records, vectors = store.records(), store.vectors()
        assert len(records) == len(vectors) == store.count()
        assert all(store.thumbnail(one.image_id) for one in records)
        return [one.image_id for one in records]


@pytest.mark.slow
def test_killed_at_any_moment_the_gallery_is_whole_and_goes_on_from_there(tmp_path):
    images, gallery, whole = tmp_path / "images", tmp_path / "gallery", tmp_path / "whole"
    for number in range(COUNT):
        save(images / f"{number % 3}" / f"{number}.png", number)
    undisturbed = start(images, whole, 0)
    kept: list[str] = []
    for number in range(KILLS):
        victim = start(images, gallery, 0.05)
        assert victim.stdout.readline() == "writing\n", victim.stderr.read()
        time.sleep(0.03 + 0.06 * number)  # wherever that is: before the first batch, or in the middle of one
        os.kill(victim.pid, signal.SIGKILL)
        victim.communicate()
        now = stored(gallery)
        assert set(kept) <= set(now)
        kept = now
    last = start(images, gallery, 0)
    _, errors = last.communicate(timeout=120)
    assert last.returncode == 0, errors
    assert undisturbed.wait(timeout=120) == 0
    undisturbed.communicate()
    with open_store(gallery) as one, open_store(whole) as other:
        assert one.records() == other.records()
        assert len(one.records()) == COUNT
        np.testing.assert_array_equal(one.vectors(), other.vectors())


@pytest.mark.slow
def test_what_was_stored_before_a_kill_is_not_decoded_again(tmp_path):
    images, gallery = tmp_path / "images", tmp_path / "gallery"
    for number in range(COUNT):
        save(images / f"{number:02}.png", number)
    victim = start(images, gallery, 0.7)
    assert victim.stdout.readline() == "writing\n", victim.stderr.read()
    deadline = time.monotonic() + 60
    while not stored(gallery):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = start(images, gallery, 0)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {victim.pid} on " in errors
    assert errors.count("\n") == 1
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    kept = stored(gallery)
    assert 0 < len(kept) < COUNT
    # Files that are stored may now be damaged: nobody looks at them again while size and time are the same.
    for file in scan_folder(images).files:
        if file.image_id in kept:
            file.path.write_bytes(b"x" * file.bytes)
            os.utime(file.path, ns=(file.modified_ns, file.modified_ns))
    last = start(images, gallery, 0)
    _, errors = last.communicate(timeout=60)
    assert last.returncode == 0, errors
    assert len(stored(gallery)) == COUNT
