"""Weights files of torch without torch: strides by hand, and nothing but tensors gets through."""

import hashlib
import os
import pickle

import numpy as np
import pytest

from fgis.errors import UserError
from fgis.features.backbones.torch_pickle import read_torch_file
from tests.features.torch_files import SYSTEM, Storage, View, file_bytes, pickled, whole

SHARED = Storage("7", np.arange(12.0))
VIEWS = {
    "plain": View(SHARED, 0, (3, 4), (4, 1)),
    "transposed": View(SHARED, 0, (4, 3), (1, 4)),
    "part": View(SHARED, 5, (2, 2), (4, 1)),
    "repeated": View(SHARED, 3, (2, 2), (0, 1)),
    "number": View(Storage("8", np.array([2.5])), 0, (), ()),
    "nothing": View(Storage("9", np.array([])), 0, (0, 3), (3, 1)),
}


def read(tmp_path, data):
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    return read_torch_file(path)


def test_views_by_hand(tmp_path):
    data = file_bytes(VIEWS)
    found = read(tmp_path, data)
    assert {name: value.tolist() for name, value in found.tensors.items()} == {
        "plain": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
        "transposed": [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]],
        "part": [[5, 6], [9, 10]],
        "repeated": [[3, 4], [3, 4]],
        "number": 2.5,
        "nothing": [],
    }
    assert {value.dtype for value in found.tensors.values()} == {np.dtype(np.float32)}
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    with pytest.raises(ValueError, match="read-only"):
        found.tensors["plain"][0, 0] = 1


class Harmful:
    """What runs a command where a file is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_that_a_file_says_is_run(tmp_path, protocol):
    target = tmp_path / "harm"
    for harm in (Harmful(os.mkdir, str(target)), {"a": Harmful(eval, f"__import__('os').mkdir({str(target)!r})")}):
        with pytest.raises(UserError, match=r"^/.*weights.pth: does not hold tensors alone, or is damaged \("):
            read(tmp_path, file_bytes({}, state=pickle.dumps(harm, protocol)))
        assert not target.exists()
        pickle.loads(pickle.dumps(harm, protocol))  # which would have run it
        target.rmdir()


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (b"cbuiltins\neval\n.", "names 'builtins.eval', which no tensor needs"),
        (b"ctorch\nload\n.", "names 'torch.load', which no tensor needs"),
        (b"ccollections\nOrderedDict\n(]tR.", "calls collections.OrderedDict with unknown arguments"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "calls torch._utils._rebuild_tensor_v2 with unknown arguments"),
        (b"ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage with unknown arguments"),
        (pickle.dumps({"a": 1}, 2), "something else than a dictionary of tensors"),
        (pickle.dumps([1], 2), "something else than a dictionary of tensors"),
        (pickle.dumps({1: 2}, 2), "a key that is no text"),
        (pickle.dumps({(1,): 2}, 2), "a key that is no text"),
        (b"}" + b"(" * 50_000 + b"t" * 50_000 + b"}s.", "a key that is no text"),
        (b"K\x01Q.", "something that is no storage"),
        (b"K\x01\x85Q.", "something that is no storage"),
        (b"h\x05.", "5"),
        (b"\x86.", "takes what it has not put"),
        (b"t.", "pop from empty list"),
        (b"\x8c\x01a\x93.", "the instruction SHORT_BINUNICODE, which no tensor needs"),
        (b"(I1\nl.", "the instruction INT, which no tensor needs"),
        (b"b.", "pop from empty list"),
        (b"j\xff\xff\xff\xff.", "4294967295"),
        (b"X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
    ],
)
def test_pickles_of_other_things_are_refused(tmp_path, state, reason):
    with pytest.raises(UserError, match=reason):
        read(tmp_path, file_bytes({}, state=state))


@pytest.mark.parametrize(
    "view",
    [
        View(SHARED, 0, (13,), (1,)),  # one too many
        View(SHARED, 1, (3, 4), (4, 1)),
        View(SHARED, 0, (2,), (12,)),
        View(SHARED, 0, (2,), (-1,)),  # before the first
        View(SHARED, -1, (2,), (1,)),
        View(SHARED, 0, (-1,), (1,)),
        View(SHARED, 0, (2**62, 2**62), (0, 0)),
        View(SHARED, 0, (2**80,), (1,)),
        View(SHARED, 0, (3, 4), (1,)),
        View(SHARED, 0, (1,) * 100, (1,) * 100),
        View(SHARED, 0, (1.5,), (1,)),
        View(SHARED, 0, 3, 1),
        View(SHARED, 0, "ab", "cd"),
    ],
)
def test_a_view_beyond_its_storage_is_refused(tmp_path, view):
    with pytest.raises(UserError, match="does not hold tensors alone, or is damaged"):
        read(tmp_path, file_bytes({"outside": view}))


def test_a_damaged_file_is_refused_wherever_it_is_cut(tmp_path):
    data = file_bytes(VIEWS)
    for length in range(len(data)):
        with pytest.raises(UserError, match=r"^/.*weights.pth: "):
            read(tmp_path, data[:length])
    with pytest.raises(UserError, match="bytes follow the last storage"):
        read(tmp_path, data + b"\0")


def test_a_changed_byte_is_refused_or_gives_tensors(tmp_path):
    data, generator, refused = file_bytes(VIEWS), np.random.default_rng(0), 0
    for _ in range(500):
        changed = bytearray(data)
        changed[generator.integers(len(data))] = generator.integers(256)
        try:
            found = read(tmp_path, bytes(changed))
        except UserError:
            refused += 1
        else:
            assert all(isinstance(value, np.ndarray) for value in found.tensors.values())
    assert 100 < refused < 490


def test_other_kinds_of_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"torch's zip format; write it again by torch.save"):
        read(tmp_path, b"PK\x03\x04" + bytes(100))
    for data in (b"", b"no weights", b"\x89HDF\r\n\x1a\n", pickled({})):
        with pytest.raises(UserError, match="is no weights file of torch"):
            read(tmp_path, data)
    with pytest.raises(UserError, match="its version is not 1001"):
        read(tmp_path, file_bytes(VIEWS, version=1000))
    with pytest.raises(UserError, match="big-endian"):
        read(tmp_path, file_bytes(VIEWS, system={**SYSTEM, "little_endian": False}))


def test_a_tensor_without_its_storage_is_refused(tmp_path):
    data = file_bytes({"a": whole("1", [1.0, 2.0])})
    assert data.count(pickled(["1"])) == 1
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path, data.replace(pickled(["1"]), pickled([]))[: -8 - 8])
