"""The table of systems on small feature files: what each column is, and what is said of systems without features."""

import json

import numpy as np
import pytest

from experiments import systems
from experiments.rendering import markdown
from experiments.systems import SYSTEMS, System, main, measure
from fgis.base import FeatureSet
from fgis.features.backbones import BACKBONES
from fgis.features.description import Settings, check_settings
from fgis.features.store import load_features, write_features

SHORT = {
    "seeds": 1, "folds": 2, "train.total_steps": 2, "train.record_every_steps": 1, "train.checkpoint_every_steps": 2,
    "sampler.pk.classes": 4, "head.residual.rank": 2,
}  # fmt: skip
FROZEN = System("tiny", "tiny", "efficientnet_lite0", (224, 224), {"folds": 2})
HEAD = System("head on tiny", "tiny", "efficientnet_lite0", (224, 224), SHORT, variant="rigorous")


def write(path, ids, labels, points):
    write_features(path, FeatureSet(np.asarray(points, np.float32), np.asarray(labels), np.array(ids), {}))


@pytest.fixture
def folder(tmp_path):
    """Eight objects of four views in each set of UKBench; four test photos; and three photos of one text query."""
    rng = np.random.default_rng(0)
    objects = rng.random((8, 6))
    views = np.repeat(objects, 4, axis=0) + 0.01 * rng.random((32, 6))
    labels = np.repeat(np.arange(8), 4)
    write(tmp_path / "ukbench.tiny.h5", [f"{i}.jpg" for i in range(32)], labels, views)
    write(tmp_path / "ukbench_transfer.tiny.h5", [f"t{i}.jpg" for i in range(32)], labels, rng.random((32, 6)))
    grocery = [[1, 0], [1, 0.1], [0, 1], [1, 1], [0, 1]]  # the last is a training photo and in no gallery
    ids = ["test/a.jpg", "test/b.jpg", "test/c.jpg", "test/d.jpg", "train/e.jpg"]
    write(tmp_path / "grocerystore.tiny.h5", ids, [0, 0, 1, 1, 1], np.pad(grocery, ((0, 0), (0, 4))))
    photos = np.pad([[1, 0], [1, 0.2], [0, 1], [1, 0.1]], ((0, 0), (0, 4)))
    write(tmp_path / "deep_ranking.tiny.h5", ["q", "p", "n", "other"], [0, 0, 0, 1], photos)
    (tmp_path / "triplets.csv").write_text("q,p,n\nq,n,p\n")
    return tmp_path


def test_frozen_features_by_hand(folder):
    figures, missing = measure(FROZEN, folder, folder / "runs", str(folder / "triplets.csv"))
    assert missing == {}
    assert figures["closed set, N-S"]["mean"] == figures["unseen objects, N-S"]["mean"] == 4
    assert figures["further objects, N-S"]["mean"] < 3
    assert figures["GroceryStore, recall@1"]["mean"] == 0.75  # of a, b and c: d is nearer to b
    assert figures["triplets, precision"]["mean"] == 0.5
    assert figures["triplets, score@30"] == {"mean": 0.0, "triplets": 2}


def test_heads_are_trained_on_the_first_images_alone(folder):
    figures, _ = measure(HEAD, folder, folder / "runs", str(folder / "triplets.csv"))
    assert set(figures) > {column.name for column in systems.COLUMNS} - {"triplets, score@30"}
    trained_on = json.loads((folder / "runs" / "rigorous.tiny" / "trained_on.json").read_text())
    assert trained_on["images"] == 32
    again, _ = measure(HEAD, folder, folder / "runs", str(folder / "triplets.csv"))
    assert again == figures


def test_joined_features_are_those_of_several_files(folder):
    """The second file of these has nothing to tell images by: figures are those of the first alone."""
    triplets = str(folder / "triplets.csv")
    for name in systems.SETS:
        one = load_features(folder / f"{name}.tiny.h5")
        write(folder / f"{name}.same.h5", one.image_ids, one.labels, np.ones((len(one.labels), 3)))
    joined = FROZEN._replace(name="joined", features="tiny+same", backbone="")
    alone = measure(FROZEN, folder, folder / "runs", triplets)
    assert measure(joined, folder, folder / "runs", triplets) == alone
    large = next(one for one in SYSTEMS if one.name == "mobilenet_v2 + lite2, 336 × 448")
    assert systems.command_of(large, "ukbench", "features").count("--mode=extract") == 1  # the other one is bundled
    assert systems.command_of(large, "grocerystore", "features").count(" && ") == 1


def test_answers_are_verified_by_the_images(folder, monkeypatch):
    """Verification that knows the objects finds all views; without images nothing is measured."""
    system = FROZEN._replace(overrides={"folds": 2, "distance": "manhattan"}, verified=True)
    figures, missing = measure(system, folder, folder / "runs", str(folder / "triplets.csv"))
    assert figures == {}
    assert set(missing) == {"ukbench", "ukbench_transfer"}
    sets = {name: {"collection": "ukbench", "images": str(folder)} for name in systems.SETS}
    monkeypatch.setattr(systems, "SETS", sets)
    monkeypatch.setattr(systems, "count_matches", lambda *of: lambda query, answer: 9 * (query // 4 == answer // 4))
    verified, _ = measure(system, folder, folder / "runs", "")
    plain, _ = measure(system._replace(verified=False), folder, folder / "runs", "")
    assert plain["further objects, N-S"]["mean"] < verified["further objects, N-S"]["mean"]
    assert verified["unseen objects, N-S"]["mean"] == 4
    both, _ = measure(FROZEN._replace(verified=True), folder, folder / "runs", "")
    again, _ = measure(FROZEN, folder, folder / "runs", "")
    name = "further objects, N-S, re-ranked"
    assert again[name]["mean"] < both[name]["mean"]  # after the re-ranking of the column


def test_a_share_of_the_rows_trains_their_heads_and_writes_no_table(folder, monkeypatch, capsys):
    monkeypatch.setattr(systems, "SYSTEMS", (FROZEN, HEAD))
    arguments = [f"--features={folder}", f"--workdir={folder}/tables"]
    assert main([*arguments, "--rows=1/2"]) == 0
    assert not (folder / "tables").exists()
    assert main([*arguments, "--rows=2/2"]) == 0
    assert [path.name for path in (folder / "tables" / "systems").iterdir()] == ["rigorous.tiny"]
    assert not list((folder / "tables").glob("*.md"))
    assert "systems: rows 2/2 are there; the same command without --rows" in capsys.readouterr().out


def test_an_earlier_table_fills_what_is_not_measured(folder, monkeypatch, capsys):
    """The first command has no features of GroceryStore, the second none of anything else."""
    other = FROZEN._replace(name="other", features="other")
    monkeypatch.setattr(systems, "SYSTEMS", (FROZEN, other))
    grocery = (folder / "grocerystore.tiny.h5").rename(folder / "later.h5")
    arguments = [f"--features={folder}", f"--triplets={folder / 'triplets.csv'}"]
    assert main([*arguments, f"--workdir={folder}/one"]) == 0
    table = folder / "one" / "systems.all.json"
    first = {row["row"]: row for row in json.loads(table.read_text())["rows"]}
    assert set(first["tiny"]["missing"]) == {"grocerystore"}
    for name in ("ukbench", "ukbench_transfer", "deep_ranking"):
        (folder / f"{name}.tiny.h5").unlink()
    grocery.rename(folder / "grocerystore.tiny.h5")
    assert main([*arguments, "--only=tiny", f"--workdir={folder}/two", f"--earlier={table}"]) == 0
    found = json.loads((folder / "two" / "systems.all.json").read_text())
    rows = {row["row"]: row for row in found["rows"]}
    assert list(rows) == ["chance", "tiny", "other"]
    assert rows["tiny"]["missing"] == {}
    assert rows["tiny"]["figures"].items() > first["tiny"]["figures"].items()
    assert rows["tiny"]["figures"]["GroceryStore, recall@1"]["mean"] == 0.75
    assert rows["other"] == first["other"]
    assert found["earlier"][0]["command"].startswith("python -m experiments.systems")
    assert "did not measure are of `python -m experiments.systems" in (folder / "two" / "systems.all.md").read_text()
    capsys.readouterr()
    (folder / "other.json").write_text("{}")
    assert main([*arguments, f"--earlier={folder / 'other.json'}"]) == 2
    assert "is no table of systems; name a systems.all.json" in capsys.readouterr().err


def test_score_at_30_is_of_the_gallery_of_a_text_query(folder):
    """A triplet with a photo of another text query counts nowhere."""
    image_ids = np.array(["q", "p", "n", "other"])
    one = systems.Embedded(lambda plan: np.zeros((0, 1)), np.array([0, 0, 0, 1]), image_ids, "cosine")
    points = np.array([[1, 0], [1, 0.2], [0, 1], [1, 0.1]], np.float32)
    assert systems.score_within_labels(points, np.array([[0, 1, 2]]), one) == 1
    assert systems.score_within_labels(points, np.array([[0, 2, 1]]), one) == -1
    assert systems.score_within_labels(points, np.array([[0, 1, 3]]), one) == 0  # a photo of another text query


def test_systems_without_features_are_listed_with_their_commands(folder, capsys):
    figures, missing = measure(FROZEN._replace(features="nowhere"), folder, folder / "runs", "")
    assert figures == {}
    assert set(missing) == set(systems.SETS)
    assert missing["grocerystore"] == (
        "python -m fgis.main --config=configs/ukbench.py --mode=extract --config.features.collection=grocerystore "
        "--config.features.images=grocerystore --config.features.backbone=efficientnet_lite0 "
        "'--config.features.image_size=(224,224)' "
        f"--config.features.path={folder}/grocerystore.nowhere.h5"
    )
    assert main(["--only=vgg61"]) == 2
    assert "--only=vgg61: no such system; did you mean 'vgg19'" in capsys.readouterr().err


def test_the_table_shows_what_was_measured(folder, monkeypatch, capsys):
    monkeypatch.setattr(systems, "SYSTEMS", (FROZEN, FROZEN._replace(name="nowhere", features="nowhere")))
    arguments = [f"--features={folder}", f"--triplets={folder}/triplets.csv", f"--workdir={folder}/tables"]
    assert main(arguments) == 0
    saved = json.loads((folder / "tables" / "systems.all.json").read_text())
    text = markdown(saved, systems.page(saved))
    assert text == (folder / "tables" / "systems.all.md").read_text()
    lines = text.splitlines()
    assert any(line.startswith("| tiny") and "4.0000 [4.0000, 4.0000]" in line for line in lines)
    assert any(line.startswith("| chance") and "1.0090" in line for line in lines)
    assert any(line.startswith("| published: Deep Ranking") and "0.857" in line for line in lines)
    assert any(line.startswith("- nowhere, ukbench: `python -m fgis.main") for line in lines)
    assert "systems: tiny: grocerystore: " in capsys.readouterr().err


def test_every_backbone_is_a_row_that_can_be_extracted():
    assert {"", *BACKBONES} == {system.backbone for system in SYSTEMS}
    names = [system.name for system in SYSTEMS]
    assert len(names) == len(set(names))
    known = {system.features for system in SYSTEMS}
    for system in SYSTEMS:
        if not system.backbone:
            assert known.issuperset(system.features.split("+"))
            continue
        check_settings(Settings(system.backbone, system.image_size, weights=system.weights or "imagenet"))
