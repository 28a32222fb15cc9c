"""Searching with pictures made here, by a network with random weights: the same picture must have the same features."""

import json
import os
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from fgis.features.store import load_features
from fgis.gallery import search as search_gallery
from fgis.learning import checkpoint
from fgis.main import main
from fgis.retrieval import open_set
from fgis.retrieval.operating_point import choose_operating_point
from fgis.retrieval.rerank import RERANKERS, FirstSearch
from fgis.retrieval.search import prepare_gallery, search
from tests.tiny import CONFIG, ROOT, write_features

pytestmark = pytest.mark.slow  # each builds a network and compiles it for its own size
SIZE = (80, 60)
QUICK = (
    "--config.train.total_steps=4", "--config.train.record_every_steps=2", "--config.train.checkpoint_every_steps=2",
    "--config.evaluation.resamples=20", "--config.seeds=2", "--config.folds=2", "--config.head.residual.rank=4",
    "--config.sampler.pk.classes=3", "--config.optimizer.adam.learning_rate=0.05",
)  # fmt: skip


def photo(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos of five objects, two of each, row 2 i + j being object i, view j; ``one``: a single object."""
    place = tmp_path_factory.mktemp("place")
    for row in range(10):
        path = place / "photos" / f"object{row // 2}" / f"{row % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(row).save(path)
    shutil.copytree(place / "photos" / "object3", place / "one" / "object3")
    for name in ("photos", "one"):
        assert main(command(place, "--mode=extract", name=name)) == 0
    return place


def command(place, *more, name="photos"):
    return [
        CONFIG, f"--config.features.path={place / name}.h5", "--config.features.collection=folder",
        f"--config.features.images={place / name}", "--config.features.weights=none",
        "--config.features.image_size=(64,64)", *more,
    ]  # fmt: skip


@pytest.fixture
def ask(place, tmp_path, monkeypatch, capfd):
    """Search in a fresh directory; the JSON document, or exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()

    def ask(image, *more, raw=False, name="photos"):
        code = main(command(place, "--mode=search", f"--image={image}", *more, *([] if raw else ["--json"]), name=name))
        output, errors = capfd.readouterr()
        return (code, output, errors) if raw or code else json.loads(output)

    return ask


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "work"
    assert main(command(place, f"--workdir={workdir}", *QUICK)) == 0
    return workdir


def prepared(place, rows=slice(None)):
    """Square roots of unit length, as config.inputs has them."""
    roots = np.sqrt(load_features(str(place / "photos.h5")).features[rows].astype(np.float64))
    return roots / np.linalg.norm(roots, axis=1, keepdims=True)


def cosine(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return 1 - a @ b.T


def listed(document):
    return [(int(r["image_id"][6]) * 2 + int(r["image_id"][8]), r["distance"]) for r in document["results"]]


def test_an_image_of_the_gallery_finds_itself_and_the_others_in_order(place, ask):
    found = ask(place / "photos" / "object3" / "1.png", "--k=5")
    expected = cosine(prepared(place, [7]), prepared(place))[0]
    order = np.argsort(expected)
    assert [row for row, _ in listed(found)] == order[:5].tolist()
    np.testing.assert_allclose([d for _, d in listed(found)], expected[order[:5]], atol=2e-6)
    assert order[0] == 7
    assert found["results"][0]["distance"] < 1e-6
    assert [r["rank"] for r in found["results"]] == [1, 2, 3, 4, 5]
    assert [r["label"] for r in found["results"]] == (order[:5] // 2).tolist()
    assert found["query"] == str(place / "photos" / "object3" / "1.png")
    assert set(found) == {
        "query", "known", "verdict", "nearest", "threshold", "limit", "detection", "false_alarms", "missed", "results",
        "milliseconds",
    }  # fmt: skip
    assert list(found["milliseconds"]) == ["decode", "describe", "embed", "search"]
    assert all(value > 0 for value in found["milliseconds"].values())


def test_the_operating_point_comes_from_the_gallery_where_no_run_has_saved_one(place, ask):
    found = ask(place / "photos" / "object0" / "0.png")
    distances = cosine(prepared(place), prepared(place))
    known = np.where(np.eye(10, dtype=bool), np.inf, distances).min(axis=1)
    unknown = np.where(np.arange(10)[:, None] // 2 == np.arange(10) // 2, np.inf, distances).min(axis=1)
    expected = choose_operating_point(known[None], unknown[None], np.arange(10) // 2)
    for name in ("threshold", "limit", "detection", "false_alarms", "missed"):
        assert found[name] == pytest.approx(getattr(expected, name), abs=1e-5)
    assert (found["known"], found["verdict"]) == (True, "known")


def test_the_operating_point_of_a_large_gallery_comes_from_a_seeded_part_of_it(monkeypatch):
    searched = []
    nearest = open_set.nearest_known_and_unknown
    spy = lambda embeddings, labels, rows, *more: searched.append(rows) or nearest(embeddings, labels, rows, *more)
    monkeypatch.setattr(open_set, "nearest_known_and_unknown", spy)
    monkeypatch.setattr(search_gallery, "SAMPLED", 20)
    embeddings = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    one, two, _ = (
        search_gallery.compute_operating_point(embeddings, np.arange(60) // 2, "cosine", seed) for seed in (0, 0, 1)
    )
    assert one == two
    assert [len(set(rows)) for rows in searched] == [20] * 3
    assert set(searched[0]) != set(searched[2])


def test_the_terminal_shows_a_table_and_where_the_files_lie(place, ask, tmp_path):
    code, output, errors = ask(place / "photos" / "object3" / "1.png", "--k=3", raw=True)
    assert code == 0
    assert errors == ""
    assert "the gallery has images like this: nearest at 0.0000, threshold" in output
    assert re.search(r"^1 +object3/1\.png +object3 +0\.0000$", output, re.MULTILINE)
    page = (tmp_path / "runs" / "search" / "1.html").read_text()
    assert "runs/search/1.html\nruns/search/1.png\n" in output
    assert page.count("data:image/jpeg") == 4
    assert Image.open(tmp_path / "runs" / "search" / "1.png").size[0] > 800


def test_without_the_gallerys_images_there_are_names_and_no_montage(place, ask, tmp_path):
    ask(place / "photos" / "object3" / "1.png", "--config.features.images=")
    assert [path.name for path in (tmp_path / "runs" / "search").iterdir()] == ["1.html"]
    page = (tmp_path / "runs" / "search" / "1.html").read_text()
    assert page.count("data:image/jpeg") == 1
    assert "object0/0.png" in page


def test_a_gallery_image_that_was_lost_or_damaged_since_is_a_name(place, ask, tmp_path):
    shutil.copytree(place / "photos", tmp_path / "now")
    (tmp_path / "now" / "object3" / "1.png").write_bytes(b"damaged")
    (tmp_path / "now" / "object3" / "0.png").unlink()
    found = ask(place / "photos" / "object3" / "1.png", f"--config.features.images={tmp_path / 'now'}")
    assert listed(found)[0][0] == 7
    assert (tmp_path / "runs" / "search" / "1.html").read_text().count("data:image/jpeg") == 1 + 10 - 2


def test_k_larger_than_the_gallery_lists_all_of_it(place, ask):
    assert sorted(row for row, _ in listed(ask(place / "photos" / "object1" / "0.png", "--k=1000"))) == list(range(10))


def test_the_farthest_come_first_and_the_verdict_stays(place, ask):
    image = place / "photos" / "object1" / "0.png"
    nearest, farthest = ask(image, "--k=10"), ask(image, "--k=3", "--farthest")
    assert [row for row, _ in listed(farthest)] == [row for row, _ in listed(nearest)][:-4:-1]
    np.testing.assert_allclose([d for _, d in listed(farthest)], [d for _, d in listed(nearest)][:-4:-1], atol=2e-6)
    assert (farthest["known"], farthest["threshold"]) == (nearest["known"], nearest["threshold"])


def test_the_farthest_ties_go_to_the_lowest_row():
    embeddings = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [-1, 0]], np.float32)
    gallery = search_gallery.SearchGallery(
        embeddings=embeddings,
        prepared=prepare_gallery(embeddings),
        features=embeddings,
        judging=prepare_gallery(embeddings),
        labels=np.arange(5),
        image_ids=np.array(list("abcde")),
        prepare=lambda features: features,
        embed=lambda features: features,
        point=None,
        words="",
    )
    options = search_gallery.SearchOptions(k=4, farthest=True)
    ranking = search_gallery.rank_picture(gallery, lambda image: np.array([[2, 0]], np.float32), photo(0), options)
    assert ranking.found.rows.tolist() == [2, 4, 1, 3]
    np.testing.assert_allclose(ranking.found.distances, [2, 2, 1, 1], atol=1e-6)
    assert ranking.nearest == 0
    np.testing.assert_allclose(ranking.judged, [2, 2, 1, 1], atol=1e-6)


@pytest.mark.parametrize("name", ["database_augmentation", "local_scaling"])
def test_reranking_orders_again_and_leaves_the_verdict_to_the_first_search(name, place, ask, tmp_path):
    image = place / "photos" / "object2" / "1.png"
    plain, found = ask(image, "--k=4"), ask(image, "--k=4", f"--rerank={name}", f"--config.rerank.{name}.k=3")
    vectors, rows = prepared(place).astype(np.float32), np.arange(10)
    first = FirstSearch(vectors[[5]], vectors, rows, "cosine", search(vectors[[5]], vectors, 4))
    expected = RERANKERS[name](first, k=3)
    assert [row for row, _ in listed(found)] == expected.rows[0].tolist()
    np.testing.assert_allclose([d for _, d in listed(found)], expected.distances[0], atol=1e-4)
    assert (found["known"], found["threshold"]) == (plain["known"], plain["threshold"])
    page = (tmp_path / "runs" / "search" / "1.html").read_text()
    assert f"re-ranked by {name.replace('_', ' ')}" in page
    assert "nearest at 0.0000" in page
    assert 'class="tile good"' in page  # judged by features, whatever the order


def test_a_gallery_of_one_object_has_no_threshold(place, ask, tmp_path):
    found = ask(place / "photos" / "object1" / "0.png", name="one")
    assert (found["verdict"], found["threshold"], len(found["results"])) == ("uncertain", None, 2)
    assert "holds one object" in (tmp_path / "runs" / "search" / "0.html").read_text()


def test_the_head_of_the_run_that_has_seen_all_objects_embeds_both_sides(place, ask, run):
    found = ask(place / "photos" / "object4" / "0.png", f"--workdir={run}", "--k=10", "--use_head=always", *QUICK)
    _, params, _ = checkpoint.restore_params(run)
    x = prepared(place)
    embedded = []
    for r in (0, 1):  # seeds 0 and 1 of all objects
        down, up = (np.float64(params["params"][name]["kernel"][r]) for name in ("down", "up"))
        centred = x - params["constants"]["center"][r]
        embedded.append(centred + centred @ down @ up)
    expected, other = (cosine(e[[8]], e)[0] for e in embedded)
    order = np.argsort(expected)
    assert [row for row, _ in listed(found)] == order.tolist()
    np.testing.assert_allclose([d for _, d in listed(found)], expected[order], atol=5e-4)  # float16 in the file
    assert np.abs(other - expected).max() > 1e-2  # so it could have been told
    assert np.abs(cosine(x[[8]], x)[0] - expected).max() > 1e-2
    assert {path.name for path in (run / "search").iterdir()} == {"0.html", "0.png"}
    assert f"the head of {run} at step 4" in (run / "search" / "0.html").read_text()


def test_a_head_that_is_not_shown_to_help_is_left_out_unless_it_is_forced(place, ask, run, tmp_path):
    image, workdir = place / "photos" / "object4" / "0.png", shutil.copytree(run, tmp_path / "run")
    report = json.loads((workdir / "report.json").read_text())
    metric = next(iter(report["evaluations"]["unseen_objects"]["difference"]))
    frozen = cosine(prepared(place, [8]), prepared(place))[0]

    def distances(mean, *more):
        report["evaluations"]["unseen_objects"]["difference"][metric] = {"mean": mean, "ci95": [mean - 1, mean + 1]}
        (workdir / "report.json").write_text(json.dumps(report))
        return [d for _, d in listed(ask(image, f"--workdir={workdir}", "--k=10", *QUICK, *more))]

    np.testing.assert_allclose(distances(0.5), np.sort(frozen), atol=2e-6)
    words = f"the report of {workdir} does not show that its head helps; --use_head=always uses it"
    errors = ask(image, f"--workdir={workdir}", *QUICK, raw=True)[2]
    assert errors == f"fgis: ranked by the features as they are: {words}\n"
    assert words in (workdir / "search" / "0.html").read_text()
    by_head = distances(2)
    assert np.abs(by_head - np.sort(frozen)).max() > 1e-2
    assert distances(0.5, "--use_head=always") == by_head
    np.testing.assert_allclose(distances(2, "--use_head=never"), np.sort(frozen), atol=2e-6)


POINT = {
    "version": 2, "distance": "cosine", "threshold": 1e-5, "limit": 2e-5, "detection": 0.9, "false_alarms": 0.1,
    "missed": 0.05,
}  # fmt: skip


def test_the_saved_operating_point_decides_where_it_is_of_the_same_distance(place, ask, run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    photo(99).save(tmp_path / "new.png")

    def found(**changes):
        (workdir / "operating_point.json").write_text(json.dumps({**POINT, **changes}))
        return ask(tmp_path / "new.png", f"--workdir={workdir}", *QUICK)

    absent = found()
    assert (absent["threshold"], absent["known"], absent["verdict"]) == (1e-5, False, "absent")
    assert "othing like this in the gallery: nearest at" in (workdir / "search" / "new.html").read_text()
    assert found(limit=1.9)["verdict"] == "uncertain"
    assert "ot sure: the nearest is object" in (workdir / "search" / "new.html").read_text()
    assert found(threshold=1.9, limit=None)["verdict"] == "known"
    computed = [
        found(**changes)["threshold"] for changes in ({"distance": "euclidean"}, {"version": 1}, {"threshold": "near"})
    ]
    assert computed[0] != 1e-5
    assert computed == [computed[0]] * 3


def test_a_saved_operating_point_is_not_of_another_gallery(place, ask, run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    (workdir / "operating_point.json").write_text(json.dumps(POINT))
    shutil.copy(place / "photos.h5", tmp_path / "other.h5")
    image, more = place / "photos" / "object0" / "0.png", (f"--workdir={workdir}", *QUICK)
    assert ask(image, *more)["threshold"] == 1e-5
    other = f"--config.features.path={tmp_path / 'other.h5'}"
    assert ask(image, *more, other)["threshold"] == 1e-5  # the same images
    with h5py.File(tmp_path / "other.h5", "r+") as file:
        file["labels"][0] = 4
    assert ask(image, *more, other)["threshold"] != 1e-5


def turned(image: Image.Image, path) -> None:
    """Save the image turned by 90 degrees, with the EXIF tag that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def test_a_folder_is_a_list_and_odd_images_are_what_they_show(place, ask, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    grey = photo(3).convert("L")
    photo(0).convert("RGBA").save(odd / "a_rgba.png")
    turned(photo(1), odd / "b_turned.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(odd / "c_16bit.png")
    photo(2).convert("CMYK").save(odd / "d_cmyk.jpg")
    photo(4).convert("P").save(odd / "e_animated.gif", save_all=True, append_images=[photo(5).convert("P")] * 2)
    photo(4).convert("P").save(odd / "f_still.gif")
    Image.new("RGB", (1, 1), (9, 99, 200)).save(odd / "g_pixel.png")
    grey.convert("RGB").save(odd / "h_grey.png")
    (odd / "i_truncated.png").write_bytes((place / "photos" / "object0" / "0.png").read_bytes()[:900])
    (odd / "j_note.txt").write_text("no image")
    (odd / ".k_hidden.png").write_bytes(b"no image")
    (odd / "l_empty.jpg").write_bytes(b"")
    code, output, errors = ask(odd, "--k=10", "--json", raw=True)
    assert code == 0
    found = {document["query"].removeprefix(f"{odd}/"): document for document in json.loads(output)}
    names = ["a_rgba.png", "b_turned.png", "c_16bit.png", "d_cmyk.jpg", "e_animated.gif", "f_still.gif", "g_pixel.png"]
    assert list(found) == [*names, "h_grey.png"]
    assert [line.split(":")[2].split("/")[-1] for line in errors.splitlines()] == ["i_truncated.png", "l_empty.jpg"]
    assert all(line.startswith("fgis: left out: --image=") for line in errors.splitlines())
    for name, row in (("a_rgba.png", 0), ("b_turned.png", 1)):
        assert listed(found[name])[0][0] == row
        assert listed(found[name])[0][1] < 1e-6
    assert listed(found["c_16bit.png"]) == listed(found["h_grey.png"])
    assert listed(found["e_animated.gif"]) == listed(found["f_still.gif"])
    assert len(listed(found["d_cmyk.jpg"])) == len(listed(found["g_pixel.png"])) == 10
    assert len(list((tmp_path / "runs" / "search").glob("*.html"))) == 8


def test_a_crop_is_of_the_upright_picture(place, ask, tmp_path):
    scene = Image.new("RGB", (200, 120), "white")
    scene.paste(photo(6), (110, 20))
    turned(scene, tmp_path / "scene.png")
    found = ask(tmp_path / "scene.png", "--crop=110, 20,80,60", "--k=1")
    assert listed(found)[0][0] == 6
    assert listed(found)[0][1] < 1e-6
    assert listed(ask(tmp_path / "scene.png", "--k=1"))[0][1] > 1e-3
    assert ask(tmp_path / "scene.png", "--crop=0,0,200,120")["results"]  # all of it
    code, _, errors = ask(tmp_path / "scene.png", "--crop=121,20,80,60")
    assert code == 2
    assert "is not within the picture, which is 200 x 120 pixels upright" in errors


@pytest.mark.parametrize(
    ("image", "more", "line"),
    [
        ("", (), "--image: missing"),
        ("nope.png", (), "--image=nope.png: no such file"),
        ("truncated.png", (), "--image=truncated.png: cannot be decoded"),
        ("text.jpg", (), "--image=text.jpg: cannot be decoded"),
        ("float.tif", (), "--image=float.tif: cannot be decoded (floating-point pixels"),
        ("empty", (), "--image=empty: no image in this folder"),
        ("good.png", ("--k=0",), "--k=0: nothing to list"),
        ("good.png", ("--k=-3",), "--k=-3: nothing to list"),
        ("good.png", ("--k=few",), "flag --k=few"),
        ("good.png", ("--rerank=local_scalin",), "--rerank=local_scalin: no such method; did you mean 'local_scaling'"),
        ("good.png", ("--rerank=local_scaling", "--farthest"), "--farthest: does not go with --rerank=local_scaling"),
        ("good.png", ("--crop=1,2,3",), "--crop=1,2,3: not x,y,w,h"),
        ("good.png", ("--crop=-1,0,3,3",), "--crop=-1,0,3,3: not x,y,w,h"),
        ("good.png", ("--crop=0,0,3,0",), "--crop=0,0,3,0: not x,y,w,h"),
        (
            "good.png",
            ("--crop=0,1,80,60",),
            "--crop=0,1,80,60: good.png: the box 0,1,80,60 is not",
        ),
        ("good.png", ("--crop=1,0,80,60",), "--crop=1,0,80,60: good.png: the box"),
        ("good.png", ("--step=3",), "--step=3: of which run?"),
        ("good.png", ("--config.features.path=nope.h5",), "config.features.path=nope.h5: no such file"),
        ("good.png", ("--config.features.backbone=",), "config.features.backbone: empty"),
        ("good.png", ("--workdir=nowhere",), "--workdir: nowhere: no checkpoints here"),
        ("good.png", ("--config.features.images=nowhere",), "config.features.images: no directory nowhere"),
        ("good.png", ("--mode=evaluate",), "--image: --mode=evaluate does not read it"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(image, more, line, ask, tmp_path):
    photo(0).save(tmp_path / "good.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "good.png").read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "empty").mkdir()
    code, output, errors = ask(image, *more, raw=True)
    assert code == 2
    assert output in ("", "fgis search\n", "fgis search: nowhere\n")
    assert errors.startswith(f"fgis: {line}")
    assert errors.count("\n") == 1
    assert not list(tmp_path.glob("runs/search/*"))


def test_a_folder_without_a_usable_image_names_each(ask, tmp_path):
    (tmp_path / "bad").mkdir()
    for name in ("b.png", "a.jpg"):
        (tmp_path / "bad" / name).write_text("no image")
    code, output, errors = ask("bad", raw=True)
    assert (code, output) == (2, "fgis search\n")
    lines = errors.splitlines()
    assert [line.split(": ")[2] for line in lines[:2]] == ["--image=bad/a.jpg", "--image=bad/b.png"]
    assert lines[2] == "fgis: --image=bad: none of 2 pictures can be used; repair one"


def test_a_run_of_another_configuration_is_refused(place, ask, run):
    image = place / "photos" / "object0" / "0.png"
    code, _, errors = ask(image, f"--workdir={run}", *QUICK, "--config.distance=euclidean", raw=True)
    assert code == 2
    assert "config.distance: 'euclidean' here, but" in errors


def test_a_gallery_of_other_weights_or_another_shape_is_refused(place, ask, tmp_path):
    image = place / "photos" / "object0" / "0.png"
    shutil.copy(place / "photos.h5", tmp_path / "other.h5")
    with h5py.File(tmp_path / "other.h5", "a") as file:
        file.attrs["weights_sha256"] = "0" * 64
    code, _, errors = ask(image, f"--config.features.path={tmp_path / 'other.h5'}", raw=True)
    assert code == 2
    assert "config.features.weights: 'none' here are not the weights" in errors
    plain = write_features(tmp_path / "plain.h5")
    code, _, errors = ask(image, f"--config.features.path={plain}", raw=True)
    assert code == 2
    assert "features of shape (1280,), but the gallery holds (16,)" in errors


def test_spatial_features_are_searched_too(place, ask, tmp_path):
    spatial = (f"--config.features.path={tmp_path / 'spatial.h5'}", "--config.features.pooling=spatial")
    assert main(command(place, "--mode=extract", *spatial)) == 0
    found = ask(place / "photos" / "object2" / "0.png", *spatial, "--k=2", "--json", raw=True)[1]
    found = json.loads(found[found.index('{"query"') :])
    assert listed(found)[0][0] == 4
    assert listed(found)[0][1] < 1e-5


@pytest.mark.slow
def test_the_command_prints_one_json_document_and_nothing_else(place, tmp_path):
    image = place / "photos" / "object1" / "1.png"
    done = subprocess.run(
        [sys.executable, "-m", "fgis.main", *command(place, "--mode=search", f"--image={image}", "--json", "--k=2")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["results"][0]["image_id"] == "object1/1.png"
    assert done.stdout.count("\n") == 1
