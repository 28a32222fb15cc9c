"""Indexing with a network that counts: what is described, what is kept, and what the gallery holds afterwards."""

import io
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from fgis.errors import UserError
from fgis.features.images import read_image
from fgis.gallery.index import index_folder
from fgis.gallery.scan import scan_folder
from fgis.gallery.store import Content, ImageRecord, open_store, writing
from tests.gallery.photos import SETTINGS, Network, colours, photo, save


@pytest.fixture
def images(tmp_path):
    for number in range(6):
        save(tmp_path / "images" / ("pear" if number < 3 else "") / f"{number}.png", number)
    return tmp_path / "images"


@pytest.fixture
def index(images, tmp_path):
    """Indexes ``images``; (what was done, the network)."""

    def index():
        network = Network()
        (tmp_path / "gallery").mkdir(exist_ok=True)
        with open_store(tmp_path / "gallery", create=True) as store:
            return index_folder(scan_folder(images), store, SETTINGS, network), network

    return index


def held(tmp_path):
    with open_store(tmp_path / "gallery") as store:
        return {one.image_id: (one, vector) for one, vector in zip(store.records(), store.vectors(), strict=True)}


def expected(path):
    return colours((np.asarray(read_image(path).resize((64, 64), Image.Resampling.BILINEAR))[None],))[0]


def assert_whole(images, tmp_path):
    """The gallery is exactly what the folder holds."""
    found = held(tmp_path)
    assert list(found) == [file.image_id for file in scan_folder(images).files]
    for image_id, (record, vector) in found.items():
        np.testing.assert_allclose(vector, expected(images / image_id), rtol=1e-3)
        assert (record.width, record.height) == read_image(images / image_id).size


def test_the_first_time_everything_is_described_and_the_second_time_nothing(images, index, tmp_path):
    done, network = index()
    assert (done.images, done.added, done.decoded, done.bad, network.loaded) == (6, 6, 6, (), 1)
    assert network.described == 6
    assert_whole(images, tmp_path)
    assert held(tmp_path)["pear/1.png"][0].label == "pear"
    assert held(tmp_path)["5.png"][0].label == ""
    again, network = index()
    assert again[:7] == (6, 0, 0, 0, 0, 0, ())
    assert network.loaded == 0


def test_only_new_and_changed_files_are_described_and_vanished_ones_leave(images, index, tmp_path):
    index()
    save(images / "new.png", 20)
    save(images / "4.png", 21)
    (images / "5.png").unlink()
    (images / "3.png").touch()  # another time, the same content
    done, network = index()
    assert (done.images, done.added, done.changed, done.moved, done.removed) == (6, 1, 1, 0, 1)
    assert (done.decoded, network.described) == (2, 2)
    assert_whole(images, tmp_path)
    with open_store(tmp_path / "gallery") as store:
        assert len(store.contents()) == 6  # what 4.png and 5.png were is forgotten


def test_moved_and_copied_files_keep_their_features(images, index, tmp_path):
    index()
    shutil.move(images / "pear", images / "apple")
    shutil.copy(images / "3.png", images / "copy.png")
    done, network = index()
    assert (done.images, done.added, done.moved, done.removed, done.decoded) == (7, 0, 4, 3, 0)
    assert network.loaded == 0
    assert held(tmp_path)["apple/0.png"][0].label == "apple"
    assert_whole(images, tmp_path)


def test_broken_files_are_listed_and_tried_again(images, index, tmp_path):
    index()
    whole = (images / "4.png").read_bytes()
    (images / "4.png").write_bytes(whole[:300])
    (images / "text.jpg").write_text("no image")
    (images / "gone.jpg").symlink_to(images / "nothing.jpg")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(images / "float.tif")
    (images / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    done, network = index()
    assert (done.images, done.removed, network.described) == (5, 1, 0)
    reasons = dict(done.bad)
    assert list(reasons) == ["4.png", "float.tif", "gone.jpg", "photo.heic", "text.jpg"]
    assert reasons["gone.jpg"] == "No such file or directory"
    assert "floating-point pixels" in reasons["float.tif"]
    assert "cannot identify image file" in reasons["text.jpg"]
    assert "0x" not in reasons["text.jpg"]
    with open_store(tmp_path / "gallery") as store:
        assert store.bad() == sorted(done.bad)
    (images / "4.png").write_bytes(whole)
    for name in ("text.jpg", "gone.jpg", "float.tif", "photo.heic"):
        (images / name).unlink()
    done, network = index()
    assert (done.images, done.bad, network.described) == (6, (), 1)
    assert_whole(images, tmp_path)


def test_pictures_are_upright_and_their_time_is_kept(images, index, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9003] = "2024:05:17 10:31:00"
    photo(30, (700, 200)).save(images / "turned.jpg", exif=exif)
    index()
    record = held(tmp_path)["turned.jpg"][0]
    assert (record.width, record.height, record.taken) == (200, 700, "2024-05-17 10:31:00")
    assert held(tmp_path)["3.png"][0].taken == ""
    with open_store(tmp_path / "gallery") as store:
        small = Image.open(io.BytesIO(store.thumbnail("turned.jpg")))
        assert (small.format, small.size) == ("WEBP", (91, 320))
        with pytest.raises(KeyError):
            store.thumbnail("nowhere.jpg")


def test_copies_of_what_is_stored_already_are_not_decoded(images, index):
    for number in range(30):
        shutil.copy(images / "3.png", images / f"copy{number:02}.png")
    done, network = index()
    assert (done.images, done.added) == (36, 36)
    assert network.described < 20  # those that were read ahead, before the first was stored


def test_heic_is_read_where_the_plugin_is_installed(images, index, tmp_path):
    plugin = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed; pip install pillow-heif")
    plugin.register_heif_opener()
    photo(40, (128, 96)).save(images / "photo.heic")
    done, _ = index()
    assert done.bad == ()
    assert (held(tmp_path)["photo.heic"][0].width, held(tmp_path)["photo.heic"][0].height) == (128, 96)


def test_features_that_are_not_finite_are_refused(images, tmp_path):
    (tmp_path / "gallery").mkdir()
    broken = Network()
    broken.run = lambda scales: np.full((4, 192), np.nan, np.float32)
    with open_store(tmp_path / "gallery", create=True) as store:
        with pytest.raises(UserError, match="features are not finite"):
            index_folder(scan_folder(images), store, SETTINGS, broken)
        assert store.records() == []


def test_an_image_whose_content_was_lost_is_indexed_again(images, index, tmp_path):
    index()
    with closing(sqlite3.connect(tmp_path / "gallery" / "gallery.sqlite")) as connection, connection:
        connection.execute("UPDATE images SET image_id = 'gone.png' WHERE image_id = '3.png'")
        connection.execute("DELETE FROM contents")
    assert held(tmp_path) == {}
    done, _ = index()
    assert (done.images, done.decoded) == (6, 6)
    assert_whole(images, tmp_path)


def test_features_beyond_float16_are_kept_as_float32(tmp_path):
    record = ImageRecord("a.jpg", "", 0, 0, 3, 4, "a" * 64, "")
    content = Content("a" * 64, 5, 6, "", b"webp", np.array([1e6, 1], np.float32))
    other = content._replace(sha256="b" * 64, vector=np.array([0.1, 1], np.float32))
    with open_store(tmp_path, create=True) as store:
        store.add([record._replace(image_id="b.jpg", sha256="b" * 64)], [other])
        assert store.vectors().dtype == np.float16
        store.add([record], [content])
        np.testing.assert_allclose(store.vectors(), [[1e6, 1], [np.float16(0.1), 1]])
        assert store.records()[0] == record._replace(width=5, height=6)
        with pytest.raises(UserError, match=r"damaged \(features of shape \(2,\), where its network gives \(3,\)\)"):
            store.add([record], [content._replace(sha256="c" * 64, vector=np.zeros(3, np.float32))])
        assert store.count() == 2


def test_a_reader_sees_one_moment_while_another_process_writes(tmp_path):
    record = ImageRecord("a.jpg", "", 0, 0, 3, 4, "a" * 64, "")
    content = Content("a" * 64, 5, 6, "", b"webp", np.ones(2, np.float32))
    with open_store(tmp_path, create=True) as writer, open_store(tmp_path) as reader:
        writer.add([record], [content])
        with reader.snapshot():
            assert reader.count() == 1
            writer.add([record._replace(image_id="b.jpg")])
            assert reader.count() == 1
        assert reader.count() == 2


def test_a_damaged_or_missing_gallery_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no gallery here"):
        open_store(tmp_path)
    (tmp_path / "gallery.sqlite").write_text("no database" * 100)
    with pytest.raises(UserError, match="damaged"):
        open_store(tmp_path)

    (tmp_path / "gallery.sqlite").unlink()
    open_store(tmp_path, create=True).close()
    content = (tmp_path / "gallery.sqlite").read_bytes()
    (tmp_path / "gallery.sqlite").write_bytes(content.replace(b"PRIMARY KEY, label", b"(\x80\xc2MARY KEY, label"))
    with pytest.raises(UserError, match="damaged"):  # SQLite's message quotes what is no UTF-8
        open_store(tmp_path)


def test_the_second_writer_is_told_who_the_first_is(tmp_path):
    with writing(tmp_path / "gallery"), pytest.raises(UserError, match=r"process \d+ on \S+ is indexing it"):
        writing(tmp_path / "gallery").__enter__()
    with writing(tmp_path / "gallery"):
        pass
