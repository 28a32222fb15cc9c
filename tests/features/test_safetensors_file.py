"""Safetensors files: every type that is read, and every way in which a file can contradict itself."""

import hashlib
import struct

import numpy as np
import pytest

from fgis.errors import UserError
from fgis.features.backbones.safetensors_file import read_safetensors
from tests.features.safetensors_files import header_bytes, safetensors_bytes

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def read(path, data):
    path.write_bytes(data)
    return read_safetensors(path)


def test_tensors_of_every_type_that_is_read(tmp_path):
    """1, -2 and 0.5 as BF16 are the upper halves of their float32: 0x3F80, 0xC000, 0x3F00."""
    whole = {"a": A, "half": A.astype(np.float16), "ids": np.arange(3), "none": np.zeros((0, 4), np.float32)}
    data = safetensors_bytes(whole, metadata={"format": "pt"})
    (length,) = struct.unpack("<Q", data[:8])
    place = [len(data) - 8 - length, len(data) - 2 - length]
    whole = safetensors_bytes(whole, {"b": {"dtype": "BF16", "shape": [3], "data_offsets": place}})
    data = whole + struct.pack("<3H", 0x3F80, 0xC000, 0x3F00)
    found = read(tmp_path / "x.safetensors", data)
    assert sorted(found.tensors) == ["a", "b", "half", "none"]  # whole numbers are no weights
    np.testing.assert_array_equal(found.tensors["a"], A)
    np.testing.assert_array_equal(found.tensors["half"].astype(np.float32), A)
    assert found.tensors["b"].astype(np.float32).tolist() == [1, -2, 0.5]
    assert found.tensors["none"].shape == (0, 4)
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    with pytest.raises(ValueError, match="read-only"):
        found.tensors["a"][0, 0] = 1


GOOD = safetensors_bytes({"a": A})


def entry(**changes):
    return safetensors_bytes({"a": A}, {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it has 0 bytes"),
        (GOOD[:5], "it has 5 bytes"),
        (GOOD[:40], "its header would have .* bytes, the file has 40"),
        (GOOD[:-1], "its tensors have 24 bytes, 23 follow the header"),
        (GOOD + b"x", "its tensors have 24 bytes, 25 follow the header"),
        (struct.pack("<Q", 2**63) + b"{}", "its header would have 9223372036854775808 bytes"),
        (struct.pack("<Q", 2) + b"[]", "its header is no JSON object"),
        (struct.pack("<Q", 4) + b'{"a:', "its header is no JSON"),
        (struct.pack("<Q", 4) + b'{"\xff"', "its header|decode"),
        (struct.pack("<Q", 200_006) + b'{"a":' + b"[" * 200_000 + b"}", "recursion|nest|its header is no JSON"),
        (struct.pack("<Q", 16) + b'{"a": 1, "a": 2}', "its header names something twice"),
        (header_bytes({"a": 3}), "a: no type, shape and place"),
        (entry(dtype="F31"), "a: the type 'F31' is unknown"),
        (entry(dtype=[]), "a: the type"),
        (entry(shape=[2, 4]), r"a: 24 bytes for the shape \(2, 4\) of F32"),
        (entry(shape=[-2, -3]), "not of whole numbers"),
        (entry(shape=[2.0, 3]), "not of whole numbers"),
        (entry(shape=[True, 6]), "not of whole numbers"),
        (entry(shape=[2**40, 2**40]), "a: 24 bytes for the shape"),
        (entry(data_offsets=[24, 0]), "a: -24 bytes"),
        (entry(data_offsets=[8, 32]), "a: begins at byte 8, not 0"),
        (entry(data_offsets=[0]), "not of whole numbers"),
        (safetensors_bytes({"a": A, "b": A}, {"b": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}),
         "b: begins at byte 0, not 24"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a pointer of Git LFS"),
        (b"PK\x03\x04" + bytes(50), "it is a file of torch"),
    ],
)  # fmt: skip
def test_a_file_that_is_cut_off_or_contradicts_itself_is_one_line(tmp_path, data, reason):
    path = tmp_path / "x.safetensors"
    with pytest.raises(
        UserError, match=rf"(?i)^{path}: is no whole safetensors file \(.*({reason}).*\); fetch it again$"
    ):
        read(path, data)


def test_sizes_are_checked_before_memory_is_taken(tmp_path):
    """A gigabyte is declared, none is there."""
    path = tmp_path / "x.safetensors"
    header = header_bytes({"a": {"dtype": "F32", "shape": [2**28], "data_offsets": [0, 2**30]}})
    path.write_bytes(header)
    with pytest.raises(UserError, match="its tensors have 1073741824 bytes, 0 follow the header"):
        read_safetensors(path)
