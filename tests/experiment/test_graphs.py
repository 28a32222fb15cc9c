"""The neighbours of a gallery's images on disk: kept, read again, and computed anew where they are of other images."""

import numpy as np
import pytest

from fgis.experiment import graphs
from fgis.retrieval.graph import DEEPEST

EMBEDDINGS = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)


def count_searches(monkeypatch):
    calls, search = [], graphs.search
    monkeypatch.setattr(graphs, "search", lambda *arguments: calls.append(1) or search(*arguments))
    return calls


def test_they_are_computed_once(tmp_path, monkeypatch):
    calls = count_searches(monkeypatch)
    first, second = (graphs.keep_graph(tmp_path, EMBEDDINGS, {"generation": 3, "power": 0.5}) for _ in range(2))
    assert len(calls) == 1
    assert first.rows.shape == (40, DEEPEST)
    np.testing.assert_array_equal(first.rows[:, 0], np.arange(40))
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.distances, second.distances)
    assert [path.name for path in tmp_path.iterdir()] == [graphs.NAME]


def test_they_are_computed_anew_for_other_images_and_where_the_file_is_damaged(tmp_path, monkeypatch):
    calls = count_searches(monkeypatch)
    graphs.keep_graph(tmp_path, EMBEDDINGS, {"generation": 3})
    graphs.keep_graph(tmp_path, EMBEDDINGS[::-1], {"generation": 4})
    assert len(calls) == 2
    path = tmp_path / graphs.NAME
    unknown, encrypted = (bytearray(path.read_bytes()) for _ in range(2))
    entry = unknown.index(b"PK\x01\x02")  # of the archive's table of contents
    unknown[entry + 10], encrypted[entry + 8] = 99, 1  # how the first member is packed, and that it has a password
    for content in (b"", b"no archive", path.read_bytes()[:-200], np.ones(3).tobytes(), unknown, encrypted):
        path.write_bytes(content)
        found = graphs.keep_graph(tmp_path, EMBEDDINGS[::-1], {"generation": 4})
        np.testing.assert_array_equal(found.rows[:, 0], np.arange(40))
    assert len(calls) == 8


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    place = tmp_path / "file"
    place.write_text("no folder")
    assert graphs.keep_graph(place, EMBEDDINGS[:3], {}).rows.shape == (3, 3)


@pytest.mark.parametrize("count", [1, 2])
def test_small_galleries(tmp_path, count):
    assert graphs.keep_graph(tmp_path, EMBEDDINGS[:count], {}).rows.shape == (count, count)
