"""A folder that is described in shards: the same gallery as in one go, whatever was killed or is missing."""

import sqlite3

import numpy as np
import pytest

from fgis.experiment.galleries import load_gallery
from fgis.features.shares import Share
from fgis.gallery.scan import scan_folder
from fgis.gallery.shards import share_of
from fgis.main import main
from tests.gallery.photos import TINY, save

IMAGES = 14


@pytest.fixture
def index(tmp_path, monkeypatch, network, capfd):
    monkeypatch.chdir(tmp_path)
    for number in range(IMAGES):
        save(tmp_path / "photos" / f"object{number % 3}" / f"{number}.png", number)

    def index(*arguments, gallery="gallery"):
        code = main(["--mode=index", "--images=photos", f"--gallery={gallery}", *TINY, *arguments])
        return (code, *capfd.readouterr())

    return index


def test_every_file_belongs_to_one_shard(index, tmp_path):
    scan = scan_folder(tmp_path / "photos")
    shares = [share_of(scan, Share(number, 3)).files for number in (1, 2, 3)]
    assert sorted(one for files in shares for one in files) == scan.files
    assert all(shares)


def test_three_shards_are_one_gallery(index, network):
    assert index(gallery="alone")[0] == 0
    described, network.described = network.described, 0
    for number in (3, 1, 2):
        code, output, errors = index(f"--shard={number}/3")
        assert (code, errors) == (0, "")
        assert f"shard {number}/3: " in output
    assert network.described == described == IMAGES
    code, output, errors = index()
    assert (code, errors) == (0, "")
    assert network.described == IMAGES  # nothing was described again
    assert output.count("pictures taken over") == 3
    one, other = load_gallery("alone"), load_gallery("gallery")
    assert [x._replace(modified_ns=0) for x in one.records] == [x._replace(modified_ns=0) for x in other.records]
    np.testing.assert_array_equal(one.search.features, other.search.features)
    assert index()[1].splitlines()[-1].startswith(f"{IMAGES} images in the gallery (nothing new)")


def test_what_a_missing_or_unfinished_shard_lacks_is_described(index, network):
    index("--shard=1/3")
    index("--shard=2/3")
    with sqlite3.connect("gallery/shards/2-of-3/gallery.sqlite") as connection:  # as a killed process leaves it
        connection.execute("DELETE FROM images WHERE rowid IN (SELECT rowid FROM images LIMIT 2)")
        connection.execute("DELETE FROM contents WHERE sha256 NOT IN (SELECT sha256 FROM images)")
        connection.execute("UPDATE meta SET value = 'false' WHERE key = 'finished'")
    connection.close()
    before = network.described
    code, output, _ = index()
    assert code == 0
    assert "not finished: 2, 3 of 3 shards; what they lack is described here" in output
    assert 2 < network.described - before < IMAGES
    assert len(load_gallery("gallery").records) == IMAGES


def test_what_is_wrong_is_one_line(index, tmp_path):
    for text in ("0/3", "4/3", "a", "1/0"):
        code, _, errors = index(f"--shard={text}")
        assert (code, errors.count("\n")) == (2, 1)
        assert f"--shard={text!r} found; write i/n with i from 1 to n" in errors
    index("--shard=1/3")
    index("--shard=1/2")
    code, _, errors = index()
    assert (code, errors.count("\n")) == (2, 1)
    assert "shards of different divisions (1-of-2, 1-of-3); remove those of one" in errors
    assert not (tmp_path / "gallery" / "neighbours.npz").exists()


def test_shards_of_other_features_are_refused(index):
    index("--shard=1/2", "--config.features.fit=pad")
    code, _, errors = index("--config.features.fit=squash")
    assert (code, errors.count("\n")) == (2, 1)
    assert "config.features.fit" in errors


def test_shards_with_other_windows_are_refused_before_anything_is_taken_over(index):
    index("--shard=1/2", "--tiles=64,32")
    code, _, errors = index()
    assert (code, errors.count("\n")) == (2, 1)
    assert "no --tiles: gallery/shards/1-of-2 was indexed with --tiles=64,32; leave it so" in errors
    index("--shard=2/2", "--tiles=64,32")
    assert index("--tiles=64,32")[0] == 0
    assert load_gallery("gallery").search.windows is not None
