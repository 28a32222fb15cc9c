"""A few inputs of every target of ``tests.faults.fuzz``, and those that once were no refusal of one line."""

import json
import pickle
import random
import sqlite3
from contextlib import closing

import h5py
import numpy as np
import pytest

from fgis.errors import UserError
from fgis.features import description
from tests.faults import fuzz_features, fuzz_galleries, fuzz_lists, fuzz_runs
from tests.faults.fuzz import find_targets, outcome

COUNT, OF_GALLERIES = 30, 8
SLOW = ("read_back", "checkpoint")  # a training, and some hundred files for each input


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.slow] * (one in SLOW)) for one in find_targets()]
)
def test_damaged_input_is_accepted_or_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.setattr(description, "load_extractor", description.load_extractor)  # a target replaces it
    target = find_targets()[name]
    (tmp_path / "state").mkdir()
    state = target.prepare(tmp_path / "state")
    for number in range(OF_GALLERIES if name == "gallery" else COUNT):
        content = target.damage(state, random.Random(f"{name} 0 {number}"))
        found = outcome(target, state, content, tmp_path)
        assert found in ("accepted", "refused"), f"number {number}: {found}"


@pytest.fixture
def refused(tmp_path):
    """Checks an input of a target, which has to be refused; returns the line."""

    def refused(target, state, content):
        with pytest.raises(UserError) as caught:
            target.check(state, content, tmp_path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refused


def without_shape(file):
    del file["image_ids"]
    file["image_ids"] = h5py.Empty("S3")


def one_skipped(file):
    del file["skipped_image_ids"]
    file["skipped_image_ids"] = "a"


def group_of_skipped(file):
    del file["skipped_image_ids"]
    file.create_group("skipped_image_ids")


def table_of_ids(file):
    del file["image_ids"]
    file["image_ids"] = np.full((12, 4), b"a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_shape, "'image_ids' has no shape"), (one_skipped, "skipped_image_ids is no list of texts"),
        (group_of_skipped, "skipped_image_ids is no list of texts"), (table_of_ids, "image_ids is no list of texts"),
    ],
)  # fmt: skip
def test_feature_files_of_odd_kinds(change, words, refused, tmp_path):
    files = fuzz_features.prepare_files(tmp_path)
    (tmp_path / "x.h5").write_bytes(files.whole[2])
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        change(file)
    line = refused(fuzz_features.TARGETS["feature_file"], files, (tmp_path / "x.h5").read_bytes())
    assert words in line


def test_texts_without_an_end_are_refused_where_hdf5_would_read_for_ever(refused, tmp_path):
    files = fuzz_features.prepare_files(tmp_path)
    content = bytearray(files.whole[0])
    heap = content.index(b"GCOL")
    place, free = heap + 16, heap + int.from_bytes(content[heap + 8 : heap + 16], "little")
    while content[place : place + 2] != b"\0\0":  # objects, up to the free space behind them
        place += 16 + -(-int.from_bytes(content[place + 8 : place + 16], "little") // 8) * 8
    assert place < free
    content[place + 8 : place + 16] = bytes(8)
    line = refused(fuzz_features.TARGETS["feature_file"], files, bytes(content))
    assert "a list of texts without an end" in line


@pytest.mark.parametrize(
    ("line", "words"),
    [(b"1", "its first line is no header"), (b"", "its first line says the same in other words")],
)
def test_a_journal_whose_header_is_another_object(line, words, refused, tmp_path):
    whole = fuzz_features.prepare_journal(tmp_path)
    content = line + b"\n" + whole if line else b" " + whole
    assert words in refused(fuzz_features.TARGETS["journal"], whole, content)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("words", np.ones((6, 64), np.float32), "its arrays do not fit each other"),
        ("words", np.ones((0, 128), np.float32), "its words are no matrix"),
        ("words", np.full((6, 128), "a"), "it holds arrays of other types"),
        ("occurs", np.ones((5,), np.float32), "its arrays do not fit each other"),
        ("images", np.array(0), "are not above 0"),
    ],
)
def test_vocabularies_of_other_shapes(name, array, words, refused, tmp_path):
    arrays = fuzz_features.prepare_vocabulary(tmp_path)["bag_of_words_tf_idf"] | {name: array}
    np.savez(tmp_path / "y.npz", **arrays)
    state = {"bag_of_words_tf_idf": arrays}
    assert words in refused(fuzz_features.TARGETS["vocabulary"], state, (tmp_path / "y.npz").read_bytes())


def test_pieces_that_are_nested_too_deep(refused, tmp_path):
    assert "is not that of the network" in refused(fuzz_features.TARGETS["pieces"], None, b"[" * 100_000)


def test_pieces_with_a_number_below_zero(refused, tmp_path):
    files = fuzz_features.prepare_pieces(tmp_path)
    document = json.loads(files["tokenizer.json"])
    document["model"]["vocab"]["a"] = -1
    content = json.dumps(document).encode()
    assert "the piece 'a' has no whole number from 0 on" in refused(fuzz_features.TARGETS["pieces"], files, content)


def test_landmarks_whose_names_are_numbers(refused):
    truth = pickle.dumps(fuzz_lists.TRUTH | {"imlist": [1, 2, 3, 4]}).decode("latin-1")
    content = json.dumps(["landmarks", {"gnd_roxford5k.pkl": truth}]).encode()
    assert "a name of an image that is no text" in refused(fuzz_lists.TARGETS["ground_truth"], None, content)


def test_a_saved_configuration_with_a_dot_in_a_key(refused):
    assert "run/config.json: " in refused(fuzz_runs.TARGETS["config"], None, b'{"a.b": 1}')


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    monkeypatch.setattr(description, "load_extractor", description.load_extractor)
    (tmp_path / "state").mkdir()
    return fuzz_galleries.prepare_galleries(tmp_path / "state")


COMMANDS = (
    "UPDATE contents SET vector = x'00'", "UPDATE contents SET vector = NULL", "UPDATE images SET label = NULL",
    "UPDATE contents SET width = 'x'", "UPDATE images SET image_id = '' WHERE rowid = 1",
    "ALTER TABLE contents DROP COLUMN vector", "UPDATE meta SET value = 'x'", "DROP TABLE meta",
    "UPDATE meta SET value = '[1e9]' WHERE key = 'shape'", "UPDATE meta SET value = '[2, 96]' WHERE key = 'shape'",
    f"UPDATE contents SET vector = x'{'ff' * 384}' WHERE rowid = 1",
)  # fmt: skip


@pytest.mark.parametrize("number", [0, 1], ids=["pictures", "windows"])
def test_databases_that_no_gallery_writes(number, gallery, refused):
    name = fuzz_galleries.DATABASE
    for command in (
        *COMMANDS,
        *["UPDATE tiles SET x = 'x'", "UPDATE meta SET value = '[1]' WHERE key = 'tiles'"] * number,
    ):
        gallery.place.write_bytes(gallery.files[number][name])
        with closing(sqlite3.connect(gallery.place, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute(command)
        content = json.dumps([number, name, gallery.place.read_bytes().decode("latin-1")]).encode()
        assert "gallery.sqlite: " in refused(fuzz_galleries.TARGETS["gallery"], gallery, content), command


@pytest.mark.parametrize("text", ["[]", '"a"', "{", '{"version": 1, "config": 3}', '{"version": 2}'])
def test_descriptions_that_no_gallery_has(text, gallery, refused):
    content = json.dumps([0, "gallery.json", text]).encode()
    assert "gallery.json: " in refused(fuzz_galleries.TARGETS["gallery"], gallery, content)


def test_features_of_which_nothing_says_how_they_were_made_are_not_mixed_with_others(gallery, tmp_path):
    place = tmp_path / "gallery"
    place.mkdir()
    (place / "gallery.sqlite").write_bytes(gallery.files[0]["gallery.sqlite"])
    scan, root = fuzz_galleries.galleries.scan_images(str(gallery.images), place)
    about = fuzz_galleries.About(root, gallery.config, "", None, "")
    with pytest.raises(UserError, match=r"gallery\.json: lost, and nothing else says how"):
        fuzz_galleries.galleries.index_gallery(gallery.config, scan, about, place)
