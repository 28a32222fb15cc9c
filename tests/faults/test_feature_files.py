"""Feature files of strangers, and folders of images in which something is odd."""

import os
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from fgis.features import description
from tests.gallery.photos import TINY, Network, save
from tests.tiny import CONFIG

ROWS = 48
HOW = ("batch_size", "on_bad_image")  # settings that no feature file records


def huge_features(file):
    del file["features"]
    file.create_dataset("features", (ROWS, 2**33), np.float32, chunks=(1, 2**20))


def huge_ids(file):
    for name, kind in (("image_ids", h5py.string_dtype()), ("labels", np.int64)):
        del file[name]
        file.create_dataset(name, (2**34,), kind, chunks=(2**16,))


def huge_texts(file):
    del file["image_ids"]
    file.create_dataset("image_ids", (ROWS,), "S1000000000", chunks=(1,))


def huge_compressed(file):
    del file["features"]
    file.create_dataset("features", (ROWS, 2**26), np.float32, chunks=(1, 2**20), compression="gzip")


def huge_names(file):
    file.create_dataset("label_names", (2**32,), h5py.string_dtype(), chunks=(2**16,))


def huge_coarse(file):
    file.create_dataset("coarse", (2**40,), np.int64, chunks=(2**16,))


def external(file):
    del file["features"]
    file.create_dataset("features", (ROWS, 4), np.float32, external=[("/etc/passwd", 0, 4 * 4 * ROWS)])


def virtual(file):
    layout = h5py.VirtualLayout((ROWS, 4), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "features", (ROWS, 4))
    del file["features"]
    file.create_virtual_dataset("features", layout)


def external_link(file):
    del file["features"]
    file["features"] = h5py.ExternalLink("other.h5", "features")


def dangling_link(file):
    del file["labels"]
    file["labels"] = h5py.SoftLink("/nowhere")


def latin_ids(file):
    del file["image_ids"]
    file["image_ids"] = np.array([f"\u00e9{row}".encode("latin1") for row in range(ROWS)], "S8")


def latin_ids_of_any_length(file):
    del file["image_ids"]
    texts = [f"\u00e9{row}".encode("latin1") for row in range(ROWS)]
    file.create_dataset("image_ids", data=texts, dtype=h5py.string_dtype("utf-8"))


def group_for_features(file):
    del file["features"]
    file.create_group("features")


ODD = {
    huge_features: "'features' declares 1,649,267,441,664 bytes",
    huge_ids: "'image_ids' declares 137,438,953,472 bytes",
    huge_texts: "'image_ids' declares 48,000,000,000 bytes",
    huge_compressed: "'features' declares 12,884,901,888 bytes",
    huge_names: "'label_names' declares 34,359,738,368 bytes",
    huge_coarse: "'coarse' declares 8,796,093,022,208 bytes",
    external: "'features' lies in other files",
    virtual: "'features' lies in other files",
    external_link: "'features' is a link",
    dangling_link: "no dataset 'labels'",
    latin_ids: "/image_ids holds text that is not UTF-8",
    latin_ids_of_any_length: "/image_ids holds text that is not UTF-8",
    group_for_features: "no dataset 'features'",
}


@pytest.mark.parametrize("change", ODD, ids=lambda change: change.__name__)
def test_a_file_of_a_stranger_is_refused_before_memory_is_taken(change, features, refused, train, tmp_path):
    path = tmp_path / "odd.h5"
    shutil.copy(features, path)
    shutil.copy(features, tmp_path / "other.h5")
    with h5py.File(path, "a") as file:
        change(file)
    line = refused(*train(tmp_path / "run"), f"--config.features.path={path}")
    assert f"{path}: {ODD[change]}" in line
    assert not (tmp_path / "run").exists()


BYTES = {"cut": lambda whole: whole[: len(whole) // 2], "empty": lambda whole: b"", "text": lambda whole: b"id,label\n",
         "zeros": lambda whole: bytes(len(whole))}  # fmt: skip


@pytest.mark.parametrize("content", BYTES)
def test_a_damaged_feature_file_is_refused(content, features, refused, train, tmp_path):
    path = tmp_path / "odd.h5"
    path.write_bytes(BYTES[content](features.read_bytes()))
    line = refused(*train(tmp_path / "run"), f"--config.features.path={path}")
    assert f"{path}: damaged or no HDF5 file" in line


def test_a_compressed_feature_file_is_read(features, command, train, tmp_path):
    with h5py.File(features) as whole, h5py.File(tmp_path / "small.h5", "w") as file:
        for name in whole:
            content = whole[name][...]
            packed = {"compression": "gzip"} if content.dtype.kind != "O" else {}
            file.create_dataset(name, data=content, dtype=whole[name].dtype, **packed)
    assert command(*train(tmp_path / "run"), f"--config.features.path={tmp_path / 'small.h5'}").code == 0


def test_a_file_that_another_process_writes_is_not_called_damaged(features, refused, train, tmp_path):
    path = tmp_path / "held.h5"
    shutil.copy(features, path)
    program = "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        line = refused(*train(tmp_path / "run"), f"--config.features.path={path}")
        other.stdin.close()
    assert f"{path}: another process has it open for writing; wait until that one closes it" in line


def test_a_file_that_may_not_be_read_is_not_called_damaged(features, refused, train, public, unprivileged):
    path = public / "mine.h5"
    shutil.copy(features, path)
    path.chmod(0)
    with unprivileged():
        line = refused(*train(public / "run"), f"--config.features.path={path}")
    assert f"{path}: may not be read; look at its permissions" in line


@pytest.fixture
def photos(tmp_path, monkeypatch):
    def load(settings, devices=()):
        said = {**settings._asdict(), "weights_sha256": "5" * 64}
        return Network()(settings)._replace(source={key: value for key, value in said.items() if key not in HOW})

    monkeypatch.setattr(description, "load_extractor", load)
    for number in range(16):
        save(tmp_path / "photos" / f"object{number // 4}" / f"{number}.jpg", number)
    return tmp_path / "photos"


@pytest.fixture
def describe(photos, tmp_path):
    """The words of an extraction of ``photos``."""
    words = ("--config.features.collection=folder", f"--config.features.images={photos}", *TINY)
    return lambda *more: [CONFIG, "--mode=extract", f"--config.features.path={tmp_path / 'x.h5'}", *words, *more]


def test_a_pipe_named_like_an_image_is_named(photos, describe, refused, command):
    os.mkfifo(photos / "object0" / "pipe.jpg")
    assert "image 'object0/pipe.jpg': cannot be used (no regular file)" in refused(*describe())
    ended = command(*describe("--config.features.on_bad_image=skip"))
    assert ended.code == 0


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"caf\xe9/a.jpg"])
def test_a_name_that_is_not_utf8_is_refused_before_anything_is_described(name, photos, describe, refused, tmp_path):
    place = os.path.join(os.fsencode(photos / "object0"), name)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    shutil.copy(photos / "object0" / "0.jpg", place)
    line = refused(*describe())
    assert "config.features.images: the name 'object0/caf\\xe9" in line
    assert line.endswith("is not UTF-8; rename it")
    assert not (tmp_path / "x.h5").exists()


def test_an_image_replaced_under_its_name_is_noticed(photos, describe, command, tmp_path):
    assert command(*describe()).code == 0
    again = command(*describe())
    assert again.code == 0, again.errors
    assert "newer" not in again.output
    save(photos / "object0" / "0.jpg", 99)
    later = os.stat(tmp_path / "x.h5").st_mtime + 10
    os.utime(photos / "object0" / "0.jpg", (later, later))
    output = command(*describe()).output
    assert "to extract again if images were replaced: 1 are newer than it, 'object0/0.jpg' first" in output


def test_images_that_went_bad_after_extraction_leave_a_report(photos, describe, command, tmp_path):
    assert command(*describe()).code == 0
    for path in (photos / "object0").glob("*.jpg"):
        path.write_bytes(path.read_bytes()[:50])
    (photos / "object1" / "4.jpg").unlink()
    words = [word for word in describe() if word != "--mode=extract"]
    small = ("--config.seeds=1", "--config.folds=2", "--config.train.total_steps=4", "--config.sampler.pk.classes=2",
             "--config.train.record_every_steps=2", "--config.train.checkpoint_every_steps=4",
             "--config.head.residual.rank=4", "--config.evaluation.resamples=5")  # fmt: skip
    ended = command(*words, *small, f"--workdir={tmp_path / 'run'}")
    assert (ended.code, ended.errors) == (0, "")
    assert (tmp_path / "run" / "report.html").exists()
