"""Features that are read from their file whenever they are used give the figures of features in memory."""

import json

import numpy as np
import pytest
from PIL import Image

from fgis.experiment.config_file import load_config
from fgis.experiment.run import Run
from fgis.gallery.search import SearchOptions, rank_picture
from fgis.main import main
from fgis.retrieval import stored
from fgis.retrieval.stored import StoredVectors
from tests.tiny import arguments, write_features

STREAMED = "--config.train.resident_megabytes=0"
METRICS = "--config.evaluation.metrics=('ns_score','map@r','map','knn@3')"


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features") / "features.h5")


@pytest.fixture(scope="module")
def run(features, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert main(arguments(features, workdir, METRICS, "--config.photo_folds=2")) == 0
    return workdir


@pytest.fixture
def blocks(monkeypatch):
    """Several blocks, and an error where anything reads all rows at once."""
    monkeypatch.setattr(stored, "BLOCK_NUMBERS", 16 * 10)

    def refuse(*_):
        raise AssertionError("all rows were read into memory")

    monkeypatch.setattr(StoredVectors, "__array__", refuse)


def test_a_report_from_the_file_is_that_from_memory(run, features, tmp_path, blocks):
    before = json.loads((run / "report.json").read_text())
    own = (METRICS, "--config.photo_folds=2")
    triplets = tmp_path / "t.csv"
    triplets.write_text("000.jpg,001.jpg,009.jpg\n005.jpg,006.jpg,040.jpg\n")
    assert main(arguments(features, run, *own, "--mode=evaluate", STREAMED, f"--triplets={triplets}")) == 0
    (found,) = (run / "evaluations").glob("*/report.json")
    evaluations = json.loads(found.read_text())["evaluations"]
    assert evaluations.pop("triplets")["queries"] == 2
    assert evaluations == before["evaluations"]


def test_queries_are_limited_in_the_same_gallery(run, features):
    whole = json.loads((run / "report.json").read_text())["evaluations"]
    own = (METRICS, "--config.photo_folds=2", "--config.evaluation.queries=20")
    assert main(arguments(features, run, *own, "--mode=evaluate")) == 0
    some = json.loads((run / "evaluations" / "evaluation.queries=20" / "report.json").read_text())["evaluations"]
    assert set(some) == set(whole)
    for name, evaluation in some.items():
        assert evaluation["queries"] == 20
        assert evaluation["gallery"] == whole[name]["gallery"]
        assert evaluation["without_relatives"] == 0
    one, other = (each["closed_set"]["trained"]["map@r"]["mean"] for each in (some, whole))
    assert one == pytest.approx(other, abs=0.2)
    rows = np.sort(np.random.default_rng(0).permutation(48)[:20])  # those that are drawn: the mean is of these
    opened = Run.open(json.loads((run / "config.json").read_text()), run)
    from fgis.retrieval.evaluate import evaluate, protocol

    labels, marked = opened.rows.labels, np.isin(np.arange(48), rows)
    seeds = [number for number, plan in enumerate(opened.plans) if plan.fold < 0]
    asked = protocol(labels, ("map@r",), queries=marked)
    expected = [evaluate(opened.embed(opened.features, n), labels, asked, ("map@r",))["map@r"].mean() for n in seeds]
    assert one == pytest.approx(np.mean(expected), abs=1e-9)


@pytest.mark.parametrize("head", [False, True], ids=["features", "head"])
@pytest.mark.parametrize("farthest", [False, True], ids=["nearest", "farthest"])
def test_a_search_in_the_file_finds_what_a_search_in_memory_finds(head, farthest, run, features, blocks):
    plain, found = json.loads((run / "config.json").read_text()), []
    for megabytes in (4096, 0):
        plain["train"]["resident_megabytes"] = megabytes
        opened = Run.open(plain, run if head else None)
        if megabytes:
            opened.features = opened.read_prepared(np.arange(48))
        described = lambda image, opened=opened: opened.rows.read(np.array([5]))
        wanted = SearchOptions(k=9, farthest=farthest)
        found.append(rank_picture(opened.search_gallery, described, Image.new("RGB", (1, 1)), wanted))
    one, other = found
    assert one.found.rows.tolist() == other.found.rows.tolist()
    np.testing.assert_allclose(one.found.distances, other.found.distances, atol=1e-6)
    assert (one.nearest, other.nearest) == (pytest.approx(0, abs=1e-6),) * 2


def test_what_does_not_fit_is_said_before_anything_starts(features, tmp_path, monkeypatch, capsys):
    from fgis.experiment import room

    monkeypatch.setattr(room, "free_memory", lambda: 10_000)
    assert main(arguments(features, tmp_path / "run")) == 2
    assert "write --config.train.resident_megabytes=0 to read them" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert main(arguments(features, tmp_path / "run", STREAMED)) == 2
    assert "write --config.evaluation.queries=" in capsys.readouterr().err
    config = load_config("ukbench")
    config.features.path, config.features.backbone = str(features), ""
    opened = Run.open(config)
    monkeypatch.setattr(room, "free_memory", lambda: None)  # not known: nothing is refused
    assert opened.features.shape == (48, 16)
