"""The benchmark of memory, in small: its cases run, its files are read, and an unknown case is one line."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import memory
from fgis.features.store import load_features


def test_cases_in_memory_run_on_one_large_class():
    x, labels = memory.uneven(90, 50, 10, 8)
    assert x.shape == (90, 8)
    assert np.bincount(labels).tolist() == [50, 10, 10, 10, 10]
    values = memory.evaluation(90, 50, ("map@r", "tied"))()
    assert values["map@r"].shape == (90,)
    assert memory.open_set(90, 50)()[2].shape == (90,)
    assert len(memory.class_tables(90, 50)().seeds) == 18


@pytest.mark.slow
def test_commands_read_the_file_that_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "BLOCK", 100)
    memory.write_file(f"{tmp_path}/features.h5", 330, 16)
    held = load_features(tmp_path / "features.h5")
    assert (held.features.shape, held.features.dtype) == ((330, 16), np.float16)
    assert np.bincount(held.labels).tolist() == [10] * 33
    assert 7 in memory.search(str(tmp_path))()
    assert memory.command(str(tmp_path), *memory.training_flags(10, 20))() == 0
    with pytest.raises(SystemExit, match="exit code 2"):
        memory._once(memory.command, (str(tmp_path), "--config.seeds=0"))(None)


def test_an_unknown_case_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["memory", "--cases=10m"])
    with pytest.raises(SystemExit):
        memory.main()
    assert "--cases: '10m' is none of 6k_equal_classes, " in capsys.readouterr().err
