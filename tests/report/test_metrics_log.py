import numpy as np

from fgis.report import contents
from fgis.report.metrics_log import append_record, collapsed_runs, read_records, rewind_records


def test_records_rewind_to_a_step_and_end_before_an_incomplete_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in (2, 4, 6):
        append_record(path, {"step": step, "loss": np.array([0.5, np.nan])})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')
    assert [record["step"] for record in read_records(path)] == [2, 4, 6]
    rewind_records(path, 4)
    assert read_records(path) == [{"step": 2, "loss": [0.5, None]}, {"step": 4, "loss": [0.5, None]}]
    assert [record["step"] for record in read_records(path, last_step=2)] == [2]
    rewind_records(path, 0)
    assert path.read_text() == ""


def test_a_missing_file_has_no_records_and_stays_missing(tmp_path):
    rewind_records(tmp_path / "metrics.jsonl", 4)
    assert read_records(tmp_path / "metrics.jsonl") == []
    assert list(tmp_path.iterdir()) == []


def test_collapsed_runs_are_those_of_the_last_record():
    assert collapsed_runs([{"step": 1, "collapsed": [1.0, 1.0, 1.0]}, {"step": 2, "collapsed": [0.0, 1.0, 1.0]}]) == [
        1,
        2,
    ]
    assert collapsed_runs([]) == collapsed_runs([{"step": 1}]) == []


def test_versions_name_python_and_the_packages_that_figures_depend_on():
    assert list(contents.versions()) == ["python", "fgis", "jax", "flax", "optax", "orbax-checkpoint", "numpy"]
