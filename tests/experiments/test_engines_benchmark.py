"""The benchmark of search engines, in small."""

import json
import sys

import pytest

from experiments.benchmarks import engines, timing
from tests.gallery.engines import needs_milvus


@pytest.mark.parametrize("names", ["exact", "exact,flat"])
def test_exact_engines_find_every_neighbour(names, monkeypatch, capsys):
    if "flat" in names:
        needs_milvus()
    monkeypatch.setattr(engines, "QUERIES", 3)
    monkeypatch.setattr(timing, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(sys, "argv", ["engines", "--rows=200", f"--engines={names}"])
    engines.main()
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["engine"] for row in report["rows"]] == names.split(",")
    assert all(row["recall@10"] == 1 and row["rows"] == 200 and "found" not in row for row in report["rows"])


def test_recall_is_the_share_that_was_found():
    wanted = engines.np.arange(20).reshape(2, 10)
    assert engines.recall([[*range(9), 99], [*range(10, 20)]], wanted) == pytest.approx(0.95)


def test_an_unknown_engine_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["engines", "--engines=fast"])
    with pytest.raises(SystemExit):
        engines.main()
    assert "--engines: 'fast' is none of exact, flat" in capsys.readouterr().err.splitlines()[-1]
