"""The table of Deep Ranking and VisNet, on small made-up features and copies."""

import json

import numpy as np
import pytest

from experiments import deep_ranking
from experiments.deep_ranking import ROWS, Options, Row
from fgis.base import FeatureSet
from fgis.experiment.config import read_settings
from fgis.features.store import write_features

SOURCE = {"weights": "imagenet", "image_size": (224, 224), "fit": "squash", "pooling": "avg"}


def write(folder, name, network="deep_ranking", seed=0, objects=12):
    """Four images of each object, two objects in each coarse class, with copies of noise."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(objects), 4)
    points = np.abs(rng.normal(size=(objects, 16))[labels] + 0.5 * rng.normal(size=(len(labels), 16)))
    collection = {"triplets": "csv"}.get(name, name)
    source = {**SOURCE, "backbone": "efficientnet_lite0", "collection": collection}
    sides = {"deep_ranking": (57, 29), "visnet": (56, 28)}[network]
    source["shrink"] = {"deep_ranking": "mean", "visnet": "max"}[network]
    copies = {f"pixels_{side}": rng.integers(0, 256, (len(labels), side, side, 3)).astype(np.uint8) for side in sides}
    ids = np.array([f"{row:03}.jpg" for row in range(len(labels))])
    coarse = labels // 2 if name == "grocerystore" else None
    content = FeatureSet(points.astype(np.float32), labels, ids, source, coarse)
    write_features(folder / f"{name}.{network}.h5", content, copies)
    return points


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(deep_ranking, "WIDTH", 8)
    lines = ["000.jpg,001.jpg,004.jpg", "004.jpg,005.jpg,008.jpg", "008.jpg,000.jpg,009.jpg"]
    (tmp_path / "triplets.csv").write_text("\n".join(lines))
    return tmp_path


def run(folder, *more):
    arguments = [f"--features={folder}", f"--triplets={folder / 'triplets.csv'}", f"--workdir={folder}"]
    return deep_ranking.main([*arguments, "--seeds=2", "--heavy_seeds=1", "--steps=2", *more])


@pytest.mark.parametrize("dataset", ["grocerystore", "ukbench"])
def test_every_row_is_a_configuration_that_is_understood(dataset, tmp_path):
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        for images in (dataset, "triplets"):
            read_settings(deep_ranking.config_of(row, images, Options(dataset, tmp_path, "", tmp_path)))


@pytest.mark.slow
def test_visnet_is_trained_on_triplets_by_scorers(folder, capsys):
    write(folder, "grocerystore", "visnet", objects=21)  # 56 images in each run: ranks of two scorers need 52
    write(folder, "triplets", "visnet", seed=1)
    assert run(folder, "--only=VisNet, triplets by scorers; VisNet") == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["row"], row["heads"]) for row in summary["rows"]] == [
        ("VisNet", 3), ("VisNet, triplets by scorers", 3)
    ]  # fmt: skip
    assert all(0 <= row["metrics"]["map@r"]["mean"] <= 1 for row in summary["rows"])
    assert list(summary["comparisons"]) == ["VisNet, triplets by scorers − VisNet"]


@pytest.mark.slow
def test_rows_are_measured_on_unseen_classes_and_on_triplets(folder, capsys, monkeypatch):
    write(folder, "grocerystore")
    points = write(folder, "triplets", seed=1)
    only = "--only=frozen features;single-scale;multi-scale;VisNet"
    for share, there in (("1/2", 2), ("2/2", 3)):  # of four rows, the last of which has no features
        assert run(folder, only, f"--rows={share}") == 0
        assert f"deep_ranking: rows {share} are there; the same command without" in capsys.readouterr().out
        assert len(list((folder / "deep_ranking").glob("*.npz"))) == there
    assert not list(folder.glob("*.md"))
    assert run(folder, only) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["row"]: row for row in summary["rows"]}
    unit = np.sqrt(points) / np.linalg.norm(np.sqrt(points), axis=1, keepdims=True)  # without the copies
    near = lambda i, j: np.sum((unit[i] - unit[j]) ** 2)
    right = [near(0, 1) < near(0, 4), near(4, 5) < near(4, 8), near(8, 0) < near(8, 9)]
    assert rows["frozen features"]["metrics"]["similarity precision"]["mean"] == pytest.approx(np.mean(right))
    assert [rows[name]["heads"] for name in ("frozen features", "single-scale", "multi-scale")] == [1, 6, 3]
    assert rows["VisNet"]["reason"].endswith(f"--config.features.path={folder}/grocerystore.visnet.h5`")
    assert 0 <= rows["multi-scale"]["metrics"]["map@r"]["mean"] <= 1
    text = (folder / "deep_ranking.grocerystore.md").read_text()
    assert "published: Deep Ranking (Wang 2014)" in text
    assert "0.857" in text
    monkeypatch.setattr(deep_ranking, "train_heads", None)  # nothing is trained again
    assert run(folder, only) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == summary["rows"]
    monkeypatch.setattr(deep_ranking, "measure", None)  # nor is anything measured
    assert run(folder, f"{only};multi-scale from whitening", "--kept", "--heavy_seeds=3") == 0
    *shown, last = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["heads"] for row in (*shown, last)] == [1, 6, 3, 0, 0]
    assert {row["row"]: row["reason"] for row in (*shown, last)}["multi-scale from whitening"] == "was not measured"


@pytest.mark.slow
def test_a_seed_alone_is_what_it_is_beside_others(folder):
    write(folder, "grocerystore")
    write(folder, "triplets", seed=1)
    options = Options("grocerystore", folder, str(folder / "triplets.csv"), folder, seeds=2, folds=2, steps=3)
    row = next(row for row in ROWS if row.name == "single-scale")
    both, alone = deep_ranking.measure(row, options, None), deep_ranking.measure(row, options, 1)
    assert alone["map@r"].shape == (1, 48)
    np.testing.assert_array_equal(alone["map@r"][0], both["map@r"][1])
    np.testing.assert_array_equal(alone["similarity precision"], both["similarity precision"][[1, 3]])  # fold by fold


@pytest.mark.slow
def test_the_shallow_paths_of_visnet_and_what_cannot_be_run(folder, capsys):
    for name in ("ukbench", "triplets"):
        write(folder, name, "visnet")
    assert run(folder, "--dataset=ukbench", "--only=VisNet;single-scale, 50% out of class") == 0
    rows = {row["row"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert rows["VisNet"]["heads"] == 3
    assert rows["single-scale, 50% out of class"]["reason"] == "needs coarse labels, and UKBench has none"
    assert run(folder, "--only=nothing") == 2
    assert "no such row; known: frozen features" in capsys.readouterr().err


def test_a_row_is_light_where_no_copies_are_read():
    assert {row.name for row in ROWS if not row.light} == {
        "multi-scale, untrained", "deep path and 57² pixels", "deep path and 29² pixels", "multi-scale",
        "multi-scale, uniform triplets", "multi-scale from whitening", "multi-scale, 4,096 dimensions as published",
        "VisNet, untrained", "VisNet", "VisNet, triplets by scorers",
    }  # fmt: skip
    assert Row("x", {"features.pixels": ()}).light
