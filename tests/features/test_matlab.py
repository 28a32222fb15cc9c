"""MATLAB files as SciPy writes them, packed and not; damage is a ``ValueError``, never a crash."""

import numpy as np
import pytest
from scipy.io import savemat

from fgis.features.matlab import read_matlab

RECORDS = np.array([("a.jpg", 7, [1.5, 2]), ("é.jpg", 300, [])], [("path", "O"), ("class", "O"), ("box", "O")])
VARIABLES = {"records": RECORDS, "names": np.array(["Audi", "été"], object), "text": "abc", "number": 2.5, "empty": []}
READ = {
    "records": [{"path": "a.jpg", "class": [7], "box": [1.5, 2.0]}, {"path": "é.jpg", "class": [300], "box": []}],
    "names": ["Audi", "été"], "text": "abc", "number": [2.5], "empty": [],
}  # fmt: skip


@pytest.fixture(params=[False, True])
def path(request, tmp_path):
    savemat(tmp_path / "x.mat", VARIABLES, do_compression=request.param)
    return tmp_path / "x.mat"


def test_cells_structures_texts_and_numbers_are_read(path):
    assert read_matlab(path) == READ


@pytest.mark.parametrize("length", [0, 100, 128])
def test_a_file_without_variables(path, length):
    path.write_bytes(path.read_bytes()[:length])
    if length == 128:
        assert read_matlab(path) == {}
    else:
        with pytest.raises(ValueError, match="no MATLAB file of version 5"):
            read_matlab(path)


def test_a_matrix_larger_than_its_file_is_refused_before_memory_is_taken(tmp_path):
    savemat(tmp_path / "x.mat", {"names": np.array(["a", "b"], object)})
    content = bytearray((tmp_path / "x.mat").read_bytes())
    place = content.index((2).to_bytes(4, "little"), 128 + 24)  # of the shape 1 x 2
    content[place : place + 4] = (2**31 - 1).to_bytes(4, "little")
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"a matrix of shape \(1, 2147483647\)"):
        read_matlab(tmp_path / "x.mat")
