"""The page of ``--mode=explore`` is read back; what its arrays mean is tested with ``fgis.report.map_page``."""

import shutil

import numpy as np
import pytest
from PIL import Image

from fgis.experiment import galleries
from fgis.features.store import load_features
from fgis.main import main
from fgis.report import map_points
from fgis.retrieval.folds import object_folds
from fgis.retrieval.search import search
from tests.report.test_map import data_of, unpacked
from tests.tiny import CONFIG, arguments, write_features
from tests.web.galleries import loaded_gallery, scene


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features") / "tiny.h5")


@pytest.fixture
def explore(features, tmp_path, monkeypatch, capsys):
    """Run the command in a fresh directory: exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def explore(*more):
        own = [CONFIG, f"--config.features.path={features}", "--config.features.backbone=", "--mode=explore"]
        code = main([*own, *more])
        return (code, *capsys.readouterr())

    return explore


def test_features_alone_are_shown_without_a_work_directory(explore, features, tmp_path):
    code, output, _ = explore("--notsne")
    assert code == 0
    assert output == "fgis explore\nruns/explore.html: PCA of 48 images by frozen features\n"
    html = (tmp_path / "runs" / "explore.html").read_text()
    data = data_of(html)
    assert "ukbench on own features" in html
    assert data["names"] == [f"{row:03d}.jpg" for row in range(48)]
    assert data["labelNames"] == [f"label {label}" for label in range(12)]
    assert unpacked(data["labels"], "<u2").tolist() == np.repeat(np.arange(12), 4).tolist()
    assert data["atlas"]["sheets"] == []
    (view,) = data["views"]
    assert [layout["name"] for layout in view["layouts"]] == ["PCA"]
    roots = np.sqrt(load_features(features).features)
    expected = search(roots, roots, 8, "cosine", query_rows=np.arange(48))
    assert unpacked(view["rows"], "<u2").reshape(48, 8).tolist() == expected.rows.tolist()
    assert explore("--notsne")[0] == 0
    assert (tmp_path / "runs" / "explore.html").read_text() == html


def test_more_images_than_the_limit_are_a_sample_and_said_to_be(explore, tmp_path):
    _, output, _ = explore("--notsne", "--limit=10")
    words = "A random sample of 10 of 48 images; neighbours are those within the sample."
    assert output.splitlines()[1] == words
    html = (tmp_path / "runs" / "explore.html").read_text()
    data = data_of(html)
    assert words in html
    assert len(set(data["names"])) == 10
    assert data["names"] == sorted(data["names"])
    labels, kept = unpacked(data["labels"], "<u2"), [int(name[:3]) // 4 for name in data["names"]]
    assert [data["labelNames"][label] for label in labels] == [f"label {label}" for label in kept]
    assert unpacked(data["views"][0]["rows"], "<u2").max() == 9
    explore("--notsne", "--limit=10", "--config.seed=1")
    assert data_of((tmp_path / "runs" / "explore.html").read_text())["names"] != data["names"]


def test_tsne_is_left_out_in_one_line_where_it_is_not_possible(explore, monkeypatch):
    monkeypatch.setattr(map_points, "has_tsne", lambda: False)
    code, output, _ = explore()
    assert code == 0
    assert output.splitlines()[-1].startswith("t-SNE left out: openTSNE is not installed; pip install '.[map]'")
    monkeypatch.setattr(map_points, "has_tsne", lambda: True)
    assert explore("--limit=11")[1].splitlines()[-1] == "t-SNE left out: 11 images are too few for it; 12 are needed"


def test_tsne_stands_beside_pca(explore, tmp_path):
    pytest.importorskip("openTSNE", reason="openTSNE is not installed; pip install -e '.[map]'")
    assert explore("--limit=12")[1].splitlines()[-1] == "runs/explore.html: with t-SNE"
    (view,) = data_of((tmp_path / "runs" / "explore.html").read_text())["views"]
    assert [layout["name"] for layout in view["layouts"]] == ["PCA", "t-SNE"]


def test_pictures_are_shown_where_they_are_at_hand(explore, tmp_path):
    for row in (0, 1, 5):
        path = tmp_path / "photos" / f"{row:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 20), (80 * row % 256, 90, 90)).save(path)
    (tmp_path / "photos" / "005.jpg").write_bytes(b"damaged")
    (tmp_path / "list.csv").write_text("".join(f"photos/{row:03d}.jpg,{row // 4}\n" for row in range(3)))
    (tmp_path / "photos" / "list.csv").write_text("000.jpg,0\n001.jpg,0\n005.jpg,1\n")
    collection = ("--config.features.collection=csv", "--config.features.images=photos/list.csv")
    assert explore("--notsne", *collection)[0] == 0
    atlas = data_of((tmp_path / "runs" / "explore.html").read_text())["atlas"]
    tiles = unpacked(atlas["tiles"], "<u2")
    assert tiles[:2].tolist() == [0, 1]
    assert (tiles[2:] == 65535).all()
    assert len(atlas["sheets"]) == 1


def test_a_gallery_has_its_thumbnails_and_images_without_labels(tmp_path, monkeypatch, capsys):
    pictures = {
        "cups/1.png": scene(("red", "blue")),
        "cups/2.png": scene(("red", "navy")),
        "top.png": scene(("lime",) * 2),
    }
    loaded = loaded_gallery(pictures)
    turned = loaded._replace(search=loaded.search._replace(embeddings=loaded.search.features[:, ::-1].copy()))
    gallery = tmp_path / "my photos"
    for content, names in ((loaded, ["frozen features"]), (turned, ["frozen features", "trained head"])):
        monkeypatch.setattr(galleries, "load_gallery", lambda *_, tiled, content=content: content)
        assert main(["--mode=explore", f"--gallery={gallery}"]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("t-SNE left out: ")
        html = (gallery / "explore.html").read_text()
        data = data_of(html)
        assert "my photos on efficientnet_lite0 features" in html
        assert (data["names"], data["labelNames"]) == (sorted(pictures), ["cups"])
        assert unpacked(data["labels"], "<u2").tolist() == [0, 0, 65535]
        assert unpacked(data["atlas"]["tiles"], "<u2").tolist() == [0, 1, 2]
        assert [view["name"] for view in data["views"]] == names
        assert unpacked(data["views"][0]["rows"], "<u2")[[0, 8]].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (("--limit=0",), "--limit=0: a page shows 1 to 20000 images"),
        (("--limit=20001",), "--limit=20001: a page shows 1 to 20000 images"),
        (("--step=3",), "--step=3: of which run?"),
        (("--config.features.images=nowhere",), "config.features.images: no directory nowhere"),
        (("--gallery=nowhere",), "nowhere: no gallery here"),
        (("--workdir=nowhere",), "--workdir: nowhere: no checkpoints here"),
    ],
)
def test_a_mistake_is_one_line(explore, tmp_path, more, line):
    code, _, errors = explore(*more)
    assert code == 2
    assert errors.startswith(f"fgis: {line}")
    assert errors.count("\n") == 1
    assert not list(tmp_path.rglob("explore.html"))


@pytest.mark.slow
def test_heads_are_shown_beside_the_features_and_unseen_objects_are_marked(explore, features, tmp_path):
    workdir = tmp_path / "work"
    short = ("--config.train.total_steps=4", "--config.seeds=1", "--config.evaluation.resamples=5")
    assert main(arguments(features, workdir, *short)) == 0
    assert main(["--mode=explore", "--notsne", f"--workdir={workdir}"]) == 0
    views = data_of((workdir / "explore.html").read_text())["views"]
    names = [view["name"] for view in views]
    assert names == ["frozen features", "head trained without fold 0", "head trained on all objects"]
    assert [bool(view["unseen"]) for view in views] == [False, True, False]
    labels = np.repeat(np.arange(12), 4)
    assert unpacked(views[1]["unseen"], "u1").tolist() == (object_folds(labels, 3, 0) == 0).astype(int).tolist()
    assert len({view["distances"] for view in views}) == 3
    other = write_features(tmp_path / "other.h5", seed=1)
    assert main(["--mode=explore", "--notsne", f"--workdir={workdir}", f"--config.features.path={other}"]) == 0
    views = data_of((workdir / "explore.html").read_text())["views"]
    assert [view["note"] for view in views] == ["as the network gives them", "trained on other images"]
    shutil.rmtree(workdir)
