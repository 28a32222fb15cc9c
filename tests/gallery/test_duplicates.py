"""Duplicates that are planted among photos made here: each kind is found, and nothing else is."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from fgis.gallery.duplicates import FORMS, _read_grey, _turn, compare_pictures, find_duplicates
from fgis.gallery.index import index_folder, make_thumbnail
from fgis.gallery.loaded import LoadedGallery
from fgis.gallery.scan import scan_folder
from fgis.gallery.search import SearchGallery
from fgis.gallery.store import open_store
from fgis.retrieval.search import prepare_gallery
from tests.gallery.photos import SETTINGS, Network, photo, save

Turn = Image.Transpose


def large(seed):
    return photo(seed, (240, 180))


def copies(image):
    """{name: a duplicate of an image of 240 x 180}."""
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=40)
    return {
        "resized": image.resize((150, 112), Image.Resampling.LANCZOS), "jpeg": Image.open(jpeg),
        "cropped": image.crop((20, 5, 236, 167)), "mirrored": image.transpose(Turn.FLIP_LEFT_RIGHT),
        "left": image.transpose(Turn.ROTATE_90), "right": image.transpose(Turn.ROTATE_270),
        "cut_left": image.transpose(Turn.ROTATE_90).crop((8, 20, 170, 236)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """20 photos; of the first three all copies, of the fourth the same bytes under another name."""
    place = tmp_path_factory.mktemp("place")
    for seed in range(20):
        large(seed).save(place / f"{seed:02}.png")
    for seed in range(3):
        for name, image in copies(large(seed)).items():
            image.save(place / f"{seed:02}_{name}.{'jpg' if name == 'jpeg' else 'png'}")
    save(place / "flat.png", 0)
    Image.new("RGB", (90, 70), "grey").save(place / "flat.png")
    Image.new("RGB", (70, 90), "white").save(place / "white.png")
    shutil.copy(place / "03.png", place / "sub.png")
    return place


@pytest.fixture(scope="module")
def loaded(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    with open_store(folder, create=True) as store:
        index_folder(scan_folder(place), store, SETTINGS, Network())
    store = open_store(folder)
    features = store.vectors().astype(np.float32)
    prepared, records = prepare_gallery(features), store.records()
    ids = np.array([one.image_id for one in records])
    search = SearchGallery(
        features, prepared, features, prepared, np.arange(len(ids)), ids, lambda x: x, lambda x: x, None, ""
    )
    return LoadedGallery(search, records, (), lambda image: features[:1], store.thumbnail, lambda image_id: None, "")


def relations(group):
    return {one.image_id.rpartition(".")[0].partition("_")[2]: one.relation for one in group.copies}


def test_every_kind_of_copy_is_found_and_nothing_else(loaded):
    told = []
    groups = find_duplicates(loaded, progress=lambda done, total: told.append((done, total)))
    assert [sorted({one.image_id[:2] for one in group.copies}) for group in groups] == [
        ["00"], ["01"], ["02"], ["03", "su"]
    ]  # fmt: skip
    assert [len(group.copies) for group in groups] == [8, 8, 8, 2]
    assert told[-1][0] == told[-1][1]
    for seed, group in enumerate(groups[:3]):
        assert group.copies[0].image_id == f"{seed:02}.png"
        found = relations(group)
        assert found.pop("") == ""
        assert found == {
            "resized": "resized", "jpeg": "saved again", "cropped": "a part of it", "mirrored": "mirrored",
            "left": "turned by 90° to the left", "right": "turned by 90° to the right",
            "cut_left": "turned by 90° to the left, a part of it",
        }  # fmt: skip
    assert [one.relation for one in groups[3].copies] == ["", "same bytes"]
    assert all(one.agreement >= 0.95 for group in groups for one in group.copies)


def test_a_threshold_of_one_finds_the_same_bytes_alone(loaded):
    (group,) = find_duplicates(loaded, threshold=1.0)
    assert {one.image_id for one in group.copies} == {"03.png", "sub.png"}
    with pytest.raises(ValueError, match="threshold"):
        find_duplicates(loaded, threshold=1.5)


def test_the_forms_are_what_their_names_say():
    picture = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    image = Image.fromarray(picture)
    mirrored = image.transpose(Turn.FLIP_LEFT_RIGHT)
    made = {
        "": image, "mirrored": mirrored, "turned by 90° to the left": image.transpose(Turn.ROTATE_90),
        "turned by 180°": image.transpose(Turn.ROTATE_180),
        "turned by 90° to the right": image.transpose(Turn.ROTATE_270),
        "turned by 90° to the left and mirrored": mirrored.transpose(Turn.ROTATE_270),
        "turned by 90° to the right and mirrored": mirrored.transpose(Turn.ROTATE_90),
        "turned upside down and mirrored": image.transpose(Turn.FLIP_TOP_BOTTOM),
    }  # fmt: skip
    for form, name in enumerate(FORMS):  # the form is what has to be done to the copy to get the picture back
        np.testing.assert_array_equal(_turn(np.asarray(made[name]), form), picture)


def test_agreement_is_a_correlation_and_says_which_is_a_part_of_which():
    grey = lambda image: _read_grey(make_thumbnail(image))
    whole, part = grey(large(0)), grey(large(0).crop((20, 5, 236, 167)))
    assert compare_pictures(whole, part, [0])[1:] == (0, "second")
    assert compare_pictures(part, whole, [0])[1:] == (0, "first")
    assert compare_pictures(whole, whole, [0]).score == pytest.approx(1)
    brighter = (whole // 2 + 60).astype(np.uint8)  # brightness and contrast do not matter
    assert compare_pictures(whole, brighter, [0]).score > 0.999
    assert compare_pictures(whole, grey(large(7)), range(8)).score < 0.8
