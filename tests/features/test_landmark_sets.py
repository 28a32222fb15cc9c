"""Miniature copies of revisited Oxford and of Holidays: cut queries, junk, labels, and what is refused."""

import pickle

import numpy as np
import pytest
from PIL import Image

from fgis.errors import UserError
from fgis.features.collection import load_collection
from fgis.features.landmark_sets import read_revisited

GROUND_TRUTH = {
    "imlist": ["hall_000001", "hall_000002", "park_000007", "park_000008"],
    "qimlist": ["hall_000003"],
    "gnd": [{"bbx": [2.0, 1.0, 12.0, 6.0], "easy": np.array([1]), "hard": [0], "junk": np.array([2])}],
}


def make_oxford(root, content=GROUND_TRUTH, name="gnd_roxford5k.pkl"):
    (root / "jpg").mkdir(parents=True, exist_ok=True)
    for image in ("hall_000001", "hall_000002", "hall_000003", "park_000007", "park_000008"):
        Image.new("RGB", (20, 10), (200, 10, 20)).save(root / "jpg" / f"{image}.jpg")
    (root / name).write_bytes(pickle.dumps(content, protocol=2))
    return root


def test_queries_are_cut_to_their_landmarks(tmp_path):
    found = load_collection("landmarks", str(make_oxford(tmp_path)))
    ids = ["hall_000001.jpg", "hall_000002.jpg", "park_000007.jpg", "park_000008.jpg", "query/hall_000003.jpg"]
    assert found.image_ids.tolist() == ids
    assert found.is_query.tolist() == [False, False, False, False, True]
    assert len(set(found.labels.tolist())) == 5  # relevance is the ground truth's, and no label says it
    assert found.read(0).size == (20, 10)
    assert found.read(4).size == (10, 5)


@pytest.mark.parametrize("name", ["../../secret", "a/b", "", "hall 1"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="names no image of the folder jpg"):
        load_collection("landmarks", str(make_oxford(tmp_path, GROUND_TRUTH | {"imlist": [name, "b", "c", "d"]})))


def test_one_ground_truth_belongs_beside_the_images(tmp_path):
    with pytest.raises(ValueError, match=r"^images: .* holds no ground truth; put one of gnd_roxford5k.pkl and"):
        load_collection("landmarks", str(tmp_path))
    make_oxford(make_oxford(tmp_path), name="gnd_rparis6k.pkl")
    with pytest.raises(ValueError, match=r"holds gnd_roxford5k.pkl and gnd_rparis6k.pkl; put one of"):
        load_collection("landmarks", str(tmp_path))


def test_holidays_have_a_label_for_each_group(tmp_path):
    for name in ("100001.jpg", "100000.jpg", "100100.jpg", "notes.txt", "1.jpg"):
        Image.new("RGB", (6, 4)).save(tmp_path / name, "JPEG")
    found = load_collection("holidays", str(tmp_path))
    assert found.image_ids.tolist() == ["100000.jpg", "100001.jpg", "100100.jpg"]
    assert found.labels.tolist() == [1000, 1000, 1001]
    with pytest.raises(ValueError, match=r"^images: no NNNNNN.jpg in"):
        load_collection("holidays", str(tmp_path.parent))


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


@pytest.mark.parametrize("content", [Harmful(), {"gnd": [Harmful()]}, {"imlist": []}, [1], "truncated", "absent"])
def test_a_pickle_that_is_no_ground_truth_is_refused_and_not_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = pickle.dumps(GROUND_TRUTH if content == "truncated" else content)
    if content != "absent":
        (tmp_path / "gnd.pkl").write_bytes(whole[: len(whole) // 2] if content == "truncated" else whole)
    with pytest.raises(UserError, match="no revisited ground truth"):
        read_revisited("gnd.pkl")
    assert not (tmp_path / "harm").exists()


def test_a_ground_truth_is_read_as_it_was_written(tmp_path):
    read = read_revisited(make_oxford(tmp_path) / "gnd_roxford5k.pkl")
    assert read["imlist"] == GROUND_TRUTH["imlist"]
    assert read["gnd"][0]["easy"].tolist() == [1]
    for box in ([5.0, 1, 2, 3], [0.0, 1, 2], [float("nan")] * 4):
        bad = {**GROUND_TRUTH, "gnd": [{**GROUND_TRUTH["gnd"][0], "bbx": box}]}
        with pytest.raises(UserError, match="no revisited ground truth"):
            read_revisited(make_oxford(tmp_path, bad) / "gnd_roxford5k.pkl")
