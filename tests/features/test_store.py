"""The feature file: what goes in comes out, rows are read in place, and every defect is named."""

import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from fgis.base import FeatureSet
from fgis.errors import UserError
from fgis.features import store
from fgis.features.labels import find_split, find_unnamed, number_labels
from fgis.features.store import Blocks, check_features, image_sizes, load_features, open_rows, write_features

SOURCE = {
    "backbone": "mobilenet_v2",
    "weights": "imagenet",
    "image_size": (336, 448),
    "fit": "squash",
    "pooling": "avg",
}


def example(n=5, dtype=np.float16):
    features = (np.arange(n * 3, dtype=dtype).reshape(n, 3) - 2) / 4
    return FeatureSet(features, np.arange(n) // 2, np.array([f"é/{i}.jpg" for i in range(n)]), SOURCE)


def published(path, **replaced):
    """A file with the three published datasets only, ids as bytes."""
    data = {
        "image_ids": np.array([b"a", b"b", b"c"]),
        "labels": np.array([0, 0, 7], np.int32),
        "features": np.eye(3, 4),
    }
    with h5py.File(path, "w") as file:
        for name, value in {**data, **replaced}.items():
            if value is not None:
                file[name] = value
    return str(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_round_trip(tmp_path, dtype):
    path, written = str(tmp_path / "new" / "x.h5"), example(dtype=dtype)
    write_features(path, written, {"thumbnail_57": np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2)})
    read = load_features(path)
    np.testing.assert_array_equal(read.features, written.features)
    assert read.features.dtype == dtype
    assert read.labels.tolist() == [0, 0, 1, 1, 2]
    assert read.image_ids.tolist() == written.image_ids.tolist()
    assert dict(read.source) == {**SOURCE, "image_size": [336, 448], "complete": True}
    assert load_features(path, ("thumbnail_57",)).features["thumbnail_57"][4].tolist() == [[16, 17], [18, 19]]
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["x.h5"]
    with pytest.raises(UserError, match="no dataset 'mask'"):
        load_features(path, ("mask",))


def test_coarse_labels(tmp_path):
    path, coarse = str(tmp_path / "x.h5"), np.array([7, 7, -2, -2, 7], np.int16)
    write_features(path, example()._replace(coarse=coarse), {"mask": np.arange(5)})
    for read in (load_features(path), load_features(path, ("mask",)), open_rows(path)):
        assert read.labels.tolist() == [0, 0, 1, 1, 2]
        assert read.coarse.tolist() == [7, 7, -2, -2, 7]
        assert read.coarse.dtype == np.int64
    with h5py.File(path) as file:
        assert file["coarse"].dtype == np.int64
    write_features(path, example())
    assert load_features(path).coarse is None
    assert open_rows(path).coarse is None
    with h5py.File(path, "a") as file:
        file["coarse"] = coarse
    assert load_features(path).coarse.dtype == np.int64
    with h5py.File(path, "a") as file:
        del file["coarse"]
        file.create_group("coarse")
    with pytest.raises(UserError, match="coarse is a group; store one integer for each of 5 images"):
        open_rows(path)


def test_find_split():
    labels = np.array([5, -1, 5, 9, -1, 9])
    assert find_split(labels, np.array([1, 2, 1, 1, 2, 1])) is None
    assert find_split(labels, np.array([1, 2, 1, 1, 0, 1])) == (1, 4)
    assert find_split(labels, np.array([1, 2, 1, 0, 0, 1])) == (1, 4)  # the first row that disagrees
    assert find_split(labels, labels) is None


def test_label_names(tmp_path):
    path, names = str(tmp_path / "x.h5"), ("kiwi", "crème", "pear", "no image")
    write_features(path, example()._replace(label_names=names))
    assert load_features(path).label_names == open_rows(path).label_names == names
    with pytest.raises(ValueError, match=r"^label_names: 2 names, none of which is that of 2"):
        write_features(path, example()._replace(label_names=names[:2]))
    assert load_features(path).label_names == names  # as it was
    write_features(path, example())
    assert load_features(path).label_names is None


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 0, 2], [b"a", b"b"], "2 label_names, none of which is that of label 2"),
        ([0, -1, 0], [b"a"], "1 label_names, none of which is that of label -1"),
        ([0, 0, 0], np.array([], "S1"), "0 label_names, none of which is that of label 0"),
        ([0, 0, 0], [1, 2], "label_names is no list of texts"),
        ([0, 0, 0], [b"\xff"], "/label_names holds text that is not UTF-8"),
    ],
)
def test_label_names_that_do_not_fit(tmp_path, labels, names, message):
    path = published(tmp_path / "x.h5", labels=np.array(labels), label_names=names)
    for read in (load_features, open_rows):
        with pytest.raises(UserError, match=rf"^/.*x.h5: {message}"):
            read(path)


def test_numbers_and_names_of_labels():
    assert number_labels(["7", "+3", "-0"]) == ([7, 3, 0], None)
    assert number_labels(["7", "b", "a", "7"]) == ([0, 2, 1, 0], ("7", "a", "b"))
    assert number_labels([]) == ([], None)
    assert find_unnamed(("a", "b"), np.array([1, 0])) is None
    assert find_unnamed(("a", "b"), np.array([1, -3, 2])) == -3


def test_home_folder_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_features("~/new/x.h5", example())
    assert (tmp_path / "new" / "x.h5").is_file()
    assert len(load_features("~/new/x.h5").labels) == len(open_rows("~/new/x.h5").labels) == 5
    with pytest.raises(UserError, match=r"^~/gone.h5: no such file"):
        load_features("~/gone.h5")


def test_image_sizes():
    assert image_sizes((3, 4)) == image_sizes([[3, 4]]) == image_sizes(np.array([3, 4])) == ((3, 4),)
    assert image_sizes([(3, 4), (5, 6)]) == ((3, 4), (5, 6))
    for wrong in (224, "224", (), (3,), (3, 4, 5), [(3, 4), 5], (0, 4), (3.5, 4), None, {"height": 3}):
        with pytest.raises(ValueError, match=r"^image_size: .* found; write \(height, width\) or a list of such"):
            image_sizes(wrong)


def test_same_content_same_bytes(tmp_path):
    write_features(str(tmp_path / "a"), example())
    time.sleep(1.1)  # HDF5 can record times, in whole seconds
    write_features(str(tmp_path / "b"), example())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = str(tmp_path / "x.h5")
    write_features(path, example())

    def blocks():
        yield np.zeros((2, 3), np.float16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(path, example()._replace(features=Blocks((5, 3), np.float16, blocks())))
    np.testing.assert_array_equal(load_features(path).features, example().features)
    assert [f.name for f in tmp_path.iterdir()] == ["x.h5"]


def test_published_file(tmp_path):
    path = published(tmp_path / "x.h5", features=np.arange(24.0).reshape(3, 2, 2, 2))
    read = load_features(path)
    assert read.features.shape == (3, 2, 2, 2)
    assert read.features.dtype == np.float32
    assert read.image_ids.tolist() == ["a", "b", "c"]
    assert read.labels.tolist() == [0, 0, 7]
    assert read.coarse is None
    check_features(read, path, {"backbone": "vgg16", "image_size": (299, 299)})  # not recorded, so not refused


@pytest.mark.parametrize("chunks", [None, (2, 3)])
def test_rows_in_any_order(tmp_path, chunks):
    path, written = str(tmp_path / "x.h5"), example()
    if chunks is None:
        write_features(path, written)
    else:
        published(path, features=None, image_ids=[str(i) for i in range(5)], labels=written.labels)
        with h5py.File(path, "a") as file:
            file.create_dataset("features", data=written.features, chunks=chunks, compression="gzip")
    rows = open_rows(path)
    assert (rows.shape, rows.dtype) == ((5, 3), np.float16)
    assert rows.labels.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(rows.read(np.array([4, 0, 4, 1])), written.features[[4, 0, 4, 1]])


def test_streamed_rows_are_checked(tmp_path):
    features = np.zeros((3, 2), np.float32)
    features[2, 1] = np.nan
    rows = open_rows(published(tmp_path / "x.h5", features=features))
    rows.read(np.array([0, 1]))
    with pytest.raises(UserError, match=r"row 2 \(image 'c'\)"):
        rows.read(np.array([0, 2, 1]))


def test_rows_are_named_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BLOCK_BYTES", 2 * 3 * 4)  # two rows at a time
    features = np.arange(15, dtype=np.float32).reshape(5, 3)
    data = dict(image_ids=list("abcde"), labels=np.arange(5))
    np.testing.assert_array_equal(
        load_features(published(tmp_path / "x.h5", features=features, **data)).features, features
    )
    features[3, 2] = np.inf
    with pytest.raises(UserError, match=r"row 3 \(image 'd'\)"):
        load_features(published(tmp_path / "x.h5", features=features, **data))


def test_too_few_rows_are_no_file(tmp_path):
    short = Blocks((5, 3), "f4", [np.zeros((2, 3))])
    with pytest.raises(ValueError, match="features: the blocks hold 2 rows, not 5"):
        write_features(str(tmp_path / "x.h5"), example()._replace(features=short))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        (dict(labels=None), r"no dataset 'labels', found \['features', 'image_ids'\]"),
        (dict(labels=np.arange(4)), r"3 image_ids, labels \(4,\) and features \(3, 4\) do not belong together"),
        (dict(features=np.eye(2)), r"do not belong together"),
        (dict(features=np.zeros((3, 0))), r"holds no feature"),
        (dict(features=np.eye(3, dtype=int)), r"features are int64"),
        (dict(labels=np.ones(3)), r"labels float64"),
        (dict(image_ids=[b"a", b"b", b"a"]), r"'a' stands in several rows"),
        (dict(coarse=np.arange(4)), r"coarse is int64 \(4,\); store one integer for each of 3 images"),
        (dict(coarse=np.zeros((3, 1), int)), r"coarse is int64 \(3, 1\)"),
        (dict(coarse=np.ones(3)), r"coarse is float64 \(3,\)"),
        (dict(coarse=np.array([b"a", b"a", b"b"])), r"coarse is \|S1 \(3,\)"),
        (
            dict(labels=np.array([7, 0, 7]), coarse=np.array([4, 4, 5])),
            r"label 7 has coarse labels 4 \(row 0\) and 5 \(row 2\); give all images of a label the same one",
        ),
        (dict(features=np.array([[0.0], [np.inf], [np.nan]])), r"row 1 \(image 'b'\)"),
    ],
)
def test_defects_are_named(tmp_path, replaced, message):
    path = published(tmp_path / "x.h5", **replaced)
    with pytest.raises(UserError, match=rf"^/.*x.h5: .*{message}") as error:
        load_features(path)
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path):
    path = tmp_path / "x.h5"
    with pytest.raises(UserError, match="no such file"):
        load_features(str(path))
    path.write_text("not HDF5 at all")
    with pytest.raises(UserError, match="damaged or no HDF5 file"):
        load_features(str(path))
    write_features(str(path), example(500))
    whole = path.read_bytes()
    for part in (0.3, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(UserError, match="damaged or no HDF5 file"):
            load_features(str(path))
        with pytest.raises(UserError, match="damaged or no HDF5 file"):
            open_rows(str(path))
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file.attrs["complete"] = False
    with pytest.raises(UserError, match="incomplete"):
        load_features(str(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [("backbone", "vgg16"), ("weights", "none"), ("image_size", (224, 224)), ("fit", "pad"), ("pooling", "max"),
     ("layer", "block_3")],
)  # fmt: skip
def test_other_settings_are_refused(tmp_path, key, value):
    path = str(tmp_path / "x.h5")
    write_features(path, example())
    read = load_features(path)
    check_features(read, path, {**SOURCE, "image_size": [336, 448], "path": path, "images": "elsewhere"})
    with pytest.raises(UserError, match=rf"^/.*x.h5: made with {key} .*, not .*; set {key} to"):
        check_features(read, path, {**SOURCE, key: value})


def test_a_file_of_another_layer_is_refused(tmp_path):
    """A file that says no layer is of the last."""
    path, one = str(tmp_path / "x.h5"), example()
    write_features(path, one._replace(source={**one.source, "layer": "block_3"}))
    read = load_features(path)
    check_features(read, path, {**SOURCE, "layer": "block_3"})
    with pytest.raises(UserError, match="made with layer 'block_3', not ''; set layer to 'block_3'"):
        check_features(read, path, {**SOURCE, "layer": ""})


def test_bundled_features():
    read = load_features()
    assert read.features.shape == (1000, 1280)
    assert read.features.dtype == np.float16
    assert read.labels.tolist() == [number // 4 for number in range(1000)]
    assert read.image_ids[157] == "ukbench00157.jpg"
    assert read.coarse is None
    expected = {**SOURCE, "collection": "ukbench"}
    check_features(read, "", expected)
    with pytest.raises(UserError, match=r"^the bundled features: made with backbone 'mobilenet_v2', not 'vgg16'"):
        check_features(read, "", {**expected, "backbone": "vgg16"})
    # Frozen cosine N-S, by a full sort: 3.937, and 3.939 on the square root, as computed with another backend.
    for power, published_score in ((1, 3.937), (0.5, 3.939)):
        x = read.features.astype(np.float64) ** power
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        top = np.argsort(-(x @ x.T), axis=1)[:, :4]
        assert (read.labels[top] == read.labels[:, None]).sum(1).mean() == pytest.approx(published_score, abs=0.0015)


def test_bundled_features_of_further_objects():
    read, first = load_features("bundled:ukbench_transfer"), load_features()
    assert (read.features.shape, read.features.dtype) == ((500, 1280), np.float16)
    numbers = [int(image_id[7:12]) for image_id in read.image_ids]
    assert numbers == [hundred + i for hundred in range(1000, 2000, 200) for i in range(100)]
    assert read.labels.tolist() == [number // 4 for number in numbers]
    assert not set(read.labels) & set(first.labels)
    made = lambda one: {key: value for key, value in one.source.items() if key != "fgis_version"}
    assert {key for key in made(read) if read.source[key] != first.source[key]} == {"collection_sha256"}


@pytest.mark.parametrize(("name", "most_bytes"), [("", 3_000_000), ("bundled:ukbench_transfer", 1_500_000)])
def test_bundled_file_is_small_and_anonymous(name, most_bytes):
    data = Path(store.bundled_path(name)).read_bytes()
    assert len(data) < most_bytes
    assert not [text for text in (b"/home", b"/work", b"/root", b"/tmp", b"/data", b"shared") if text in data]
