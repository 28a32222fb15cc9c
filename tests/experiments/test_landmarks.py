"""The command of the landmark data sets on features whose ranking is known by hand."""

import json

import numpy as np
import pytest

from experiments import landmarks
from fgis.base import FeatureSet
from fgis.features.store import write_features
from tests.features.test_landmark_sets import make_oxford


def write(path, ids, features, is_query=None):
    labels = np.arange(len(ids))
    write_features(path, FeatureSet(np.array(features, np.float32), labels, np.array(ids), {}, is_query=is_query))


def run(tmp_path, capsys, *arguments):
    code = landmarks.main([*arguments, f"--tables={tmp_path}"])
    out, error = capsys.readouterr()
    return code, out, error


def angles(*degrees):
    return [[np.cos(np.radians(x)), np.sin(np.radians(x))] for x in degrees]


def test_oxford_at_three_difficulties(tmp_path, capsys):
    """The query lies at 0 degrees: park_7 (junk) at 10, hall_1 (hard) at 20, park_8 at 25, hall_2 (easy) at 30.

    Easy: park_7 and hall_1 are junk, so that hall_2 has rank 1: (0 + 1/2) / 2. Medium: ranks 0 and 2, which is 1/2 and
    (1/2 + 2/3) / 2 for the second half. Hard: hall_1 has rank 0.
    """
    ids = ["hall_000001.jpg", "hall_000002.jpg", "park_000007.jpg", "park_000008.jpg", "query/hall_000003.jpg"]
    write(tmp_path / "x.h5", ids, angles(20, 30, 10, 25, 0), np.array([False, False, False, False, True]))
    images = f"--images={make_oxford(tmp_path / 'roxford5k')}"
    code, out, _ = run(tmp_path, capsys, "--dataset=roxford5k", images, f"--features.path={tmp_path / 'x.h5'}")
    assert code == 0
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    found = [row["figures"][name]["mAP"]["mean"] for name in ("easy", "medium", "hard")]
    np.testing.assert_allclose(found, [1 / 4, 1 / 2 + (1 / 2 + 2 / 3) / 4, 1])


def test_holidays(tmp_path, capsys):
    """100000 finds 100101 before its own 100001: precision 0 at rank 0, 1/2 at rank 1, by the trapezoid rule 1/4."""
    write(tmp_path / "x.h5", ["100000.jpg", "100001.jpg", "100100.jpg", "100101.jpg"], angles(0, 20, 80, 10))
    code, out, _ = run(tmp_path, capsys, "--dataset=holidays", f"--features.path={tmp_path / 'x.h5'}")
    assert code == 0
    figures = json.loads(out.splitlines()[-1])["rows"][0]["figures"]["all"]
    assert figures["mAP"]["mean"] == pytest.approx(1 / 4)  # 100100, too, finds one of the other group first
    assert figures["mP@1"]["mean"] == 0


def test_what_is_missing_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(tmp_path, capsys, "--dataset=rparis6k")
    assert code == 2
    assert (
        "features/rparis6k.h5: no such file; run `python -m fgis.main --config=configs/landmarks.py:rparis6k" in error
    )
    write(tmp_path / "x.h5", ["hall_000001.jpg", "hall_000002.jpg"], angles(0, 1))
    images = f"--images={make_oxford(tmp_path / 'roxford5k')}"
    code, _, error = run(tmp_path, capsys, "--dataset=roxford5k", images, "--features.path=x.h5")
    assert (code, error.count("\n")) == (2, 1)
    assert "image 'query/hall_000003.jpg' is not in the feature file; extract all images" in error
    code, _, error = run(tmp_path, capsys, "--dataset=roxford5k", "--workdir=nowhere", "--features.path=x.h5")
    assert (code, error) == (
        2,
        "landmarks: --workdir=nowhere: holds no config.json of a run; leave it out, or name one\n",
    )
