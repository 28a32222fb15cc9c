"""Extraction in shares: the joined file is the file of one extraction."""

import os

import numpy as np
import pytest
from PIL import Image

from fgis.errors import UserError
from fgis.features import description
from fgis.features.collection import load_collection
from fgis.features.description import Extractor, Settings
from fgis.features.extract import extract
from fgis.features.extract_shares import extract_joined, extract_share, found_shares, share_rows
from fgis.features.shares import Share
from fgis.features.store import load_features

SETTINGS = Settings("mobilenet_v2", (32, 40), weights="none", batch_size=4, on_bad_image="skip")
QUIET = {"say": lambda text: None}


@pytest.fixture
def described(monkeypatch):
    """The first channel of every image that the stand-in network was shown; ``[0]`` is what it multiplies by."""
    seen = [1.0]

    def load(settings, devices=()):
        def run(scales):
            means = scales[0].mean((1, 2), dtype=np.float32)
            seen.extend(means[:, 1].tolist())
            return means * np.float32(seen[0])

        source = {key: getattr(settings, key) for key in ("backbone", "weights", "image_size", "fit", "pooling")}
        return Extractor(run, lambda: (3,), source | {"weights_sha256": f"{seen[0]}"})

    monkeypatch.setattr(description, "load_extractor", load)
    return seen


@pytest.fixture
def images(tmp_path):
    """18 images in two classes; image i is (10 * i, i + 1, 0), and number 5 is bad."""
    for i in range(18):
        place = tmp_path / "images" / f"class{i // 9}" / f"{i:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (10 * i, i + 1, 0)).save(place)
    (tmp_path / "images" / "class0" / "05.png").write_text("no image")
    return load_collection("folder", str(tmp_path / "images"))


@pytest.mark.parametrize("of", [1, 2, 3, 5])
def test_shares_are_whole_batches_and_every_image_once(of):
    rows = [share_rows(18, Share(number, of), 4) for number in range(1, of + 1)]
    assert np.concatenate(rows).tolist() == list(range(18))
    assert all(len(one) % 4 == 0 for one in rows[:-1])


@pytest.mark.parametrize("begun", [(1, 2, 3), (2,), (3, 1)])
def test_joined_file_is_that_of_one_extraction(images, tmp_path, described, begun):
    whole, path = tmp_path / "whole.h5", tmp_path / "new" / "x.h5"
    extract(images, str(whole), SETTINGS, **QUIET)
    for number in begun:
        extract_share(images, str(path), SETTINGS, Share(number, 3), **QUIET)
    assert not path.exists()
    del described[1:]
    said, seen = [], []
    done = extract_joined(images, str(path), SETTINGS, progress=lambda *at: seen.append(at), say=said.append)
    assert path.read_bytes() == whole.read_bytes()
    assert (done.images, done.skipped) == (17, ("class0/05.png",))
    lacking = [f"shard {number}/3: not finished; what it lacks is described here" for number in {1, 2, 3} - {*begun}]
    assert [line for line in said if "not finished" in line] == lacking
    shown = {1: 4, 2: 8, 3: 8}  # 18 images are five batches of 4
    assert len(described[1:]) == sum(shown[number] for number in {1, 2, 3} - {*begun})
    assert not seen or seen[-1][1] == 18
    assert extract_joined(images, str(path), SETTINGS, **QUIET).resumed == 17  # finished: the shares are not read


def test_killed_share_is_finished_by_the_join(images, tmp_path, described):
    def stop(done, total):
        raise KeyboardInterrupt

    path = str(tmp_path / "x.h5")
    with pytest.raises(KeyboardInterrupt):
        extract_share(images, path, SETTINGS, Share(2, 2), progress=stop, **QUIET)
    assert found_shares(path) == [Share(2, 2)]
    del described[1:]
    extract_joined(images, path, SETTINGS, **QUIET)
    assert len(described[1:]) == 16  # two batches of share 1, and two of three of share 2
    assert load_features(path).features[:, 1].tolist() == [i + 1 for i in range(18) if i != 5]


def test_shares_that_do_not_belong_together(images, tmp_path, described):
    path = str(tmp_path / "x.h5")
    extract_share(images, path, SETTINGS, Share(1, 2), **QUIET)
    described[0] = 2.0  # other weights
    with pytest.raises(UserError, match=r"x.2-of-2.h5: was made with another weights_sha256 than .*x.1-of-2.h5"):
        extract_joined(images, path, SETTINGS, **QUIET)
    assert not os.path.exists(path)
    extract_share(images, path, SETTINGS, Share(3, 3), **QUIET)
    with pytest.raises(UserError, match=r"different divisions beside it \(x.1-of-2.h5, x.2-of-2.h5, x.3-of-3.h5\)"):
        extract_joined(images, path, SETTINGS, **QUIET)


def test_more_shares_than_batches(images, tmp_path, described):
    path = str(tmp_path / "x.h5")
    with pytest.raises(UserError, match=r"x.1-of-9.h5: would hold none of 18 images, .* batches of 4; write fewer"):
        extract_share(images, path, SETTINGS, Share(1, 9), **QUIET)
    extract_share(images, path, SETTINGS, Share(9, 9), **QUIET)
    assert extract_joined(images, path, SETTINGS, **QUIET).images == 17


def test_one_share_beyond_float16_makes_all_float32(images, tmp_path, described):
    path = str(tmp_path / "x.h5")
    described[0] = 400.0  # 400 * 170 is beyond float16's 65504, 400 * 70 is not
    for number in (1, 2):
        extract_share(images, path, SETTINGS, Share(number, 2), **QUIET)
    extract_joined(images, path, SETTINGS, **QUIET)
    features = load_features(path).features
    assert features.dtype == np.float32
    assert features[:, 0].tolist() == [4000.0 * i for i in range(18) if i != 5]
