import numpy as np
import pytest

from fgis.retrieval import intervals
from fgis.retrieval.intervals import compare, summarize


def test_summary_resamples_objects_and_not_images():
    # Ten objects of 100 identical images: the interval must be that of ten draws, not of a thousand.
    per_object = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1.0])
    found = summarize(np.repeat(per_object, 100)[None], np.repeat(np.arange(10), 100))
    assert found["mean"] == pytest.approx(0.5)
    low, high = found["ci95"]
    assert low == pytest.approx(0.2, abs=0.05)  # binomial(10, .5): 2.5 % quantile 2, 97.5 % quantile 8
    assert high == pytest.approx(0.8, abs=0.05)


def test_summary_resamples_seeds():
    values = np.repeat([[0.0], [1.0]], 50, axis=1)  # every object agrees, the two seeds do not
    assert summarize(values, np.arange(50)) == {"mean": 0.5, "ci95": [0.0, 1.0]}


def test_summary_leaves_out_what_was_no_query():
    values = np.array([[1.0, np.nan, 0.0, np.nan], [1.0, np.nan, 1.0, np.nan]])
    assert summarize(values, np.array([0, 0, 1, 1]))["mean"] == 0.75
    nothing = summarize(np.full((1, 3), np.nan), np.arange(3))
    assert np.isnan([nothing["mean"], *nothing["ci95"]]).all()


def test_samples_are_the_same_in_blocks_of_any_size(monkeypatch):
    values, objects = np.random.default_rng(0).random((3, 40)), np.arange(40) // 4
    whole = summarize(values, objects, 50)
    monkeypatch.setattr(intervals, "DRAWS", 7 * 10)  # blocks of 7 samples of 10 objects
    found = summarize(values, objects, 50)
    assert found["mean"] == whole["mean"]
    assert found["ci95"] == pytest.approx(whole["ci95"], rel=1e-12)
    assert summarize(values, objects, 50, seed=1)["ci95"] != whole["ci95"]


def test_differences_are_paired():
    """Trained is frozen plus a constant: that interval is a point, however wide those of the rows are."""
    frozen = np.random.default_rng(0).random((1, 40))
    rows = {"frozen": frozen, "untrained": np.repeat(frozen, 3, axis=0), "trained": np.repeat(frozen + 0.01, 3, axis=0)}
    found = compare({name: {"map@r": values} for name, values in rows.items()}, np.repeat(np.arange(10), 4), 40, 500, 0)
    for difference in ("difference", "difference_untrained"):
        assert found[difference]["map@r"]["mean"] == pytest.approx(0.01)
        assert found[difference]["map@r"]["ci95"] == pytest.approx([0.01, 0.01])
    assert found["frozen"]["map@r"]["ci95"][1] - found["frozen"]["map@r"]["ci95"][0] > 0.05
    assert (found["queries"], found["gallery"], found["without_relatives"], found["tied"]) == (40, 40, 0, {})


def test_queries_without_relevant_images_are_counted():
    values = {"recall@1": np.array([[1.0, 1.0, np.nan]])}
    found = compare({name: values for name in ("frozen", "untrained", "trained")}, np.array([4, 4, 9]), 3, 10, 0)
    assert found["without_relatives"] == 1
    assert found["trained"]["recall@1"]["mean"] == 1
