"""Lint and types are tests like any other, and so is the shape of a configuration."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import grocerystore, photos, ukbench
from fgis import choices
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
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_what_it_was(name):
    """An experiment changes on purpose only: rewrite tests/golden/NAME.json from the message when it does."""
    choices.check(CONFIGS[name])
    found = choices.flatten(choices.plain(CONFIGS[name]))
    assert found == json.loads((GOLDEN / f"{name}.json").read_text()), json.dumps(found, indent=1)


def test_no_module_outgrows_its_room():
    long = {str(path): n for path in ROOT.glob("fgis/**/*.py") if (n := len(path.read_text().splitlines())) > 350}
    assert not long
    assert len((ROOT / "fgis" / "main.py").read_text().splitlines()) < 100
