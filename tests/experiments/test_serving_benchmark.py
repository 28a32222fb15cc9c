"""The benchmark of the search page, in small: a made-up gallery is indexed and served by the real commands."""

import sys

import pytest

from experiments.benchmarks import serving


@pytest.mark.slow
def test_a_made_up_gallery_is_served(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "REPEATS", 3)
    serving.fill(tmp_path / "images", tmp_path / "gallery", 120)
    rows = {row["case"]: row for row in serving.measure(tmp_path / "gallery")}
    assert list(rows) == ["index_again", "start", "upload", "search", "click", "page"]
    assert all(row["seconds"] > 0 for row in rows.values())
    assert rows["start"]["megabytes"] > 50


def test_too_few_photos_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["serving", "--photos=3"])
    with pytest.raises(SystemExit):
        serving.main()
    assert "--photos: 3 found; write at least 100" in capsys.readouterr().err
