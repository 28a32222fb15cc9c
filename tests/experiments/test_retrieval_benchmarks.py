"""The benchmarks of search and evaluation, in small: both sides do the same work, and the checks can fail."""

import json
import sys

import numpy as np
import pytest

from experiments.benchmarks import evaluate, search, timing
from fgis.base import Neighbours


@pytest.fixture
def peers():
    for name in ("faiss", "torch", "pytorch_metric_learning"):
        pytest.importorskip(name, reason="the peers are an extra of their own: pip install -e '.[oracles]'")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(search, "CASES", {"10k_x_10k": (30, 200)})
    monkeypatch.setattr(search, "ROWS", 300)
    monkeypatch.setattr(search, "BLOCK", 128)


def test_both_searches_find_the_same(peers, small, capsys, monkeypatch):
    search.check("10k_x_10k")
    assert "of the rows differ" in capsys.readouterr().out
    monkeypatch.setattr(search, "search", lambda q, g, k: Neighbours(np.zeros((30, 10), int), np.zeros((30, 10))))
    with pytest.raises(SystemExit, match="distances differ"):
        search.check("10k_x_10k")


def test_a_streamed_gallery_is_read_whole(small, tmp_path):
    search.write_gallery(str(tmp_path / "g"))
    found = search.stream(str(tmp_path / "g"))()
    assert found.rows.max() >= 256  # the last block was read
    assert found.rows.max() < 300
    assert (tmp_path / "g").stat().st_size == 300 * 256 * 2


def test_both_evaluations_give_the_same(peers, capsys, monkeypatch):
    evaluate.check(400)
    assert capsys.readouterr().out.count("of the peer") == 4
    monkeypatch.setitem(evaluate.SAME, "recall@1", "r_precision")
    with pytest.raises(SystemExit, match="recall@1: "):
        evaluate.check(400)


def test_what_the_peer_cannot_do_is_ours_alone(monkeypatch):
    measured = []
    found = [timing.Measured(2.0, 500.0), timing.Measured(1.0, 300.0)]
    monkeypatch.setattr(timing, "interleave", lambda sides, n: measured.append(sides) or found)
    row = evaluate.measure("100k_all", 7)
    assert [make for make, _ in measured[0]] == [evaluate.ours, evaluate.limit]
    assert row["over_limit"] == 2
    assert (row["ours_s"], row["ours_mb"], row["peer_s"], row["ratio"], row["peer_mb"]) == (2.0, 500, None, None, None)


@pytest.mark.parametrize(("module", "known"), [(search, "10k_x_10k"), (evaluate, "10k_all")])
def test_an_unknown_case_is_one_line(module, known, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--cases=10m"])
    with pytest.raises(SystemExit) as found:
        module.main()
    assert found.value.code == 2
    (*_, line) = capsys.readouterr().err.splitlines()
    assert "--cases: '10m' is none of" in line
    assert known in line


def test_the_last_line_is_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--cases=10k"])
    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(timing, "apart", lambda *a: None)
    found = [timing.Measured(seconds, 100.0) for seconds in (1.0, 3.0, 0.5)]
    monkeypatch.setattr(timing, "interleave", lambda sides, n: found)
    evaluate.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "evaluate"
    assert (report["rows"][0]["ratio"], report["rows"][0]["over_limit"]) == (3, 2)
