"""From a folder of photos to a search, by the command line; the network is one that takes no time."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fgis.commands import command_line
from fgis.errors import UserError
from fgis.experiment.galleries import load_gallery
from fgis.features import description
from fgis.main import main
from tests.gallery.photos import TINY, Network, photo, save


@pytest.fixture
def place(tmp_path, monkeypatch):
    """``plain``: eight photos without labels; ``sorted``: two photos of each of four objects."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        save(tmp_path / "plain" / f"{number}.png", number)
        save(tmp_path / "sorted" / f"object{number // 2}" / f"{number % 2}.png", number)
    return tmp_path


@pytest.fixture
def call(place, network, capfd):
    """The exit code, output and errors of a command."""

    def call(mode, *arguments):
        code = main([f"--mode={mode}", *arguments])
        return (code, *capfd.readouterr())

    return call


def test_two_commands_lead_from_a_folder_to_a_search(call, place, network):
    code, output, _ = call("index", "--images=plain", "--gallery=gallery", *TINY)
    assert code == 0
    assert output.splitlines()[1] == f"8 images in {place / 'plain'}"
    assert output.splitlines()[2].startswith("8 images in the gallery (8 new);")
    described = network.described
    save(place / "plain" / "new.png", 20)
    (place / "plain" / "note.txt").write_text("no image")
    (place / "plain" / "broken.jpg").write_text("no image")
    code, output, errors = call("index", "--gallery=gallery")  # the gallery remembers the folder and the network
    assert "; other files are not read (1 .txt)" in output
    assert "9 images in the gallery (1 new, 1 left out);" in output
    assert errors == "fgis: left out: broken.jpg: cannot identify image file\n"
    assert network.described == described + 1
    photo(3).crop((4, 4, 92, 68)).save(place / "query.png")
    code, output, _ = call("search", "--gallery=gallery", "--image=query.png", "--k=3", "--json")
    assert code == 0
    found = json.loads(output)
    assert [one["rank"] for one in found["results"]] == [1, 2, 3]
    assert {key: found["results"][0][key] for key in ("image_id", "label", "label_name")} == {
        "image_id": "3.png", "label": -1, "label_name": "",
    }  # fmt: skip
    assert (place / "runs" / "search" / "query.html").read_text().count("data:image/jpeg") == 4
    assert (place / "runs" / "search" / "query.png").exists()


def test_labels_are_names_and_searches_go_on_as_before(call, place):
    call("index", "--images=sorted", "--gallery=gallery", *TINY)
    image = f"--image={place / 'sorted' / 'object2' / '1.png'}"
    found = json.loads(call("search", "--gallery=gallery", image, "--json")[1])
    assert (found["results"][0]["label_name"], found["results"][0]["image_id"]) == ("object2", "object2/1.png")
    assert found["results"][0]["distance"] < 1e-5
    assert found["verdict"] == "known"
    text = call("search", "--gallery=gallery", image, "--rerank=local_scaling", "--k=2", "--crop=0,0,96,72")[1]
    assert "object2/1.png  object2" in text
    assert "re-ranked by local scaling" in text
    far = json.loads(call("search", "--gallery=gallery", image, "--farthest", "--json", "--k=8")[1])
    assert far["results"][-1]["image_id"] == "object2/1.png"
    folder = json.loads(call("search", "--gallery=gallery", "--image=plain", "--json", "--k=1")[1])
    assert len(folder) == 8


def test_without_labels_the_operating_point_comes_from_nearest_neighbours(call, place):
    for number in range(8):
        save(place / "many" / f"{number}.png", 100 + number)
    shutil.copy(place / "many" / "0.png", place / "many" / "copy.png")  # tells nothing about distances
    call("index", "--images=many", "--gallery=gallery", *TINY)
    loaded = load_gallery("gallery")
    unit = loaded.search.features / np.linalg.norm(loaded.search.features, axis=1, keepdims=True)
    distances = 1 - unit.astype(np.float64) @ unit.T
    shas = np.array([one.sha256 for one in loaded.records])
    distances[shas[:, None] == shas] = np.inf
    point = loaded.search.point
    nearest = np.sort(distances.min(axis=1))
    assert point.threshold < nearest[0] + 1e-6  # none of 9 images may pass at a share of a tenth
    assert point.limit == pytest.approx(nearest[-1], abs=1e-5)
    assert np.isnan(point.detection)
    assert np.isnan(point.missed)
    Image.new("RGB", (64, 48), (255, 0, 0)).save(place / "red.png")
    found = json.loads(call("search", "--gallery=gallery", "--image=red.png", "--json")[1])
    assert (found["verdict"], found["detection"]) == ("absent", None)


def test_the_saved_operating_point_is_that_of_the_images(call, place):
    call("index", "--images=plain", "--gallery=gallery", *TINY)
    one = load_gallery("gallery").search.point
    save(place / "plain" / "more.png", 7, dpi=(50, 50))  # the same pixels in another file: a neighbour at 0
    call("index", "--gallery=gallery")
    other = load_gallery("gallery").search.point
    assert other != one
    assert load_gallery("gallery").search.point == pytest.approx(other, nan_ok=True)


def test_a_loaded_gallery_holds_what_the_page_needs(call, place):
    call("index", "--images=sorted", "--gallery=gallery", *TINY)
    loaded = load_gallery("gallery")
    assert loaded.label_names == ("object0", "object1", "object2", "object3")
    assert loaded.search.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert loaded.find_picture("object0/1.png").size == (96, 72)
    assert loaded.find_picture("../plain/1.png") is None
    (place / "sorted" / "object0" / "1.png").unlink()
    assert loaded.find_picture("object0/1.png") is None
    assert loaded.thumbnail("object0/1.png")[8:12] == b"WEBP"
    assert loaded.make_rerank("none") is None
    assert loaded.make_rerank("local_scaling") is not None
    with pytest.raises(ValueError, match="did you mean 'local_scaling'"):
        loaded.make_rerank("local_scalin")
    assert loaded.describe(photo(0)).shape == (1, 192)
    assert loaded.made.startswith("8 images of ")
    assert loaded.made.endswith("sorted, described by mobilenet_075")


def test_duplicates_are_listed_and_nothing_is_deleted(call, place):
    shutil.copy(place / "plain" / "1.png", place / "plain" / "<b>copy.png")
    photo(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(place / "plain" / "flip.png")
    call("index", "--images=plain", "--gallery=gallery", *TINY)
    code, output, _ = call("duplicates", "--gallery=gallery")
    assert code == 0
    assert "2 groups of duplicates among 10 images: 2 images (" in output
    assert "beside the first of each, 1 with the same bytes\n" in output
    assert "flip.png" in output
    document = json.loads((place / "gallery" / "duplicates.json").read_text())
    assert json.loads(call("duplicates", "--gallery=gallery", "--json")[1]) == document
    assert [[one["relation"] for one in group["images"]] for group in document["groups"]] == [
        ["", "same bytes"], ["", "mirrored"]
    ]  # fmt: skip
    page = (place / "gallery" / "duplicates.html").read_text()
    assert "&lt;b&gt;copy.png" in page
    assert "<b>copy" not in page
    assert len(list((place / "plain").iterdir())) == 10
    assert json.loads(call("duplicates", "--gallery=gallery", "--json", "--threshold=1")[1])["groups"][0]["images"]


@pytest.mark.parametrize(
    ("mode", "arguments", "line"),
    [
        ("index", ("--images=plain",), "--gallery: missing"),
        ("index", ("--gallery=new",), "--images: missing"),
        ("index", ("--gallery=new", "--images=nowhere"), "--images=nowhere: no such folder"),
        ("index", ("--gallery=new", "--images=empty"), "--images=empty: no image in this folder"),
        ("index", ("--gallery=plain", "--images=plain"), "--gallery=plain: holds other files (0.png)"),
        ("index", ("--gallery=plain/0.png", "--images=plain"), "--gallery=plain/0.png: a file"),
        ("index", ("--gallery=gallery", "--images=sorted"), "--images="),
        ("index", ("--gallery=gallery", "--config=photos"), "config.features.backbone: "),
        ("index", ("--gallery=gallery", "--config.features.fit=pad"), "config.features.fit: 'pad' here, but gallery"),
        ("index", ("--gallery=new", "--images=plain", "--config.features.backbone="), "config.features.backbone: "),
        ("index", ("--gallery=new", "--images=plain", "--workdir=nowhere"), "--workdir=nowhere: holds no config.json"),
        ("search", ("--gallery=nowhere", "--image=plain/0.png"), "nowhere: no gallery here"),
        ("search", ("--gallery=gallery", "--image=plain/0.png", "--step=3"), "--step=3: of which run?"),
        ("search", ("--gallery=gallery",), "--image: missing"),
        ("search", ("--image=plain/0.png",), "--gallery: missing; name the folder of a gallery (or"),
        ("duplicates", (), "--gallery: missing; name the folder of a gallery"),
        ("duplicates", ("--gallery=gallery", "--threshold=2"), "--threshold: 2"),
        ("duplicates", ("--gallery=nowhere",), "nowhere: no gallery here"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(mode, arguments, line, place, network, capfd):
    (place / "empty").mkdir()
    (place / "gallery").mkdir()
    template = json.loads(json.dumps(about(place)))
    (place / "gallery" / "gallery.json").write_text(json.dumps(template))
    code = main([f"--mode={mode}", *arguments])
    errors = capfd.readouterr().err
    assert code == 2
    assert errors.startswith(f"fgis: {line}")
    assert errors.count("\n") == 1
    assert network.described == 0


def about(place):
    from fgis.experiment.differences import to_plain

    plain = to_plain(command_line.parse(["--config=photos", *TINY]).config)
    return {
        "version": 1, "images": str(place / "plain"), "config": plain, "workdir": "", "step": None,
        "weights_sha256": "",
    }  # fmt: skip


def test_other_weights_are_refused(call, place, monkeypatch):
    call("index", "--images=plain", "--gallery=gallery", *TINY)
    other = Network()
    other.__class__ = type("Other", (Network,), {
        "__call__": lambda self, *given: Network.__call__(self)._replace(source={"weights_sha256": "6" * 64})
    })  # fmt: skip
    monkeypatch.setattr(description, "load_extractor", other)
    code, _, errors = call("search", "--gallery=gallery", f"--image={place / 'plain' / '0.png'}")
    assert code == 2
    assert "are not the weights that the gallery was made with (SHA-256 666666666666 and 555555555555)" in errors


def test_a_moved_folder_is_taken_for_the_same(call, place):
    call("index", "--images=plain", "--gallery=gallery", *TINY)
    shutil.move(place / "plain", place / "elsewhere")
    code, _, errors = call("index", "--gallery=gallery")
    assert code == 2
    assert "no such folder" in errors
    code, output, _ = call("index", "--images=elsewhere", "--gallery=gallery")
    assert "8 images in the gallery (nothing new);" in output


def test_the_configuration_is_that_of_the_gallery(place):
    with pytest.raises(UserError, match="--gallery: missing"):
        command_line.parse(["--mode=search"])
    assert command_line.parse(["--mode=index", "--gallery=new"]).config.features.collection == "folder"
    (place / "gallery").mkdir()
    held = about(place)
    held["config"]["distance"] = "euclidean"
    (place / "gallery" / "gallery.json").write_text(json.dumps(held))
    parsed = command_line.parse(["--mode=search", "--gallery=gallery", "--config.rerank.name=none"]).config
    assert (parsed.distance, parsed.features.backbone) == ("euclidean", "mobilenet_075")
    assert command_line.parse(["--mode=search", "--gallery=gallery", "--config=photos"]).config.distance == "cosine"


def test_copies_of_pixels_are_no_features_to_search_by(call, place):
    copies = ("--config=photos", "--config.features.pixels=(8,)", "--config.head.name=visnet")
    code, _, errors = call("index", "--images=plain", "--gallery=copies", *copies, "--config.head.visnet.pixels=(8,)")
    assert (code, errors.count("\n")) == (2, 1)
    assert "config.features.pixels: heads on copies of pixels are trained and evaluated, and rank no search" in errors
    assert not (place / "copies").exists()


@pytest.mark.slow
def test_a_run_embeds_the_images_of_a_gallery(call, place):
    """A head that was trained on features of the same network, named when the gallery is made or searched."""
    features = (f"--config.features.path={place / 'f.h5'}", f"--config.features.images={place / 'sorted'}")
    short = (
        "--config.train.total_steps=4", "--config.train.record_every_steps=2",
        "--config.train.checkpoint_every_steps=2", "--config.evaluation.resamples=20", "--config.seeds=1",
        "--config.folds=2", "--config.photo_folds=0", "--config.head.residual.rank=4",
        "--config.sampler.pk.classes=3", "--config.optimizer.adam.learning_rate=0.05",
    )  # fmt: skip
    assert call("extract", "--config=photos", *features, *TINY)[0] == 0
    assert call("train", "--config=photos", "--workdir=run", *features, *TINY, *short)[0] == 0
    code, _, errors = call("index", "--images=sorted", "--gallery=trained", "--workdir=run")
    assert code == 0, errors
    assert call("index", "--images=sorted", "--gallery=frozen", *TINY)[0] == 0
    image = f"--image={place / 'plain' / '3.png'}"

    def distances(*arguments):
        code, output, errors = call("search", image, "--json", "--k=8", "--use_head=always", *arguments)
        assert code == 0, errors
        return [one["distance"] for one in json.loads(output)["results"]]

    trained, frozen = distances("--gallery=trained"), distances("--gallery=frozen")
    assert np.abs(np.subtract(trained, frozen)).max() > 1e-4
    assert distances("--gallery=frozen", "--workdir=run") == pytest.approx(trained, abs=1e-6)
    assert distances("--gallery=trained", "--step=2") != pytest.approx(trained, abs=1e-6)
    assert json.loads((place / "trained" / "gallery.json").read_text())["workdir"] == str(place / "run")
    assert call("index", "--gallery=trained")[0] == 0  # the run is remembered
    assert distances("--gallery=trained") == pytest.approx(trained, abs=1e-6)
    assert distances("--gallery=trained", "--use_head=never") == pytest.approx(frozen, abs=1e-6)
    other = ("--config=photos", *TINY, "--config.features.pooling=max")
    code, _, errors = call("index", "--images=sorted", "--gallery=trained", *other)
    assert (code, errors.count("\n")) == (2, 1)
