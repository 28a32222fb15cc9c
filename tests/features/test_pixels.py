"""Copies of images beside features: how they are made, joined, stored and read."""

import h5py
import numpy as np
import pytest
from PIL import Image

from fgis.errors import UserError
from fgis.features import description, pixels, store
from fgis.features.collection import load_collection
from fgis.features.description import Settings, check_settings
from fgis.features.extract import extract

SETTINGS = Settings("mobilenet_v2", (32, 32), weights="none", batch_size=4, pixels=(4, 2))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Five images, of which image i is 10 · i on the left and 200 on the right; the network gives the mean colour."""
    monkeypatch.setattr(description, "load_backbone", lambda name, weights: (mean_colour, [], "digest"))
    for i in range(5):
        canvas = np.full((8, 8, 3), 200, np.uint8)
        canvas[:, :4] = 10 * i
        (tmp_path / "images" / "one").mkdir(parents=True, exist_ok=True)
        Image.fromarray(canvas).save(tmp_path / "images" / "one" / f"{i}.png")
    return load_collection("folder", str(tmp_path / "images"))


def mean_colour(params, x):
    return x.astype("float32").mean(axis=(1, 2), keepdims=True)


def test_copies_by_hand():
    canvas = np.zeros((224, 224, 3), np.uint8)
    canvas[5, 9] = 250  # in the cell of row 1 and column 2 of 56, and of row 0 and column 1 of 28
    image = Image.fromarray(canvas)
    for side, place in ((56, (1, 2)), (28, (0, 1))):
        found = pixels.shrink_image(image, side, "max")
        assert np.argwhere(found[..., 0]).tolist() == [list(place)]
        assert found[place].tolist() == [250] * 3
    assert pixels.shrink_image(image, 57).shape == (57, 57, 3)
    assert pixels.shrink_image(image, 57).max() < 250  # a mean
    flat = Image.new("RGB", (50, 20), (1, 2, 3))
    assert (pixels.shrink_image(flat, 29) == [1, 2, 3]).all()
    assert (pixels.shrink_image(flat, 28, "max") == [1, 2, 3]).all()


def test_rows_and_their_parts():
    rng = np.random.default_rng(0)
    copies = [rng.integers(0, 256, (2, side, side, 3)).astype(np.uint8) for side in (3, 2)]
    rows = np.asarray(pixels.join_pixels(np.array([[7.0], [8.0]], np.float32), copies))
    assert rows.shape == (2, 1 + pixels.pixel_count((3, 2))) == (2, 1 + 27 + 12)
    assert rows[:, 0].tolist() == [7, 8]
    found = pixels.split_pixels(np.rint(rows[:, 1:] * 255).astype(np.uint8), (3, 2))
    assert list(found) == ["pixels_3", "pixels_2"]
    for one, other in zip(found.values(), copies, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_extraction_keeps_copies_beside_features(images, tmp_path):
    path = str(tmp_path / "x.h5")
    extract(images, path, SETTINGS, say=lambda text: None)
    with h5py.File(path) as file:
        assert {name: (file[name].shape, file[name].dtype.name) for name in ("features", "pixels_4", "pixels_2")} == {
            "features": ((5, 3), "float16"), "pixels_4": ((5, 4, 4, 3), "uint8"), "pixels_2": ((5, 2, 2, 3), "uint8")
        }  # fmt: skip
        np.testing.assert_array_equal(file["pixels_2"][3, :, 1], [[200 - 24] * 3] * 2)  # of a filter 8 pixels wide
        copies = file["pixels_2"][...]
    alone, joined = store.open_rows(path), store.open_rows(path, (2,))
    assert (alone.shape, joined.shape) == ((5, 3), (5, 3 + 12))
    found = joined.read(np.array([4, 1]))
    np.testing.assert_array_equal(found[:, :3], alone.read(np.array([4, 1])))
    np.testing.assert_allclose(found[:, 3:] * 255, copies[[4, 1]].reshape(2, -1), atol=1e-4)


def test_files_of_other_copies_are_refused(images, tmp_path):
    path = str(tmp_path / "x.h5")
    extract(images, path, SETTINGS._replace(pixels=()), say=lambda text: None)
    for attempt in (
        lambda: store.open_rows(path, (4,)),
        lambda: extract(images, path, SETTINGS, say=lambda text: None),
    ):
        with pytest.raises(UserError, match=r"x\.h5: has no copies of 4 × 4 pixels beside pooled features; extract"):
            attempt()
    other = str(tmp_path / "y.h5")
    extract(images, other, SETTINGS._replace(pixels=(28,)), say=lambda text: None)
    with pytest.raises(UserError, match="made with shrink 'mean', not 'max'"):
        extract(images, other, SETTINGS._replace(pixels=(28,), shrink="max"), say=lambda text: None)
    assert extract(images, other, SETTINGS._replace(pixels=()), say=lambda text: None).images == 5


def test_sides_and_poolings_without_copies_are_refused():
    with pytest.raises(ValueError, match="pixels: maxima of cells need sides that divide 224, and 57 does not"):
        check_settings(SETTINGS._replace(pixels=(57,), shrink="max"))
    with pytest.raises(ValueError, match="pixels: copies stand beside pooled features"):
        check_settings(SETTINGS._replace(pooling="spatial"))
    check_settings(SETTINGS._replace(pixels=(56, 28), shrink="max"))
