"""Lint and types are tests like any other, and so is the shape of a configuration."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fgis
from configs import deep_ranking, grocerystore, landmarks, metric_learning, photos, ukbench, visnet
from fgis.experiment.config import read_settings
from fgis.experiment.differences import flatten, to_plain
from tests.tiny import ROOT

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
@pytest.mark.slow
def test_lint_and_types(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


CONFIGS = {
    "ukbench": ukbench.get_config(),
    "ukbench-published": ukbench.get_config("published"),
    "grocerystore": grocerystore.get_config(),
    "photos": photos.get_config(),
    "metric_learning": metric_learning.get_config(),
    "landmarks": landmarks.get_config(),
    "deep_ranking": deep_ranking.get_config(),
    "visnet": visnet.get_config(),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_what_it_was(name):
    """An experiment changes on purpose only: rewrite tests/golden/NAME.json from the message when it does."""
    plain = to_plain(CONFIGS[name])
    read_settings(plain)
    found = flatten(plain)
    assert found == json.loads((GOLDEN / f"{name}.json").read_text()), json.dumps(found, indent=1)


def test_the_packages_of_a_wheel_are_those_of_the_checkout():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in ROOT.glob("fgis/**/__init__.py")}
    assert set(project["packages"]) == found | {"fgis.configs"}
    assert project["package-dir"] == {"fgis.configs": "configs"}


def test_every_public_name_can_be_imported_and_is_documented():
    for name in fgis.PUBLIC:
        assert getattr(fgis, name).__doc__, name
    assert fgis.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    with pytest.raises(AttributeError, match="no attribute 'batch_hart'"):
        _ = fgis.batch_hart


@pytest.mark.slow
def test_a_wheel_runs_the_shipped_experiments_outside_a_checkout(tmp_path):
    """Unpacked into a folder of its own, with the installed dependencies: what a user's environment has."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("fgis-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    short = ["--config.seeds=1", "--config.folds=0", "--config.train.total_steps=2", "--config.evaluation.resamples=5",
             "--config.train.record_every_steps=1", "--config.train.checkpoint_every_steps=1"]  # fmt: skip
    (tmp_path / "mine.py").write_text("from configs.photos import get_config as get_config\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    script = "import fgis; from fgis.main import main; import sys; print(fgis.__file__); sys.exit(main(sys.argv[1:]))"
    for more, code in (["--config=ukbench", *short], 0), (["--config=mine.py", "--mode=search"], 2):
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stderr
        assert done.stdout.startswith(str(tmp_path / "site")), done.stdout
    assert done.stderr.startswith("fgis: --image: missing")
    assert (tmp_path / "runs" / "ukbench,evaluation.resamples=5,folds=0,seeds=1,train.checkpoint_every_steps=1,"
            "train.record_every_steps=1,train.total_steps=2" / "report.json").exists()  # fmt: skip
