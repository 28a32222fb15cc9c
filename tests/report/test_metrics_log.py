import json

import numpy as np

from fgis.report import records


def test_json_is_plain_and_whole(tmp_path):
    path = tmp_path / "x.json"
    content = {"a": (1, np.float32(0.5)), "b": float("nan"), "c": np.arange(3), "d": {"e": np.inf}}
    records.write_json(path, content)
    assert json.loads(path.read_text()) == {"a": [1, 0.5], "b": None, "c": [0, 1, 2], "d": {"e": None}}
    assert records.read_json(path) == json.loads(path.read_text())
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_what_is_missing_or_damaged_reads_as_nothing(tmp_path):
    (tmp_path / "half.json").write_text('{"a": [1,')
    assert records.read_json(tmp_path / "half.json") is None
    assert records.read_json(tmp_path / "none.json") is None


def test_records_rewind_to_a_step_and_pass_over_a_half_written_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (2, 4, 6):
        records.append_record(path, {"step": step, "loss": np.array([0.5, np.nan])})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    records.rewind_records(path, 4)
    assert records.read_records(path) == [{"step": 2, "loss": [0.5, None]}, {"step": 4, "loss": [0.5, None]}]
    records.rewind_records(path, 0)
    assert path.read_text() == ""
