"""Sides of a benchmark in processes of their own: what is timed, what comes back, and a row with a limit."""

import json
import os

import pytest

from experiments.benchmarks import timing
from experiments.benchmarks.timing import Measured


def make_counter(start):
    count = start

    def run(step=1):
        nonlocal count
        count += step
        return count, os.getpid()

    return run


def test_a_fresh_process_runs_on_every_input_in_turn():
    found = timing.run_fresh(make_counter, (10,), [1, 5])
    assert [count for count, _ in found.results] == [11, 16]  # one process, its state kept
    assert {process for _, process in found.results} != {os.getpid()}
    assert len(found.seconds) == 2
    assert all(0 < seconds < 1 for seconds in found.seconds)
    assert found.megabytes > 5


def test_sides_are_measured_in_processes_of_their_own():
    measured = timing.interleave([(make_counter, (0,)), (make_counter, (5,))], repeats=2)
    assert len(measured) == 2
    assert all(0 < one.seconds < 1 and one.megabytes > 5 for one in measured)


def test_a_row_says_how_far_it_is_from_peer_and_limit():
    row = timing.row("x", Measured(2.0, 100.4), "peer", Measured(3.0, 50.0), limit=Measured(0.5, 10.0), images=7)
    assert row == {
        "case": "x", "ours_s": 2.0, "peer": "peer", "peer_s": 3.0, "ratio": 1.5, "limit_s": 0.5, "over_limit": 4.0,
        "ours_mb": 100, "peer_mb": 50, "images": 7,
    }  # fmt: skip


def test_what_was_not_measured_is_null_and_no_column(capsys):
    timing.report("b", [timing.row("x", Measured(2.0, 100.0), "peer", None)])
    table, *_, last = capsys.readouterr().out.splitlines()
    assert table.split() == ["case", "ours_s", "peer", "ours_mb"]
    row = json.loads(last)["rows"][0]
    assert [key for key, value in row.items() if value is None] == [
        "peer_s", "ratio", "limit_s", "over_limit", "peer_mb",
    ]  # fmt: skip


def make_failing():
    raise SystemExit(3)


def test_a_side_that_fails_ends_the_benchmark():
    with pytest.raises(SystemExit, match="ended with exit code 3"):
        timing.interleave([(make_failing, ())])


def test_instructions_are_left_out_in_what_is_started_later(monkeypatch):
    for name in timing.INSTRUCTIONS["avx2"]:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("XLA_FLAGS", "--a=b")
    timing.use_instructions("all")
    assert os.environ["XLA_FLAGS"] == "--a=b"
    timing.use_instructions("avx2")
    assert os.environ["XLA_FLAGS"] == "--a=b --xla_cpu_max_isa=AVX2"
    assert os.environ["OPENBLAS_CORETYPE"] == "Haswell"
