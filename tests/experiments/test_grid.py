import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import grid, rows
from experiments.tables import place_of
from fgis.errors import UserError
from fgis.main import main as fgis_main
from tests.experiments import small
from tests.tiny import ROOT, arguments, write_features

pytestmark = pytest.mark.slow


def in_process(kind, config, place):
    """``grid.in_own_process`` without the seconds that a fresh process takes to import."""
    try:
        rows.run_row(kind, config, place)
    except UserError as error:
        return f"failed: {error}"
    return ""


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features") / "tiny.h5")


def flags(features, workdir, *more):
    given = ["--dataset=ukbench", "--seeds=2", "--folds=3", f"--features.path={features}", f"--workdir={workdir}"]
    return [*given, *more]


@pytest.fixture(scope="module")
def calm(features, tmp_path_factory):
    """The workdir of an undisturbed run."""
    workdir = tmp_path_factory.mktemp("calm") / "tables"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "in_own_process", in_process)
        assert grid.main(small.TABLE, flags(features, workdir)) == 0
    return workdir


def table(workdir, dataset="ukbench"):
    return json.loads((workdir / f"small.{dataset}.json").read_text())


def figures(workdir):
    return {row["row"]: (row["metrics"], row["reason"]) for row in table(workdir)["rows"]}


def test_a_grid_prints_three_formats(calm, features, capsys):
    assert grid.main(small.TABLE, flags(features, calm)) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == table(calm)
    assert (calm / "small.ukbench.md").read_text() in printed
    assert (calm / "small.ukbench.tex").read_text() in printed
    found = table(calm)
    assert set(found) >= {"table", "dataset", "command", "date", "versions", "machine", "rows", "published"}
    assert found["command"].startswith("python -m experiments.small --dataset=ukbench --seeds=2")
    assert [row["row"] for row in found["rows"]] == [row.name for row in small.ROWS]
    for row in found["rows"][:4]:
        assert set(row["metrics"]) == {"ns_score", "recall@1", "map@r"}
        for metric in row["metrics"].values():
            assert metric["ci95"][0] <= metric["mean"] <= metric["ci95"][1]
        assert row["seconds"] > 0
        assert row["megabytes"] > 0
    trained = found["rows"][3]["metrics"]["ns_score"]
    assert 0 < trained["minus_frozen"]["p"] <= trained["minus_frozen"]["p_holm"] <= 1
    assert found["rows"][3]["training"]["loss"] > 0


def test_the_figures_are_those_of_the_experiment_itself(calm, features, tmp_path):
    """The same configuration through ``fgis.main``: its evaluation ``unseen_gallery``, to the bit."""
    assert fgis_main(arguments(features, tmp_path / "run", "--config.closed_set=False")) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())["evaluations"]["unseen_gallery"]
    for name, row in (("frozen features", "frozen"), ("untrained head", "untrained"), ("batch-hard", "trained")):
        for metric, found in figures(calm)[name][0].items():
            assert found["mean"] == report[row][metric]["mean"], (name, metric)
    assert figures(calm)["batch-hard"][0]["map@r"]["minus_frozen"]["mean"] == report["difference"]["map@r"]["mean"]


def test_values_per_query_are_kept_and_checkpoints_are_not(calm):
    places = sorted((calm / "ukbench").iterdir())
    assert len(places) == 4
    for place in places:
        assert {path.name for path in place.iterdir()} - {"spent.json"} == {
            "row.json", "result.json", "values.npz", "lock",
        }  # fmt: skip
        with np.load(place / "values.npz") as file:
            assert set(file.files) == {"ns_score", "recall@1", "map@r", "labels"}
            seeds = 1 if place.name.startswith("frozen") else 2
            assert file["map@r"].shape == (seeds, 48)
            assert np.isfinite(file["map@r"]).all()


def test_finished_rows_are_not_run_again(calm, features, monkeypatch):
    monkeypatch.setattr(grid, "in_own_process", lambda *_: pytest.fail("a finished row was run"))
    before = {ending: (calm / f"small.ukbench{ending}").read_bytes() for ending in (".md", ".tex", ".json")}
    assert grid.main(small.TABLE, flags(features, calm)) == 0
    assert {ending: (calm / f"small.ukbench{ending}").read_bytes() for ending in before} == before
    other = small.TABLE._replace(name="other", rows=small.ROWS[:3])  # another table with the same experiments
    assert grid.main(other, flags(features, calm)) == 0
    assert (calm / "other.ukbench.md").exists()


def test_an_interrupted_row_continues_and_gives_the_same_figures(calm, features, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "in_own_process", in_process)
    whole, resumed, gallery, train = small.TABLE._replace(rows=small.ROWS[:3]), [], rows.unseen_gallery, rows.train

    def interrupted(embed, plans, *more):
        if len(plans) == 6 and list((tmp_path / "ukbench").glob("trained*")):
            raise KeyboardInterrupt
        return gallery(embed, plans, *more)

    monkeypatch.setattr(rows, "unseen_gallery", interrupted)
    assert grid.main(whole, flags(features, tmp_path)) == 130
    assert "the same command continues" in capsys.readouterr().err
    assert len(list((tmp_path / "ukbench").glob("*/result.json"))) == 2
    monkeypatch.setattr(rows, "unseen_gallery", gallery)
    monkeypatch.setattr(rows, "train", lambda *a, **k: (resumed.append(int(k["state"].step[0])), train(*a, **k))[1])
    assert grid.main(whole, flags(features, tmp_path)) == 0
    assert resumed == [8]  # the last checkpoint before the end
    assert (
        figures(tmp_path)["batch-hard"][0]["ns_score"]["mean"] == (figures(calm)["batch-hard"][0]["ns_score"]["mean"])
    )
    for row in whole.rows:
        one, two = (place_of(w / "ukbench", row.kind, {**small.BASE, **row.overrides}) for w in (calm, tmp_path))
        assert (one / "values.npz").read_bytes() == (two / "values.npz").read_bytes()


def test_another_configuration_is_refused_before_anything_runs(calm, features, monkeypatch, capsys):
    monkeypatch.setattr(grid, "in_own_process", lambda *_: pytest.fail("a row was run"))
    assert grid.main(small.TABLE, flags(features, calm, "--seeds=3")) == 2
    error = capsys.readouterr().err
    assert error.startswith("small: config.seeds: 3 here, but ")
    assert "was made with 2" in error
    assert error.count("\n") == 1


def test_other_features_are_refused(calm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "in_own_process", lambda *_: pytest.fail("a row was run"))
    other = write_features(tmp_path / "other.h5", seed=1)
    assert grid.main(small.TABLE, flags(other, calm)) == 2
    assert "features_sha256" in capsys.readouterr().err


def test_features_that_moved_are_the_same_features(calm, features, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "in_own_process", lambda *_: pytest.fail("a row was run"))
    shutil.copy(features, tmp_path / "moved.h5")
    assert grid.main(small.TABLE, flags(tmp_path / "moved.h5", calm)) == 0


def test_what_is_missing_is_a_command_and_the_rest_goes_on(calm):
    text = (calm / "small.ukbench.md").read_text()
    command = (
        "python -m fgis.main --config=configs/ukbench.py --mode=extract --config.features.images=ukbench "
        "--config.features.path=features/none.h5 '--config.features.image_size=(299,299)'"
    )
    assert f"needs features/none.h5; run `{command}` and then this command again" in text
    assert "not run: opposites: no coarse labels" in text
    assert text.count("| not run") == 2


def test_without_any_features_the_table_is_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(grid, "in_own_process", lambda *_: pytest.fail("a row was run"))
    whole = small.TABLE._replace(rows=small.ROWS[:4])
    assert grid.main(whole, flags(tmp_path / "none.h5", tmp_path / "new" / "tables")) == 0
    text = capsys.readouterr().out
    assert f"- not run: all rows: needs {tmp_path / 'none.h5'}; run `python -m fgis.main" in text


def test_a_row_that_fails_leaves_the_others(features, tmp_path, monkeypatch, capsys):
    def work(kind, config, place):
        return "failed: its process ended with exit code -9" if kind == "frozen" else in_process(kind, config, place)

    monkeypatch.setattr(grid, "in_own_process", work)
    assert grid.main(small.TABLE._replace(rows=small.ROWS[:3]), flags(features, tmp_path)) == 1
    found = figures(tmp_path)
    assert "exit code -9" in found["frozen features"][1]
    assert "minus_frozen" not in found["batch-hard"][0]["ns_score"]
    assert "not run: frozen features: failed" in (tmp_path / "small.ukbench.md").read_text()


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--dataset=all"], "--features.path: holds the features of one data set"),
        (["--seeds=0"], "config.seeds: 0 found"),
        (["--folds=1"], "config.folds: 1"),
        (["--steps=0"], "config.train.total_steps: 0"),
    ],
)
def test_a_mistake_is_one_line(more, line, features, tmp_path, capsys):
    whole = small.TABLE._replace(base={key: v for key, v in small.BASE.items() if key != "train.total_steps"})
    assert grid.main(whole, flags(features, tmp_path, *more)) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_shares_of_rows_are_merged_by_the_command_without_them(calm, features, tmp_path, monkeypatch, capsys):
    """Two machines with folders of their own; their rows lie together before the table is written."""
    monkeypatch.setattr(grid, "in_own_process", in_process)
    for number, names in ((1, {"frozen", "trained"}), (2, {"untrained", "trained"})):
        workdir = tmp_path / str(number)
        assert grid.main(small.TABLE, flags(features, workdir, f"--rows={number}/2")) == 0
        assert f"small ukbench: rows {number}/2 are there; the same command without" in capsys.readouterr().out
        assert {path.name.partition(",")[0].partition("-")[0] for path in (workdir / "ukbench").iterdir()} == names
        assert len(list((workdir / "ukbench").glob("*/result.json"))) == 2
        assert not list(workdir.glob("small.*"))
    shutil.copytree(tmp_path / "2", tmp_path / "1", dirs_exist_ok=True)
    monkeypatch.setattr(grid, "in_own_process", lambda *_: pytest.fail("a finished row was run"))
    assert grid.main(small.TABLE, flags(features, tmp_path / "1")) == 0
    mean = lambda workdir, row: figures(workdir)[row][0]["map@r"]["mean"]
    for row in ("frozen features", "untrained head", "batch-hard", "semi_hard & 100 %"):
        assert mean(tmp_path / "1", row) == mean(calm, row)


@pytest.mark.parametrize("text", ["3/2", "0/2", "half"])
def test_a_share_that_is_none_is_refused(features, tmp_path, capsys, text):
    assert grid.main(small.TABLE, flags(features, tmp_path, f"--rows={text}")) == 2
    assert capsys.readouterr().err == f"small: --rows: '{text}' found; write i/n with i from 1 to n, such as 2/8\n"


def command(features, workdir, *more):
    return [sys.executable, "-m", "tests.experiments.small", *flags(features, workdir, *more)]


@pytest.mark.slow
def test_a_killed_table_continues_with_the_same_figures(calm, features, tmp_path):
    """Killed while a row imports, and twice behind a checkpoint; what the row's process was doing dies with it."""
    for row in small.ROWS[1:4]:
        place = place_of(tmp_path / "ukbench", row.kind, {**small.BASE, **row.overrides})
        with subprocess.Popen(command(features, tmp_path), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            while f"{row.name}: running" not in process.stderr.readline():
                assert process.poll() is None
            while row.kind == "trained" and not (place / "spent.json").exists() and process.poll() is None:
                time.sleep(0.005)
            process.kill()
    done = subprocess.run(command(features, tmp_path), cwd=ROOT, capture_output=True, text=True, check=True)
    assert figures(tmp_path) == figures(calm), done.stderr
    assert not list((tmp_path / "ukbench").glob("*/checkpoints"))
