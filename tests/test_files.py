"""Files are whole or absent, whatever happens while they are written."""

import math

import numpy as np
import pytest

from fgis import files


def test_a_file_that_could_not_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "deep" / "report.json"
    files.write_json(path, {"loss": np.float32(0.5), "bad": math.inf, 3: (1, 2)})
    assert files.read_json(path) == {"loss": 0.5, "bad": None, "3": [1, 2]}

    def interrupted():
        with files.replacing(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert files.read_json(path)["loss"] == 0.5
    assert [one.name for one in path.parent.iterdir()] == ["report.json"]


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / "a.txt.partial").write_text("left behind")
    files.write_text(tmp_path / "a.txt", "whole é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "whole é"
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"], ids=repr)
def test_what_is_no_json_is_none(content, tmp_path):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert files.read_json(tmp_path / "a.json") is None
