"""kill -9 at any time, the same command again: the bits of an undisturbed run."""

import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fgis.learning import checkpoint
from fgis.main import main
from tests.tiny import ROOT, arguments, write_features

# A memory and a learned boundary: everything a train state can hold.
STEPS = (
    "--config.train.total_steps=60", "--config.folds=2", "--config.memory.size=60", "--config.loss.name=margin",
    "--config.loss.margin.margin=0.01", "--config.distance=unit_euclidean",
)  # fmt: skip


def command(features, workdir):
    return [sys.executable, "-m", "fgis.main", *arguments(features, workdir, *STEPS), "--config.train.devices=1"]


def files(workdir):
    return {name: (workdir / name).read_bytes() for name in ("report.json", "metrics.jsonl", "config.json")}


def kill_after(lines, features, workdir, delay):
    """Starts the run and kills it ``delay`` seconds after it has printed so many lines; whether it was still alive."""
    with subprocess.Popen(
        command(features, workdir), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for _ in range(lines):
            process.stdout.readline()
        time.sleep(delay)
        alive = process.poll() is None
        process.kill()
    return alive


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_an_undisturbed_one(tmp_path):
    features = write_features(tmp_path / "tiny.h5")
    subprocess.run(command(features, tmp_path / "calm"), cwd=ROOT, check=True, capture_output=True)
    chance = random.Random(0)
    # While it imports, at its first records, in the middle, and after its last record (30 of them), at the evaluation.
    alive = [kill_after(lines, features, tmp_path / "killed", chance.uniform(0, 0.2)) for lines in (0, 1, 6, 11, 9, 4)]
    assert all(alive)
    done = subprocess.run(command(features, tmp_path / "killed"), cwd=ROOT, check=True, capture_output=True, text=True)
    assert files(tmp_path / "killed") == files(tmp_path / "calm"), done.stdout
    calm, again = (checkpoint.restore_params(tmp_path / name)[1] for name in ("calm", "killed"))
    jax.tree.map(np.testing.assert_array_equal, calm, again)
    assert (calm["learned"]["beta"] != 1.2).any()


def test_a_run_killed_between_its_checkpoint_and_its_report_reports(tmp_path):
    features = write_features(tmp_path / "tiny.h5")
    assert main(arguments(features, tmp_path / "run")) == 0
    whole = files(tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "loss": [0')
    assert main(arguments(features, tmp_path / "run")) == 0
    assert files(tmp_path / "run") == whole
