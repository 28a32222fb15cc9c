"""Extraction in a process that is killed (SIGKILL), again and again: the file in the end is an undisturbed run's."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from fgis.features.store import load_features

PROGRAM = """
import sys, time
from fgis.features.collection import load_collection
from fgis.features.description import Settings
from fgis.features.extract import extract

images, path, delay = sys.argv[1], sys.argv[2], float(sys.argv[3])
collection = load_collection("folder", images)

def slow(row):
    time.sleep(delay)
    return collection.read(row)

settings = Settings("mobilenet_075", (64, 64), weights="none", batch_size=2)
extract(collection._replace(read=slow), path, settings)
"""


def start(images, path, delay):
    command = [sys.executable, "-c", PROGRAM, str(images), str(path), str(delay)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_killed_at_any_time_it_ends_with_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(11):
        place = tmp_path / "images" / f"{i // 4}" / f"{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 70, 3)).astype(np.uint8)).save(place)
    images, whole, path = tmp_path / "images", tmp_path / "whole.h5", tmp_path / "x.h5"
    undisturbed = start(images, whole, 0)
    partial, sizes = tmp_path / "x.h5.journal.partial", []
    for _ in range(2):  # each time after one more batch at least
        victim = start(images, path, 0.15)
        before, deadline = partial.stat().st_size if partial.exists() else 1000, time.monotonic() + 60
        while not partial.exists() or partial.stat().st_size <= before:
            assert victim.poll() is None, victim.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(victim.pid, signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
        victim.stdout.close()
        assert not path.exists()
        sizes.append(partial.stat().st_size)
    assert sizes[1] > sizes[0]
    last = start(images, path, 0)
    output, _ = last.communicate(timeout=120)
    assert last.returncode == 0, output
    assert "resumed at image" in output
    assert undisturbed.wait(timeout=120) == 0, undisturbed.stdout.read()
    undisturbed.stdout.close()
    assert path.read_bytes() == whole.read_bytes()
    assert load_features(str(path)).features.shape == (11, 768)
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]
