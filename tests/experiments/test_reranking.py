"""The table of re-rankings, on small features: what it prints, and that parameters come from other objects."""

import json

import numpy as np
import pytest

from experiments import reranking
from fgis.ranges import hyperparameters
from fgis.retrieval.rerank import RERANKERS
from fgis.retrieval.selection import choose_on_other_folds
from tests.tiny import write_features

SMALL = {
    "database_augmentation": {"k": (1, 3), "alpha": (3.0,)},
    "local_scaling": {"k": (2,)},
}


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(reranking, "GRID", SMALL)
    monkeypatch.setattr(reranking, "RESAMPLES", 50)
    features = write_features(tmp_path / "features.h5")
    return ["--dataset=ukbench", "--folds=3", f"--workdir={tmp_path}", f"--features.path={features}"]


def test_the_grid_holds_every_method_and_parameters_that_it_knows():
    assert set(reranking.GRID) == set(RERANKERS)
    for name, grid in reranking.GRID.items():
        assert set(grid) <= set(hyperparameters(RERANKERS[name]))


def test_a_table_is_printed_and_written_in_three_formats(small, tmp_path, capsys):
    assert reranking.main(small) == 0
    printed = capsys.readouterr().out
    summary = json.loads(printed.splitlines()[-1])
    assert [row["row"] for row in summary["rows"]] == [reranking.NONE, *SMALL, reranking.ANY]
    for ending in ("md", "tex", "json"):
        text = (tmp_path / f"reranking.ukbench.{ending}").read_text()
        assert "local scaling" in text or ending == "json"
    none, augmented, *_ = summary["rows"]
    low, high = augmented["metrics"]["ns_score"]["ci95"]
    assert low <= augmented["metrics"]["ns_score"]["mean"] <= high
    gained = augmented["metrics"]["ns_score"]["mean"] - none["metrics"]["ns_score"]["mean"]
    assert augmented["metrics"]["ns_score"]["minus_none"]["mean"] == pytest.approx(gained)
    assert set(augmented["chosen"]) == {"0", "1", "2"}
    assert (
        augmented["metrics"]["ns_score"]["minus_none"]["p"] <= augmented["metrics"]["ns_score"]["minus_none"]["p_holm"]
    )
    assert "minus_none" not in none["metrics"]["ns_score"]


def test_a_fold_is_scored_with_what_is_best_on_the_others():
    """Parameters that are good on a fold alone must not be chosen for it."""
    folds = np.array([0, 0, 1, 1, 2, 2])
    values = {"a": np.array([9.0, 9, 0, 0, 1, 1]), "b": np.array([0.0, 0, 2, 2, 2, 2])}
    found, chosen = choose_on_other_folds(values, folds)
    assert chosen == {0: "b", 1: "a", 2: "a"}
    assert found.tolist() == [0, 0, 0, 0, 1, 1]


def test_missing_features_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert reranking.main(["--dataset=grocerystore"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--mode=extract" in error
