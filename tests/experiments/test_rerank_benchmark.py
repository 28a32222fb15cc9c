"""The benchmark of re-rankings in small; it refuses methods that give another result with what is kept."""

import json
import sys

import pytest

from experiments.benchmarks import rerank
from fgis.base import Neighbours
from fgis.retrieval.rerank import RERANKERS


def run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rerank", "--images=120"])
    monkeypatch.setattr(rerank, "DIMENSIONS", 8)
    monkeypatch.setattr(rerank, "REPEATS", 1)
    rerank.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_method_is_timed(monkeypatch, capsys):
    rows = run(monkeypatch, capsys)["rows"]
    assert [row["case"] for row in rows] == list(RERANKERS)
    assert all(row["over_limit"] == pytest.approx(row["ours_s"] / row["limit_s"]) for row in rows)


def test_another_result_is_refused(monkeypatch, capsys):
    def cheat(first):
        rows, distances, tied = first.neighbours
        return Neighbours(rows, distances if first.graph else distances + 1, tied)

    monkeypatch.setattr(rerank, "RERANKERS", {"cheat": cheat})
    with pytest.raises(AssertionError):
        run(monkeypatch, capsys)
