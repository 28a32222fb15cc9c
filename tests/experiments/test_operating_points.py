"""The table of stated and measured rates, on photos made here."""

import json

import numpy as np
import pytest

from experiments import operating_points
from fgis.base import FeatureSet
from fgis.features.store import write_features


@pytest.fixture
def features(tmp_path):
    """30 classes of 12 images around centres of their own."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 12)
    values = np.abs(rng.normal(size=(30, 16))[labels] + 0.4 * rng.normal(size=(360, 16))).astype(np.float32)
    ids = np.array([f"{row}.jpg" for row in range(360)])
    write_features(tmp_path / "features.h5", FeatureSet(values, labels, ids, {}))
    return tmp_path / "features.h5"


def test_a_gallery_its_new_photos_and_foreign_ones_share_no_image():
    labels = np.repeat(np.arange(30), 12)
    drawn = operating_points.draw(labels, 8, 6, 0)
    assert (len(drawn.gallery), len(drawn.new), len(drawn.foreign)) == (48, 48, 22 * 4)
    assert not {*drawn.gallery} & {*drawn.new}
    assert {*labels[drawn.gallery]} == {*labels[drawn.new]}
    assert not {*labels[drawn.gallery]} & {*labels[drawn.foreign]}


def test_the_command_writes_what_was_stated_and_measured(features, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(operating_points, "CASES", ((8, 6),))
    base = operating_points.base_config
    as_it_is = lambda dataset: {**base(dataset), "features": {**base(dataset)["features"], "backbone": ""}}
    monkeypatch.setattr(operating_points, "base_config", as_it_is)
    command = [f"--features.path={features}", "--galleries=2", f"--workdir={tmp_path}"]
    assert operating_points.main(command) == 0, capsys.readouterr().err
    (row,) = json.loads((tmp_path / "operating_points.grocerystore.json").read_text())["rows"]
    for rate in operating_points.RATES:
        assert row[rate]["stated"] == pytest.approx(row[rate]["measured"], abs=0.2)
    assert row["false_alarms"]["stated"] <= 0.1
    assert "8 × 6" in (tmp_path / "operating_points.grocerystore.md").read_text()


def test_no_gallery_is_one_line(capsys):
    assert operating_points.main(["--galleries=0"]) == 2
    assert capsys.readouterr().err == (
        "operating_points: --galleries: no gallery to draw; write a whole number of at least 1\n"
    )
