"""Extraction with a stand-in network: order, resuming, bad images; the real one on a sample."""

import os
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from PIL import Image

from fgis.errors import UserError
from fgis.features import description
from fgis.features import extract as extraction
from fgis.features.collection import load_collection
from fgis.features.description import Settings, check_settings, describe, fit_image, load_extractor
from fgis.features.extract import extract
from fgis.features.store import bundled_path, load_features

SETTINGS = Settings("mobilenet_v2", (32, 40), weights="none", batch_size=4)
SKIP = SETTINGS._replace(on_bad_image="skip")
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture
def stand_in(monkeypatch):
    """A network that returns the mean colour, and remembers how many batches it ran."""
    calls = []

    def load(settings, devices=()):
        def run(scales):
            calls.append([images.shape for images in scales])
            return np.concatenate([images.mean((1, 2), dtype=np.float32) for images in scales], -1)

        source = {key: getattr(settings, key) for key in ("backbone", "weights", "image_size", "fit", "pooling")}
        shape = (3 * len(extraction.store.image_sizes(settings.image_size)),)
        return extraction.Extractor(run, lambda: shape, source)

    monkeypatch.setattr(description, "load_extractor", load)
    return calls


@pytest.fixture
def ten(tmp_path):
    """Ten images of one colour each, in two classes; image i is (20 * i, i, 0)."""
    for i in range(10):
        place = tmp_path / "images" / f"class{i // 5}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (20 * i, i, 0)).save(place)
    return tmp_path / "images"


def test_a_layer_by_its_name():
    settings = Settings("efficientnet_lite0", (64, 96), weights="none", layer="_blocks.11._expand_conv", pooling="max")
    extractor = load_extractor(settings)
    assert extractor.find_shape() == (672,)
    assert extractor.source["layer"] == "_blocks.11._expand_conv"
    assert "layer" not in load_extractor(settings._replace(layer="")).source
    with pytest.raises(
        ValueError, match=r"^layer: '_blocks.11.expand' is no layer of efficientnet_lite0; near it are _"
    ):
        load_extractor(settings._replace(layer="_blocks.11.expand"))
    with pytest.raises(
        ValueError, match=r"^layer: 'map' is no layer of dinov2_s14; only its last can be had; write ''"
    ):
        load_extractor(Settings("dinov2_s14", (28, 28), weights="none", layer="map"))


def test_fit_image_of_several_sizes():
    settings = SETTINGS._replace(image_size=((4, 6), (8, 2)))
    shapes = [a.shape for a in fit_image(Image.new("RGB", (9, 9)), settings)]
    assert shapes == [(4, 6, 3), (8, 2, 3)]


def test_extraction_keeps_order_and_pads_the_last_batch(ten, tmp_path, stand_in):
    path, seen = str(tmp_path / "new" / "x.h5"), []
    collection = load_collection("folder", str(ten))
    done = extract(collection, path, SETTINGS, progress=lambda *counts: seen.append(counts), say=lambda text: None)
    read = load_features(path)
    assert read.features.dtype == np.float16
    assert read.features.tolist() == [[20 * i, i, 0] for i in range(10)]
    assert read.image_ids.tolist() == [f"class{i // 5}/{i}.png" for i in range(10)]
    assert read.labels.tolist() == [0] * 5 + [1] * 5
    assert read.coarse is None
    assert read.label_names == ("class0", "class1")
    assert read.source["collection"] == "folder"
    with h5py.File(path) as file:
        assert sorted(file) == ["features", "image_ids", "label_names", "labels"]
    assert stand_in == [[(4, 32, 40, 3)]] * 3  # one shape only, so one compilation
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert done[:4] == (path, 10, (), 0)
    assert os.listdir(tmp_path / "new") == ["x.h5"]


def test_several_sizes(ten, tmp_path, stand_in):
    path = str(tmp_path / "x.h5")
    settings = SETTINGS._replace(image_size=[(32, 32), (48, 64)])
    extract(load_collection("folder", str(ten)), path, settings)
    assert load_features(path).features[3].tolist() == [60, 3, 0, 60, 3, 0]
    assert stand_in[0] == [(4, 32, 32, 3), (4, 48, 64, 3)]


def test_cut_anywhere_it_continues_to_the_same_bytes(ten, tmp_path, stand_in):
    """The journal is cut at many lengths, as a kill would leave it; every continuation ends with the same file."""
    collection, whole, path = load_collection("folder", str(ten)), tmp_path / "whole.h5", tmp_path / "x.h5"
    extract(collection, str(whole), SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction.os, "unlink", lambda name: None)
        extract(collection, str(path), SETTINGS)
    journal = (tmp_path / "x.h5.journal.partial").read_bytes()
    record = 4 * (3 * 4 + 1) + 4
    header = len(journal) - 3 * record
    for cut in [0, 1, header - 1, header, header + 1, *range(header + record - 5, len(journal), 13), len(journal)]:
        path.unlink()
        (tmp_path / "x.h5.journal.partial").write_bytes(journal[:cut])
        stand_in.clear()
        done = extract(collection, str(path), SETTINGS, say=lambda text: None)
        finished = max(0, (cut - header) // record)
        assert len(stand_in) == 3 - finished
        assert done.resumed == min(4 * finished, 10)
        assert path.read_bytes() == whole.read_bytes()


def test_a_damaged_record_is_done_again(ten, tmp_path, stand_in):
    path = tmp_path / "x.h5"
    collection = load_collection("folder", str(ten))
    interrupt_after(collection, path, rows=8)
    partial = tmp_path / "x.h5.journal.partial"
    data = bytearray(partial.read_bytes())
    data[-20] ^= 1  # in the second record
    partial.write_bytes(data)
    assert extract(collection, str(path), SETTINGS).resumed == 4
    assert load_features(str(path)).features.tolist() == [[20 * i, i, 0] for i in range(10)]


def test_what_a_kill_between_the_last_steps_leaves_is_removed(ten, tmp_path, stand_in):
    path, collection = tmp_path / "x.h5", load_collection("folder", str(ten))
    extract(collection, str(path), SETTINGS)
    for name in ("x.h5.journal.partial", "x.h5.lock"):
        (tmp_path / name).write_bytes(b"")
    extract(collection, str(path), SETTINGS)
    assert sorted(file.name for file in tmp_path.iterdir() if file.is_file()) == ["x.h5"]


def interrupt_after(collection, path, rows, settings=SETTINGS):
    def progress(done, total):
        if done >= rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(collection, str(path), settings, progress=progress)
    assert not path.exists()


def test_unfinished_work_of_another_kind_is_refused(ten, tmp_path, stand_in):
    collection, path = load_collection("folder", str(ten)), tmp_path / "x.h5"
    interrupt_after(collection, path, rows=4)
    with pytest.raises(UserError, match=r"x.h5.journal.partial: .* \(fit: 'squash' there, 'pad' now\)"):
        extract(collection, str(path), SETTINGS._replace(fit="pad"))
    fewer = collection._replace(image_ids=collection.image_ids[:9], labels=collection.labels[:9])
    with pytest.raises(UserError, match="collection_sha256"):
        extract(fewer, str(path), SETTINGS)


def test_two_at_once_are_refused(ten, tmp_path, stand_in):
    collection, path = load_collection("folder", str(ten)), str(tmp_path / "x.h5")

    def progress(done, total):
        with pytest.raises(UserError, match=rf"^{path}: process {os.getpid()} on \S+ is extracting into it; wait"):
            extract(collection, path, SETTINGS)

    extract(collection, path, SETTINGS, progress=progress)


def test_finished_work_is_left_alone(ten, tmp_path, stand_in):
    collection, path, said = load_collection("folder", str(ten)), tmp_path / "x.h5", []
    extract(collection, str(path), SETTINGS)
    before = path.stat().st_mtime_ns
    stand_in.clear()
    extract(collection, str(path), SETTINGS, say=said.append)
    assert "already finished, 10 images" in said[0]
    assert not stand_in
    with pytest.raises(UserError, match=r"x.h5: made with pooling 'avg', not 'max'; set pooling to 'avg'"):
        extract(collection, str(path), SETTINGS._replace(pooling="max"))
    with pytest.raises(UserError, match="its 10 images or labels are not those"):
        extract(collection._replace(labels=collection.labels + 1), str(path), SETTINGS)
    with pytest.raises(UserError, match="its label names are not those"):
        extract(collection._replace(label_names=("class0", "other")), str(path), SETTINGS)
    assert path.stat().st_mtime_ns == before


def test_a_finished_file_without_label_names_is_complete(ten, tmp_path, stand_in):
    """Files of earlier versions have none."""
    collection, path = load_collection("folder", str(ten)), str(tmp_path / "x.h5")
    extract(collection._replace(label_names=None), path, SETTINGS)
    assert extract(collection, path, SETTINGS).resumed == 10


def test_describe_is_one_row_of_extract(ten, tmp_path, stand_in):
    collection, path = load_collection("folder", str(ten)), str(tmp_path / "x.h5")
    extract(collection, path, SETTINGS)
    extractor = description.load_extractor(SETTINGS)
    assert describe(extractor, SETTINGS, collection.read(7)).tolist() == [[140, 7, 0]]
    assert stand_in[-1] == [(1, 32, 40, 3)]


def test_bad_images(ten, tmp_path, stand_in):
    (ten / "class0" / "1.png").write_text("no image")
    whole = (ten / "class1" / "9.png").read_bytes()
    (ten / "class1" / "9.png").write_bytes(whole[: len(whole) - 30])
    collection, path, said = load_collection("folder", str(ten)), tmp_path / "x.h5", []
    with pytest.raises(UserError, match=r"^image 'class0/1.png': cannot be used \(cannot.*on_bad_image='skip'"):
        extract(collection, str(path), SETTINGS)
    assert not path.exists()
    done = extract(collection, str(path), SKIP, say=said.append)
    assert done.skipped == ("class0/1.png", "class1/9.png")
    assert [text.split(":")[0] for text in said[:2]] == [f"image {name!r} left out" for name in done.skipped]
    read = load_features(str(path))
    assert read.features[:, 1].tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    assert read.labels.tolist() == [0] * 4 + [1] * 4
    assert read.source["skipped"] == 2
    with h5py.File(path) as file:
        assert file["skipped_image_ids"].asstr()[...].tolist() == list(done.skipped)
    assert extract(collection, str(path), SKIP).skipped == done.skipped
    with pytest.raises(UserError, match=r"'class0/1.png': cannot be used \(left out of"):
        extract(collection, str(path), SETTINGS)


def with_coarse(ten):
    """The ten images as labels 8 (0..4), 3 (5, 6) and 5 (7..9); the last two labels are one coarse class."""
    groups = [(8, 4)] * 5 + [(3, 6)] * 2 + [(5, 6)] * 3
    lines = [f"class{i // 5}/{i}.png,{label},{coarse}\n" for i, (label, coarse) in enumerate(groups)]
    (ten / "list.csv").write_text("".join(lines))
    return load_collection("csv", str(ten / "list.csv"))


def test_coarse_labels_reach_the_file(ten, tmp_path, stand_in):
    for name in ("class0/1.png", "class1/8.png"):
        (ten / name).write_text("no image")
    collection, whole, path = with_coarse(ten), tmp_path / "whole.h5", tmp_path / "x.h5"
    extract(collection, str(whole), SKIP)
    read = load_features(str(whole))
    assert read.features[:, 1].tolist() == [0, 2, 3, 4, 5, 6, 7, 9]
    assert read.labels.tolist() == [8, 8, 8, 8, 3, 3, 5, 5]
    assert read.coarse.tolist() == [4, 4, 4, 4, 6, 6, 6, 6]
    with h5py.File(whole) as file:
        assert (file["coarse"].dtype, file["coarse"].shape) == (np.int64, (8,))
    interrupt_after(collection, path, rows=8, settings=SKIP)
    assert extract(collection, str(path), SKIP).resumed == 8
    assert path.read_bytes() == whole.read_bytes()


def test_other_coarse_labels_are_other_work(ten, tmp_path, stand_in):
    collection, path = with_coarse(ten), tmp_path / "x.h5"
    others = [collection._replace(coarse=None), collection._replace(coarse=collection.coarse + 1)]
    interrupt_after(collection, path, rows=4)
    for other in others:
        with pytest.raises(UserError, match="collection_sha256"):
            extract(other, str(path), SETTINGS)
    assert extract(collection, str(path), SETTINGS).resumed == 4
    for other in others:
        with pytest.raises(UserError, match="its 10 images or labels are not those"):
            extract(other, str(path), SETTINGS)


def test_resumed_run_may_not_inherit_a_bad_image(ten, tmp_path, stand_in):
    (ten / "class0" / "1.png").write_text("no image")
    collection, path = load_collection("folder", str(ten)), tmp_path / "x.h5"
    interrupt_after(collection, path, rows=4, settings=SKIP)
    with pytest.raises(UserError, match=r"'class0/1.png': cannot be used"):
        extract(collection, str(path), SETTINGS)


def test_nothing_but_bad_images(tmp_path, stand_in):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_text("no image")
    with pytest.raises(UserError, match=r"image 'a/x.jpg': cannot be read, nor can any of 1 images"):
        extract(load_collection("folder", str(tmp_path)), str(tmp_path / "x.h5"), SKIP)


@pytest.mark.parametrize(("scale", "dtype"), [(1, np.float16), (364, np.float32)])
def test_float16_where_it_fits(ten, tmp_path, monkeypatch, scale, dtype):
    def load(*settings):
        return extraction.Extractor(lambda scales: scales[0].mean((1, 2)) * np.float32(scale), lambda: (3,), {})

    monkeypatch.setattr(description, "load_extractor", load)
    extract(load_collection("folder", str(ten)), str(tmp_path / "x.h5"), SETTINGS)
    features = load_features(str(tmp_path / "x.h5")).features
    assert features.dtype == dtype
    assert features[9].tolist() == [180 * scale, 9 * scale, 0]  # 180 * 364 = 65520 is beyond float16's 65504


def test_features_that_are_not_finite(ten, tmp_path, monkeypatch):
    def run(scales):
        features = scales[0].mean((1, 2), dtype=np.float32)
        return np.where(features[:, :1] == 120, np.nan, features)  # image 6

    monkeypatch.setattr(description, "load_extractor", lambda *settings: extraction.Extractor(run, lambda: (3,), {}))
    with pytest.raises(UserError, match=r"^image 'class1/6.png': its features are not finite"):
        extract(load_collection("folder", str(ten)), str(tmp_path / "x.h5"), SETTINGS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(backbone="ResNet-50"), "^backbone: 'ResNet-50' is unknown; did you mean 'resnet50'"),
        (dict(fit="stretch"), "^fit: 'stretch' is unknown; known: crop, pad, squash"),
        (dict(fit="squish"), "^fit: 'squish' is unknown; did you mean 'squash'"),
        (dict(layer="b", pooling="token", backbone="dinov2_s14", image_size=(28, 28)), "^layer: 'b' gives maps"),
        (dict(pooling="regional", backbone="hog", image_size=(64, 64)), "^pooling: 'regional' is for maps, and hog"),
        (dict(pooling="mean"), "^pooling: 'mean' is unknown"),
        (dict(weights=None), "^weights: None found; write a text"),
        (dict(on_bad_image="ignore"), "^on_bad_image: 'ignore' found; .*known: skip, stop"),
        (dict(batch_size=0), "^batch_size: 0 found; write a whole number from 1 to"),
        (dict(image_size=(31, 224)), r"^image_size: \(31, 224\) found; write sides of at least 32 for mobilenet_v2"),
        (dict(image_size=224), "^image_size: 224 found"),
        (dict(image_size=[(224, 224), (5,)]), "^image_size: "),
        (dict(image_size=()), "^image_size: "),
        (dict(image_size=[(64, 64), (96, 96)], pooling="spatial"), "^pooling: 'spatial'"),
    ],
)
def test_settings_that_cannot_work(changed, message):
    good = Settings("mobilenet_v2", (64, 64))
    check_settings(good)
    with pytest.raises(ValueError, match=message) as error:
        check_settings(good._replace(**changed))
    assert not isinstance(error.value, UserError)


def test_paths(ten, tmp_path, monkeypatch, stand_in):
    collection = load_collection("folder", str(ten))
    with pytest.raises(ValueError, match=r"^path: empty means the bundled file"):
        extract(collection, "", SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^/.*/file/x.h5: cannot be written"):
        extract(collection, str(tmp_path / "file" / "x.h5"), SETTINGS)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert extract(collection, "~/features/x.h5", SETTINGS).path == str(tmp_path / "features" / "x.h5")
    assert os.listdir(tmp_path / "features") == ["x.h5"]


def test_small_batches_are_the_whole_batch():
    """On a CPU the batch is cut up inside the program, and put together again in order."""
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    seen = []

    def features(params, scales):
        seen.append(scales[0].shape[0])
        return params * scales[0].astype(np.float32).sum((1, 2))

    run = jax.jit(description._in_small_batches(features))
    np.testing.assert_array_equal(run(2.0, (images,)), 2 * images.astype(np.float32).sum((1, 2)))
    large = np.zeros((6, 224, 224, 3), np.uint8)
    run(2.0, (large,))
    assert seen == [6, 2]  # 6 images of 64 x 64 fit at once, and 2 of 224 x 224


@pytest.mark.slow
def test_real_network_spatial_pooled_and_multi_scale():
    settings = Settings("mobilenet_075", (64, 96), weights="none")
    images = [Image.effect_noise((80, 60), 90).convert("RGB") for _ in range(2)]
    batch = np.stack([fit_image(image, settings)[0] for image in images])
    maps = load_extractor(settings._replace(pooling="spatial"))
    pooled = load_extractor(settings)
    twice = load_extractor(settings._replace(image_size=((64, 96), (64, 96))))
    assert maps.find_shape() == (2, 3, 768)
    assert maps.source["weights_sha256"] == pooled.source["weights_sha256"]
    assert maps.source["preprocessing"] == "tf"
    average = np.asarray(maps.run((batch,))).mean((1, 2))
    np.testing.assert_allclose(pooled.run((batch,)), average, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(describe(pooled, settings, images[1]), average[1:], rtol=1e-4, atol=1e-6)
    unit = average / np.linalg.norm(average, axis=1, keepdims=True)
    np.testing.assert_allclose(twice.run((batch, batch)), 2 * unit, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "folder", "rows", "most_bytes"),
    [
        ("", "ukbench1000", [0, 3, 157, 158, 500, 731, 998, 999], 3_000_000),
        ("bundled:ukbench_transfer", "ukbench_transfer", [0, 99, 100, 499], 1_500_000),
    ],
)
@pytest.mark.slow
def test_bundled_features_are_what_extract_makes(name, folder, rows, most_bytes, tmp_path, monkeypatch):
    """A sample of a bundled file is rebuilt from the photos, where those and the weights are there."""
    images, keras_home = SHARED / "data" / folder, SHARED / "keras"
    if not images.is_dir() or not keras_home.is_dir():
        pytest.skip(f"no {images} or no {keras_home}: the photos and the weights are not part of the project")
    monkeypatch.setenv("KERAS_HOME", str(keras_home))
    bundled = load_features(name)
    sample = np.array(rows)
    whole = load_collection("ukbench", str(images))
    part = whole._replace(
        image_ids=whole.image_ids[sample], labels=whole.labels[sample], read=lambda row: whole.read(int(sample[row]))
    )
    keys = ("backbone", "weights", "image_size", "fit", "pooling")
    path = str(tmp_path / "x.h5")
    extract(part, path, Settings(**{key: bundled.source[key] for key in keys}, batch_size=8))
    rebuilt = load_features(path)
    assert rebuilt.source["weights_sha256"] == bundled.source["weights_sha256"]
    assert rebuilt.image_ids.tolist() == bundled.image_ids[sample].tolist()
    # float16 holds 11 bits: one rounding step apart at most where the sums differ in their last bits
    np.testing.assert_allclose(rebuilt.features, bundled.features[sample], rtol=2**-10, atol=1e-4)
    assert bundled.image_ids.tolist() == whole.image_ids.tolist()
    assert Path(bundled_path(name)).stat().st_size < most_bytes
