import h5py
import numpy as np

from fgis.report.neighbours import write_neighbours


def test_neighbours_are_written_whole_and_reproducibly(tmp_path):
    rows, distances = np.array([[1], [0]]), np.array([[0.5], [0.5]], np.float32)
    for name in ("a.h5", "b.h5"):
        write_neighbours(tmp_path / name, np.array(["é.jpg", "b.jpg"]), np.array([3, 4]), rows, distances)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["image_ids"].asstr()[:].tolist() == ["é.jpg", "b.jpg"]
        assert file["labels"][:].tolist() == [3, 4]
        assert file["rows"][:].tolist() == [[1], [0]]
        assert file["distances"][:].tolist() == [[0.5], [0.5]]
