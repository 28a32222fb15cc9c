"""The table of further objects on small made-up features: what heads learn from, and what the columns are."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import further_objects, further_rows
from experiments.further_rows import FEATURES, REFERENCE, ROWS, Row, commands_of, config_of, path_of, write_stacked
from fgis.base import FeatureSet
from fgis.experiment.config import read_settings
from fgis.features.store import load_features, write_features

SHORT = {"train.total_steps": 3, "sampler.pk.classes": 4, "head.residual.rank": 4}


def write(path, seed, objects=8, noise=0.5):
    """Four views of each object."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(objects), 4)
    points = np.abs(rng.normal(size=(objects, 12)).repeat(4, axis=0) + noise * rng.normal(size=(4 * objects, 12)))
    ids = np.array([f"{row:03}.jpg" for row in range(len(labels))])
    write_features(path, FeatureSet(points.astype(np.float32), labels, ids, {"backbone": "tiny"}))
    return str(path)


def test_every_row_is_a_configuration_that_is_understood(tmp_path):
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert ROWS[0].name == REFERENCE
    for row in ROWS:
        assert set(row.features) <= set(FEATURES)
        read_settings(config_of(row, path_of(row, "ukbench", tmp_path), folds=5))
        read_settings(config_of(row, path_of(row, "ukbench_transfer", tmp_path)))
    assert commands_of(ROWS[0], tmp_path) == []  # bundled
    gem, further = commands_of(ROWS[1], tmp_path)
    assert gem.endswith(f"--config.features.pooling=gem --config.features.path={tmp_path}/ukbench.mobilenet_v2_gem.h5")
    assert "--config.features.images=ukbench_transfer" in further


def test_features_of_several_sets_one_after_the_other(tmp_path):
    one, two = write(tmp_path / "a.h5", 0, objects=3), write(tmp_path / "b.h5", 1, objects=2)
    write_stacked(str(tmp_path / "both.h5"), [(one, np.array([0, 4, 5])), (two, None)])
    found = load_features(tmp_path / "both.h5")
    np.testing.assert_array_equal(found.labels, [0, 1, 1, 3, 3, 3, 3, 4, 4, 4, 4])  # the first file goes to 2
    assert found.image_ids[[0, 3]].tolist() == ["1/000.jpg", "2/000.jpg"]
    np.testing.assert_array_equal(found.features[1], load_features(one).features[4])
    np.testing.assert_array_equal(found.features[3:], load_features(two).features)


@pytest.mark.slow
def test_rows_on_unseen_and_on_further_objects(tmp_path, monkeypatch, capsys):
    rows = (Row("mean", ("a", "b"), SHORT), Row("joint", ("a",), SHORT, ("grocerystore",)))
    monkeypatch.setattr(further_objects, "ROWS", rows)
    for number, name in enumerate(("ukbench", "ukbench_transfer", "grocerystore")):
        write(tmp_path / f"{name}.a.h5", number)
        write(tmp_path / f"{name}.b.h5", 9 + number)
    monkeypatch.setattr(further_objects, "FOLDS", 2)
    monkeypatch.setitem(further_rows.FEATURES, "a", {})
    arguments = [f"--features={tmp_path}", f"--workdir={tmp_path}", "--seeds=2", "--fold_seeds=1"]
    assert further_objects.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = {row["row"]: row for row in summary["rows"]}
    assert set(found["mean"]["further"]) == {
        "frozen", "untrained", "trained", "frozen+reranked", "frozen+learnt", "trained+reranked", "trained+learnt",
    }  # fmt: skip
    features = load_features(tmp_path / "ukbench_transfer.a.h5")  # of the row of one file
    unit = np.sqrt(features.features) / np.linalg.norm(np.sqrt(features.features), axis=1, keepdims=True)
    top = np.argsort(-(unit @ unit.T), axis=1)[:, :4]
    expected = (features.labels[top] == features.labels[:, None]).sum(axis=1).mean()
    assert found["joint"]["further"]["frozen"]["ns_score"]["mean"] == pytest.approx(expected)
    assert set(found["joint"]["classes"]) == {"frozen", "alone", "joint"}
    assert "minus_reference" not in found["mean"]
    assert found["joint"]["minus_reference"]["mean"] == pytest.approx(
        found["joint"]["further"]["trained"]["ns_score"]["mean"]
        - found["mean"]["further"]["trained"]["ns_score"]["mean"]
    )
    assert summary["chosen"]["all"]["row"] in found
    kept = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "further_objects").glob("*.npz")}
    assert len(kept) == 14  # 5 stages, and the heads of 9 trainings
    assert further_objects.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_row_that_is_none(capsys):
    assert further_objects.main(["--only=nothing"]) == 2
    assert capsys.readouterr().err.startswith("further_objects: --only=nothing: no such row; known: mean; GeM;")
