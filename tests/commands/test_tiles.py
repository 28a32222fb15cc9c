"""Large pictures in windows, by the command line and the page: an object is found where it was pasted."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgis.experiment.galleries import load_gallery
from fgis.main import main
from tests.gallery.photos import TINY, photo

PLACES = {"a.png": (66, 126), "b.png": (258, 17), "deep/c.png": (1, 190)}  # where the object lies: left, top
SIDE = 64  # pixels of the object, and of a window


def thing(number: int) -> Image.Image:
    """Nine bright fields."""
    fields = np.random.default_rng(number).choice([0, 255], (3, 3, 3)).astype(np.uint8)
    return Image.fromarray(fields).resize((SIDE, SIDE), Image.Resampling.NEAREST)


@pytest.fixture
def call(tmp_path, monkeypatch, network, capfd):
    monkeypatch.chdir(tmp_path)
    for number, (name, place) in enumerate(PLACES.items()):
        image = photo(100 + number, (400, 300))
        image.paste(thing(number), place)
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "photos" / name)
        thing(number).save(tmp_path / f"object{number}.png")
    photo(50, (60, 40)).save(tmp_path / "photos" / "small.png")

    def call(mode, *arguments):
        code = main([f"--mode={mode}", "--gallery=gallery", *arguments])
        return (code, *capfd.readouterr())

    assert call("index", "--images=photos", "--tiles=64,16", *TINY)[0] == 0
    return call


def overlap(box, other):
    """Intersection over union."""
    (x, y, w, h), (a, b, c, d) = box, other
    shared = max(0, min(x + w, a + c) - max(x, a)) * max(0, min(y + h, b + d) - max(y, b))
    return shared / (w * h + c * d - shared)


def test_an_object_is_found_where_it_lies(call, network):
    windows = len(range(0, 336, 16)) + 1, len(range(0, 236, 16)) + 1  # the last ones end at the border
    assert network.described == 4 + 3 * windows[0] * windows[1]
    for number, (name, place) in enumerate(PLACES.items()):
        code, output, errors = call("search", f"--image=object{number}.png", "--k=3", "--json")
        assert code == 0, errors
        first = json.loads(output)["results"][0]
        assert first["image_id"] == name
        assert overlap(first["box"], (*place, SIDE, SIDE)) > 0.3  # windows that overlap the nearest make it larger
    table = call("search", "--image=object0.png", "--k=3")[1]
    assert any(line.split()[-1:] == ["box"] for line in table.splitlines())
    whole = json.loads(call("search", "--image=photos/small.png", "--k=1", "--json")[1])["results"][0]
    assert "box" not in whole


def test_only_what_is_new_is_described_and_tiles_stay_as_they_were(call, tmp_path, network):
    described = network.described
    (tmp_path / "photos" / "a.png").rename(tmp_path / "photos" / "moved.png")
    assert call("index")[0] == 0
    assert network.described == described
    loaded = load_gallery("gallery")
    ids = [loaded.records[image].image_id for image in loaded.search.windows.image_of]
    assert "moved.png" in ids
    assert "a.png" not in ids
    (tmp_path / "photos" / "b.png").unlink()
    call("index")
    assert 1 < len(load_gallery("gallery").search.embeddings) < len(ids)
    code, _, errors = call("index", "--tiles=128,64")
    assert (code, errors.count("\n")) == (2, 1)
    assert "--tiles=128,64: gallery was indexed with --tiles=64,16; leave it so, or name another --gallery" in errors
    assert "write SIZE,STRIDE" in call("index", "--tiles=12")[2]


def test_other_commands_take_whole_pictures(call):
    assert call("duplicates", "--json")[0] == 0
    assert json.loads(call("duplicates", "--json")[1])["groups"] == []
    loaded = load_gallery("gallery", tiled=False)
    assert len(loaded.search.embeddings) == len(loaded.records) == 4


def test_the_page_draws_boxes_and_leaves_out_the_picture_itself(call):
    pytest.importorskip("starlette", reason="the page needs starlette: pip install '.[photos]'")
    pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")
    from starlette.testclient import TestClient

    from fgis.web.app import make_app

    client = TestClient(make_app(load_gallery("gallery")), base_url="http://127.0.0.1")
    assert client.get("/api/gallery").json()["images"] == 4
    assert client.get("/api/images").json()["images"] == 4
    response = client.post("/api/search", content=Path("object1.png").read_bytes()).json()
    assert response["results"][0]["image_id"] == "b.png"
    assert overlap(response["results"][0]["box"], (*PLACES["b.png"], SIDE, SIDE)) > 0.3
    own = client.get("/api/search", params={"image": "b.png", "k": 9}).json()
    assert "b.png" not in {one["image_id"] for one in own["results"]}
    deep = client.get("/api/search", params={"image": "b.png", "folder": "deep", "k": 9}).json()
    assert {one["image_id"] for one in deep["results"]} == {"deep/c.png"}
    x, y = PLACES["a.png"]
    part = client.get("/api/search", params={"image": "a.png", "crop": f"{x},{y},{SIDE},{SIDE}"}).json()
    assert part["results"]
    assert np.isfinite(part["nearest"])


def test_a_page_with_a_box_is_written(call, tmp_path):
    assert call("search", "--image=object0.png")[0] == 0
    (picture,) = tmp_path.glob("runs/search/*.png")
    colours = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    assert (np.abs(colours - np.array([255, 196, 0])).max(axis=1) < 8).any()
