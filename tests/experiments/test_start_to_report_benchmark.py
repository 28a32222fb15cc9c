"""The parts of a run are told by the lines that it prints."""

import sys

import pytest

from experiments.benchmarks import start_to_report

SCRIPT = "import time, sys; time.sleep(.1); print('4 images; preparing 2 runs', flush=True); time.sleep(.2); {}"


def test_the_parts_of_a_run_add_up():
    found = start_to_report.run(
        (sys.executable, "-c", SCRIPT.format("print('evaluating', flush=True); time.sleep(.1)"))
    )
    assert found.before >= 0.1
    assert found.training >= 0.2
    assert found.after >= 0.1
    assert found.whole == pytest.approx(found.before + found.training + found.after)


def test_a_run_that_fails_ends_the_benchmark():
    with pytest.raises(SystemExit, match="ended with exit code 3; run it"):
        start_to_report.run((sys.executable, "-c", SCRIPT.format("sys.exit(3)")))
