"""Fitting by hand; extraction with a stand-in network: order, resuming, bad images; the real one on a sample."""

import os
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest
from PIL import Image

from fgis.errors import UserError
from fgis.features import extract as room
from fgis.features.collection import load_collection
from fgis.features.extract import check_settings, crop, extract, fit_image, load_extractor, pad, squash
from fgis.features.store import bundled_path, load_features

SETTINGS = dict(backbone="mobilenet_v2", weights="none", image_size=(32, 40), batch_size=4)
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture
def stand_in(monkeypatch):
    """A network that returns the mean colour, and remembers how many batches it ran."""
    calls = []

    def load(backbone, weights, image_size, fit, pooling):
        def run(scales):
            calls.append([images.shape for images in scales])
            return np.concatenate([images.mean((1, 2), dtype=np.float32) for images in scales], -1)

        source = {"backbone": backbone, "weights": weights, "image_size": image_size, "fit": fit, "pooling": pooling}
        return room.Extractor(run, (3 * len(room.store.scales(image_size)),), source)

    monkeypatch.setattr(room, "load_extractor", load)
    return calls


@pytest.fixture
def ten(tmp_path):
    """Ten images of one colour each, in two classes; image i is (20 * i, i, 0)."""
    for i in range(10):
        place = tmp_path / "images" / f"class{i // 5}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (20 * i, i, 0)).save(place)
    return tmp_path / "images"


def test_squash_pad_crop():
    image = Image.new("RGB", (80, 40), (250, 0, 0))  # twice as wide as high: red, with a blue band on either side
    image.paste((0, 0, 250), (0, 0, 16, 40))
    image.paste((0, 0, 250), (64, 0, 80, 40))
    squashed, padded, cropped = (np.asarray(f(image, (20, 20))) for f in (squash, pad, crop))
    assert squashed.shape == padded.shape == cropped.shape == (20, 20, 3)
    # squashed: bands of 16 * 20/80 = 4 columns
    assert squashed[10, [1, 10, 18]].tolist() == [[0, 0, 250], [250, 0, 0], [0, 0, 250]]
    # padded: 10 x 20 in the middle, mean colour above and below
    assert padded[[0, 4, 15, 19], 10].tolist() == [list(room.FILL)] * 4
    assert padded[[5, 14], 10].tolist() == [[250, 0, 0]] * 2
    assert padded[10, 1].tolist() == [0, 0, 250]
    # cropped: columns 20..60 of the photo, which are all red
    assert (cropped == [250, 0, 0]).all()
    assert np.asarray(pad(image, (50, 20))).shape == (50, 20, 3)
    assert pad(Image.new("RGB", (1000, 1)), (32, 32)).size == (32, 32)  # the short side would round to 0


def test_fit_image_of_several_sizes():
    shapes = [a.shape for a in fit_image(Image.new("RGB", (9, 9)), ((4, 6), (8, 2)), "squash")]
    assert shapes == [(4, 6, 3), (8, 2, 3)]


def test_extraction_keeps_order_and_pads_the_last_batch(ten, tmp_path, stand_in):
    path, seen = str(tmp_path / "new" / "x.h5"), []
    collection = load_collection("folder", str(ten))
    done = extract(collection, path, **SETTINGS, progress=lambda *counts: seen.append(counts), say=lambda text: None)
    read = load_features(path)
    assert read.features.dtype == np.float16
    assert read.features.tolist() == [[20 * i, i, 0] for i in range(10)]
    assert read.image_ids.tolist() == [f"class{i // 5}/{i}.png" for i in range(10)]
    assert read.labels.tolist() == [0] * 5 + [1] * 5
    assert read.coarse is None
    assert read.source["collection"] == "folder"
    with h5py.File(path) as file:
        assert sorted(file) == ["features", "image_ids", "labels"]
    assert stand_in == [[(4, 32, 40, 3)]] * 3  # one shape only, so one compilation
    assert seen == [(4, 10), (8, 10), (10, 10)]
    assert done[:4] == (path, 10, (), 0)
    assert os.listdir(tmp_path / "new") == ["x.h5"]


def test_several_sizes(ten, tmp_path, stand_in):
    path = str(tmp_path / "x.h5")
    settings = {**SETTINGS, "image_size": [(32, 32), (48, 64)]}
    extract(load_collection("folder", str(ten)), path, **settings)
    assert load_features(path).features[3].tolist() == [60, 3, 0, 60, 3, 0]
    assert stand_in[0] == [(4, 32, 32, 3), (4, 48, 64, 3)]


def test_cut_anywhere_it_continues_to_the_same_bytes(ten, tmp_path, stand_in):
    """The journal is cut at many lengths, as a kill would leave it; every continuation ends with the same file."""
    collection, whole, path = load_collection("folder", str(ten)), tmp_path / "whole.h5", tmp_path / "x.h5"
    extract(collection, str(whole), **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room.os, "unlink", lambda name: None)
        extract(collection, str(path), **SETTINGS)
    journal = (tmp_path / "x.h5.partial").read_bytes()
    record = 4 * (3 * 4 + 1) + 4
    header = len(journal) - 3 * record
    for cut in [0, 1, header - 1, header, header + 1, *range(header + record - 5, len(journal), 13), len(journal)]:
        path.unlink()
        (tmp_path / "x.h5.partial").write_bytes(journal[:cut])
        stand_in.clear()
        done = extract(collection, str(path), **SETTINGS, say=lambda text: None)
        finished = max(0, (cut - header) // record)
        assert len(stand_in) == 3 - finished
        assert done.resumed == min(4 * finished, 10)
        assert path.read_bytes() == whole.read_bytes()


def test_a_damaged_record_is_done_again(ten, tmp_path, stand_in):
    path = tmp_path / "x.h5"
    collection = load_collection("folder", str(ten))
    interrupt_after(collection, path, rows=8)
    partial = tmp_path / "x.h5.partial"
    data = bytearray(partial.read_bytes())
    data[-20] ^= 1  # in the second record
    partial.write_bytes(data)
    assert extract(collection, str(path), **SETTINGS).resumed == 4
    assert load_features(str(path)).features.tolist() == [[20 * i, i, 0] for i in range(10)]


def interrupt_after(collection, path, rows, **more):
    def progress(done, total):
        if done >= rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(collection, str(path), **{**SETTINGS, **more}, progress=progress)
    assert not path.exists()


def test_unfinished_work_of_another_kind_is_refused(ten, tmp_path, stand_in):
    collection, path = load_collection("folder", str(ten)), tmp_path / "x.h5"
    interrupt_after(collection, path, rows=4)
    with pytest.raises(UserError, match=r"x.h5.partial: .* \(fit: 'squash' there, 'pad' now\)"):
        extract(collection, str(path), **SETTINGS, fit="pad")
    fewer = collection._replace(image_ids=collection.image_ids[:9], labels=collection.labels[:9])
    with pytest.raises(UserError, match="collection_sha256"):
        extract(fewer, str(path), **SETTINGS)


def test_two_at_once_are_refused(ten, tmp_path, stand_in):
    collection, path = load_collection("folder", str(ten)), str(tmp_path / "x.h5")

    def progress(done, total):
        with pytest.raises(UserError, match="another extraction is writing it"):
            extract(collection, path, **SETTINGS)

    extract(collection, path, **SETTINGS, progress=progress)


def test_finished_work_is_left_alone(ten, tmp_path, stand_in):
    collection, path, said = load_collection("folder", str(ten)), tmp_path / "x.h5", []
    extract(collection, str(path), **SETTINGS)
    before = path.stat().st_mtime_ns
    stand_in.clear()
    extract(collection, str(path), **SETTINGS, say=said.append)
    assert "already finished, 10 images" in said[0]
    assert not stand_in
    with pytest.raises(UserError, match=r"config.features.pooling: 'max', but .*x.h5 holds 'avg'"):
        extract(collection, str(path), **SETTINGS, pooling="max")
    with pytest.raises(UserError, match="its 10 images or labels are not those"):
        extract(collection._replace(labels=collection.labels + 1), str(path), **SETTINGS)
    assert path.stat().st_mtime_ns == before


def test_bad_images(ten, tmp_path, stand_in):
    (ten / "class0" / "1.png").write_text("no image")
    whole = (ten / "class1" / "9.png").read_bytes()
    (ten / "class1" / "9.png").write_bytes(whole[: len(whole) - 30])
    collection, path, said = load_collection("folder", str(ten)), tmp_path / "x.h5", []
    with pytest.raises(UserError, match=r"image 'class0/1.png' cannot be used \(cannot identify.*on_bad_image=skip"):
        extract(collection, str(path), **SETTINGS)
    assert not path.exists()
    done = extract(collection, str(path), **SETTINGS, on_bad_image="skip", say=said.append)
    assert done.skipped == ("class0/1.png", "class1/9.png")
    assert [text.split(":")[0] for text in said[:2]] == [f"image {name!r} left out" for name in done.skipped]
    read = load_features(str(path))
    assert read.features[:, 1].tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    assert read.labels.tolist() == [0] * 4 + [1] * 4
    assert read.source["skipped"] == 2
    with h5py.File(path) as file:
        assert file["skipped_image_ids"].asstr()[...].tolist() == list(done.skipped)
    assert extract(collection, str(path), **SETTINGS, on_bad_image="skip").skipped == done.skipped
    with pytest.raises(UserError, match=r"'class0/1.png' cannot be used \(left out of"):
        extract(collection, str(path), **SETTINGS)


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
    extract(collection, str(whole), **SETTINGS, on_bad_image="skip")
    read = load_features(str(whole))
    assert read.features[:, 1].tolist() == [0, 2, 3, 4, 5, 6, 7, 9]
    assert read.labels.tolist() == [8, 8, 8, 8, 3, 3, 5, 5]
    assert read.coarse.tolist() == [4, 4, 4, 4, 6, 6, 6, 6]
    with h5py.File(whole) as file:
        assert (file["coarse"].dtype, file["coarse"].shape) == (np.int64, (8,))
    interrupt_after(collection, path, rows=8, on_bad_image="skip")
    assert extract(collection, str(path), **SETTINGS, on_bad_image="skip").resumed == 8
    assert path.read_bytes() == whole.read_bytes()


def test_other_coarse_labels_are_other_work(ten, tmp_path, stand_in):
    collection, path = with_coarse(ten), tmp_path / "x.h5"
    others = [collection._replace(coarse=None), collection._replace(coarse=collection.coarse + 1)]
    interrupt_after(collection, path, rows=4)
    for other in others:
        with pytest.raises(UserError, match="collection_sha256"):
            extract(other, str(path), **SETTINGS)
    assert extract(collection, str(path), **SETTINGS).resumed == 4
    for other in others:
        with pytest.raises(UserError, match="its 10 images or labels are not those"):
            extract(other, str(path), **SETTINGS)


def test_resumed_run_may_not_inherit_a_bad_image(ten, tmp_path, stand_in):
    (ten / "class0" / "1.png").write_text("no image")
    collection, path = load_collection("folder", str(ten)), tmp_path / "x.h5"
    interrupt_after(collection, path, rows=4, on_bad_image="skip")
    with pytest.raises(UserError, match=r"'class0/1.png' cannot be used"):
        extract(collection, str(path), **SETTINGS)


def test_nothing_but_bad_images(tmp_path, stand_in):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_text("no image")
    with pytest.raises(UserError, match="none of 1 images can be read"):
        extract(load_collection("folder", str(tmp_path)), str(tmp_path / "x.h5"), **SETTINGS, on_bad_image="skip")


@pytest.mark.parametrize(("scale", "dtype"), [(1, np.float16), (364, np.float32)])
def test_float16_where_it_fits(ten, tmp_path, monkeypatch, scale, dtype):
    def load(*settings):
        return room.Extractor(lambda scales: scales[0].mean((1, 2)) * np.float32(scale), (3,), {})

    monkeypatch.setattr(room, "load_extractor", load)
    extract(load_collection("folder", str(ten)), str(tmp_path / "x.h5"), **SETTINGS)
    features = load_features(str(tmp_path / "x.h5")).features
    assert features.dtype == dtype
    assert features[9].tolist() == [180 * scale, 9 * scale, 0]  # 180 * 364 = 65520 is beyond float16's 65504


def test_features_that_are_not_finite(ten, tmp_path, monkeypatch):
    def run(scales):
        features = scales[0].mean((1, 2), dtype=np.float32)
        return np.where(features[:, :1] == 120, np.nan, features)  # image 6

    monkeypatch.setattr(room, "load_extractor", lambda *settings: room.Extractor(run, (3,), {}))
    with pytest.raises(UserError, match=r"features of image 'class1/6.png' are not finite"):
        extract(load_collection("folder", str(ten)), str(tmp_path / "x.h5"), **SETTINGS)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(backbone="ResNet-50"), r"config.features.backbone: 'ResNet-50' is unknown; did you mean 'resnet50'"),
        (dict(fit="stretch"), r"config.features.fit: 'stretch' is unknown; take one of squash, pad, crop"),
        (dict(pooling="mean"), r"config.features.pooling: 'mean'"),
        (dict(on_bad_image="ignore"), r"config.features.on_bad_image: 'ignore'"),
        (dict(image_size=(31, 224)), r"config.features.image_size: \(31, 224\); .* at least 32 each"),
        (dict(image_size=224), r"config.features.image_size: 224"),
        (dict(image_size=[(224, 224), (5,)]), r"config.features.image_size"),
        (dict(image_size=()), r"config.features.image_size"),
        (dict(image_size=[(64, 64), (96, 96)], pooling="spatial"), r"config.features.pooling: 'spatial'"),
    ],
)
def test_settings_that_cannot_work(changed, message):
    good = dict(backbone="mobilenet_v2", image_size=(64, 64), fit="squash", pooling="avg", on_bad_image="stop")
    check_settings(**good)
    with pytest.raises(UserError, match=message):
        check_settings(**{**good, **changed})


def test_empty_path_and_unwritable_place(ten, tmp_path):
    collection = load_collection("folder", str(ten))
    with pytest.raises(UserError, match=r"config.features.path: empty means the bundled file"):
        extract(collection, "", **SETTINGS)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"config.features.path: cannot write"):
        extract(collection, str(tmp_path / "file" / "x.h5"), **SETTINGS)


def test_small_batches_are_the_whole_batch():
    """On a CPU the batch is cut up inside the program, and put together again in order."""
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
    seen = []

    def features(params, scales):
        seen.append(scales[0].shape[0])
        return params * scales[0].astype(np.float32).sum((1, 2))

    run = jax.jit(room._in_small_batches(features))
    np.testing.assert_array_equal(run(2.0, (images,)), 2 * images.astype(np.float32).sum((1, 2)))
    large = np.zeros((6, 224, 224, 3), np.uint8)
    run(2.0, (large,))
    assert seen == [6, 2]  # 6 images of 64 x 64 fit at once, and 2 of 224 x 224


@pytest.mark.slow
def test_real_network_spatial_pooled_and_multi_scale(ten):
    batch = np.stack(
        [fit_image(Image.effect_noise((80, 60), 90).convert("RGB"), (64, 96), "squash")[0] for _ in range(2)]
    )
    maps = load_extractor("mobilenet_075", "none", (64, 96), "squash", "spatial")
    pooled = load_extractor("mobilenet_075", "none", (64, 96), "squash", "avg")
    twice = load_extractor("mobilenet_075", "none", ((64, 96), (64, 96)), "squash", "avg")
    assert maps.shape == (2, 3, 768)
    assert maps.source["weights_sha256"] == pooled.source["weights_sha256"]
    assert maps.source["preprocessing"] == "tf"
    average = np.asarray(maps.run((batch,))).mean((1, 2))
    np.testing.assert_allclose(pooled.run((batch,)), average, rtol=1e-4, atol=1e-6)
    unit = average / np.linalg.norm(average, axis=1, keepdims=True)
    np.testing.assert_allclose(twice.run((batch, batch)), 2 * unit, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_bundled_features_are_what_extract_makes(tmp_path, monkeypatch):
    """A sample of the bundled file is rebuilt from the photos, where those and the weights are there."""
    images, keras_home = SHARED / "data" / "ukbench1000", SHARED / "keras"
    if not images.is_dir() or not keras_home.is_dir():
        pytest.skip(f"no {images} or no {keras_home}: the photos and the weights are not part of the project")
    monkeypatch.setenv("KERAS_HOME", str(keras_home))
    bundled = load_features()
    sample = np.array([0, 3, 157, 158, 500, 731, 998, 999])
    whole = load_collection("ukbench", str(images))
    part = whole._replace(
        image_ids=whole.image_ids[sample], labels=whole.labels[sample], read=lambda row: whole.read(int(sample[row]))
    )
    keys = ("backbone", "weights", "image_size", "fit", "pooling")
    path = str(tmp_path / "x.h5")
    extract(part, path, **{key: bundled.source[key] for key in keys}, batch_size=8)
    rebuilt = load_features(path)
    assert rebuilt.source["weights_sha256"] == bundled.source["weights_sha256"]
    assert rebuilt.image_ids.tolist() == bundled.image_ids[sample].tolist()
    # float16 holds 11 bits: one rounding step apart at most where the sums differ in their last bits
    np.testing.assert_allclose(rebuilt.features, bundled.features[sample], rtol=2**-10, atol=1e-4)
    assert Path(bundled_path()).stat().st_size < 3_000_000
