"""The benchmark of accelerators runs whole on tiny sizes, says that they were, and refuses a CPU."""

import json
import os
import subprocess
import sys

import pytest

from experiments.benchmarks import accelerator
from tests.tiny import ROOT


def start(*words):
    command = [sys.executable, "-m", "experiments.benchmarks.accelerator", *words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)


@pytest.mark.slow
def test_a_cpu_is_refused_in_one_line(tmp_path):
    done = start(f"--out={tmp_path / 'x.json'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
def test_every_part_runs_on_tiny_sizes_which_the_file_says(tmp_path):
    out = tmp_path / "x.json"
    accelerator.measure(list(accelerator.PARTS), accelerator.SMALL, out)
    found = json.loads(out.read_text())
    assert (found["benchmark"], found["small"], found["backend"]) == ("accelerator", True, "cpu")
    assert list(found["parts"]) == list(accelerator.PARTS)
    for name, part in found["parts"].items():
        assert part["rows"], name
        for row in part["rows"]:
            assert all(value > 0 for key, value in row.items() if key.endswith(("seconds", "second", "share"))), row
    for row in found["parts"]["parity"]["rows"]:
        assert row["first_loss"] < 1e-5
        assert row["first_gradient"] < 1e-5
