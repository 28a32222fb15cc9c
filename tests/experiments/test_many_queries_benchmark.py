"""The benchmark of large evaluations, in small: every case runs and has its limit."""

import json
import sys

import pytest

from experiments.benchmarks import many_queries, timing
from fgis.retrieval.rerank import RERANKERS


@pytest.fixture
def small(monkeypatch):
    for name, value in {"GALLERY": 40, "DIMENSIONS": 8, "DEPTH": 5, "SMALL": 4}.items():
        monkeypatch.setattr(many_queries, name, value)

    def once(make, *arguments):
        make(*arguments)()
        return timing.Measured(2.0 if make is many_queries.searched else 3.0, 100.0)

    monkeypatch.setattr(many_queries, "once", once)


def test_every_case_runs(small, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--queries=12"])
    many_queries.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["case"] for row in rows] == ["bootstrap", "open_set", *RERANKERS]
    assert [row["over_limit"] for row in rows] == [None] * 2 + [1.5] * len(RERANKERS)


def test_an_unknown_case_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", "--cases=boot"])
    with pytest.raises(SystemExit):
        many_queries.main()
    assert "--cases: 'boot' is none of bootstrap" in capsys.readouterr().err
