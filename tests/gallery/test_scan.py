"""What counts as an image of a folder: names only, nothing is opened."""

import os

import pytest

from fgis.errors import UserError
from fgis.gallery.scan import scan_folder


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def ids(root):
    return [file.image_id for file in scan_folder(root).files]


def test_images_are_found_at_any_depth_and_the_first_sub_folder_is_the_label(tmp_path):
    touch(tmp_path / "top.JPG", tmp_path / "pear" / "1.png", tmp_path / "pear" / "2019" / "may" / "2.heic")
    touch(tmp_path / "b.jfif", tmp_path / "c.jpe", tmp_path / "logo.png" / "d.webp")
    assert [(file.image_id, file.label) for file in scan_folder(tmp_path).files] == [
        ("b.jfif", ""), ("c.jpe", ""), ("logo.png/d.webp", "logo.png"), ("pear/1.png", "pear"),
        ("pear/2019/may/2.heic", "pear"), ("top.JPG", ""),
    ]  # fmt: skip


def test_hidden_files_and_folders_are_ignored_and_other_files_counted(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "._a.jpg", tmp_path / "x" / ".ipynb_checkpoints" / "a.jpg")
    touch(tmp_path / "film.MOV", tmp_path / "x" / "film.mov", tmp_path / "note")
    assert ids(tmp_path) == ["a.jpg"]
    assert scan_folder(tmp_path).others == {".mov": 2, "": 1}


def test_links_are_followed_but_nothing_is_listed_twice(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root / "x" / "1.jpg", outside / "deep" / "2.jpg")
    (root / "a_loop").symlink_to(root)
    (root / "x" / "up").symlink_to(tmp_path)  # holds the root as well
    (root / "b_copy").symlink_to(root / "x")
    (root / "c_same.jpg").symlink_to(root / "x" / "1.jpg")
    (root / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    os.link(root / "x" / "1.jpg", root / "hard.jpg")
    found = scan_folder(root).files
    assert [file.image_id for file in found] == ["gone.jpg", "hard.jpg", "x/1.jpg", "x/up/outside/deep/2.jpg"]
    assert [file.bytes for file in found] == [-1, 1, 1, 1]


def test_an_empty_folder_is_one_line(tmp_path):
    touch(tmp_path / "note.txt")
    with pytest.raises(UserError, match="no image in this folder"):
        scan_folder(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        scan_folder(tmp_path / "nowhere")
