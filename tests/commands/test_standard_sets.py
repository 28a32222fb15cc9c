"""The configuration of the standard data sets, on small feature files: trained on one split, searched on the other."""

import json

import numpy as np
import pytest

from fgis.base import FeatureSet
from fgis.features.store import write_features
from fgis.main import main

SHORT = ("--config.features.backbone=", "--config.seeds=1", "--config.train.total_steps=2",
         "--config.head.residual.rank=2", "--config.train.record_every_steps=1",
         "--config.train.checkpoint_every_steps=2",
         "--config.evaluation.resamples=20", "--config.sampler.pk.classes=4")  # fmt: skip


def write(path, points, labels, is_query=None):
    ids = np.array([f"{path.stem}/{row}.jpg" for row in range(len(points))])
    content = FeatureSet(np.array(points, np.float32), np.array(labels), ids, {}, is_query=is_query)
    write_features(path, content)


@pytest.fixture
def features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "features").mkdir()
    write(tmp_path / "features" / "in_shop.train.h5", rng.random((40, 4)), np.repeat(np.arange(10), 4))
    return tmp_path


def run(capsys, *arguments):
    code = main(["--config=metric_learning:in_shop", "--workdir=run", *SHORT, *arguments])
    return code, capsys.readouterr().err


def test_queries_are_searched_in_the_gallery_alone(features, capsys):
    """Two queries of label 0 and one of label 1 and of label 2, which the gallery lacks. Queries are no neighbours.

    The first query has its own label nearest, the second one label 1; the third finds its label.
    """
    points = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1],  # queries
              [9, 1, 0, 0], [0, 5, 1, 1], [0, 0, 9, 1]]  # fmt: skip
    labels, is_query = [0, 0, 1, 2, 0, 1, 1], np.arange(7) < 4
    write(features / "features" / "in_shop.test.h5", points, labels, is_query)
    code, errors = run(capsys)
    assert code == 0, errors
    found = json.loads((features / "run" / "report.json").read_text())["evaluations"]
    assert set(found) == {"closed_set", "transfer"}
    transfer = found["transfer"]
    assert (transfer["queries"], transfer["gallery"], transfer["without_relatives"]) == (4, 3, 1)
    assert transfer["frozen"]["recall@1"]["mean"] == pytest.approx(2 / 3)
    assert transfer["frozen"]["recall@4"]["mean"] == 1
    assert {"trained", "untrained", "difference"} <= set(transfer)


def test_a_missing_split_is_named_before_training(features, capsys):
    code, errors = run(capsys)
    assert code == 2
    assert errors.startswith("fgis: config.evaluation.transfer=features/in_shop.test.h5: ")
    assert errors.count("\n") == 1
    assert not (features / "run" / "checkpoints").exists()
    code = main(["--config=metric_learning:birds"])
    assert code == 2
    assert "no such variant; write cub, cars196, online_products, in_shop" in capsys.readouterr().err
