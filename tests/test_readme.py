"""Every command of the README, word for word, on images made here, with short training and without the network.

Commands that set up an environment are run by ``.ci/run``, which reads the test command from the README.
"""

import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments import grid, reranking
from experiments.readme import sampling_table
from fgis.main import main
from tests.tiny import ROOT, write_features

SHORT = (
    "--config.train.total_steps=4", "--config.train.record_every_steps=2", "--config.train.checkpoint_every_steps=2",
    "--config.evaluation.resamples=20", "--config.seeds=1", "--config.folds=2",
)  # fmt: skip
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("python -m fgis.main")]
TABLES = [line for line in LINES if line.startswith("python -m experiments.")]
RERANKING = [line for line in TABLES if "reranking" in line]
SETUP = [line for line in LINES if line not in COMMANDS + TABLES]


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC).save(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a user would have it: the configs, photos of six objects, UKBench and GroceryStore in small."""
    place = tmp_path_factory.mktemp("newcomer")
    (place / "configs").symlink_to(ROOT / "configs")
    lines = []
    for label in range(6):
        for view in range(2):
            photo(place / "photos" / f"object{label}" / f"{view}.jpg", label)
            photo(place / "grocerystore" / "train" / f"{label}_{view}.jpg", label)
            lines.append(f"train/{label}_{view}.jpg, {label}, 0")
        for view in range(4):
            photo(place / "ukbench" / f"ukbench{4 * label + view:05d}.jpg", label)
    photo(place / "query.jpg", 3)
    (place / "triplets.csv").write_text("ukbench00000.jpg,ukbench00001.jpg,ukbench00004.jpg\n")
    (place / "photos" / "object0" / "broken.jpg").write_bytes(b"no image")
    for split, content in (("train", lines), ("val", []), ("test", [])):
        (place / "grocerystore" / f"{split}.txt").write_text("\n".join(content))
    return place


FIRST = "python -m fgis.main --config=configs/ukbench.py"


def test_the_readme_has_two_setup_commands_and_the_rest_is_run_here():
    assert len(SETUP) == 2
    assert all(line.startswith("python3 -m venv") for line in SETUP)
    assert SETUP[0].endswith(f".venv/bin/{FIRST}")
    assert "pytest" in SETUP[1]


def adapted(command: str, number: int) -> list[str]:
    """The arguments of a command, with random weights, small images, short training and a workdir of its own."""
    arguments = shlex.split(command.replace("(299,299)", "(64,64)"))[3:]
    own_features = any(word in command for word in ("extract", "features/", "photos.py", "grocerystore.py"))
    if own_features:
        arguments.append("--config.features.weights=none")
        if "299" not in command:
            arguments.append("--config.features.image_size=(64,64)")
    if "--mode=extract" not in command:
        arguments += SHORT
        own = command == FIRST or "--mode=evaluate" in command
        if "--workdir" not in command and "--mode=search" not in command:  # the README's, which SHORT would lengthen
            arguments.append("--workdir=runs/ukbench" if own else f"--workdir=runs/{number}")
    return arguments


@pytest.mark.slow
def test_the_commands_of_the_readme_work(place, monkeypatch, capsys):
    """In their order: later commands read what earlier ones wrote."""
    monkeypatch.chdir(place)
    for number, command in enumerate([FIRST, *COMMANDS]):
        assert main(adapted(command, number)) == 0, f"{command}: {capsys.readouterr().err}"
    assert len(list(place.glob("runs/*/report.html"))) == sum("--mode" not in command for command in [FIRST, *COMMANDS])
    assert "data:image/jpeg" in (place / "runs" / "photos" / "report.html").read_text()
    assert len(list(place.glob("runs/photos/search/*.html"))) == 1
    assert len(list(place.glob("runs/search/*.html"))) == 1
    assert (place / "runs" / "ukbench" / "neighbours.h5").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", RERANKING)
def test_the_table_of_re_rankings_works(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reranking, "GRID", {"local_scaling": {"k": (2,)}})
    features = write_features(tmp_path / "features.h5")
    monkeypatch.chdir(tmp_path)
    assert reranking.main([*shlex.split(command)[3:], f"--features.path={features}"]) == 0, capsys.readouterr().err
    assert len(list(tmp_path.glob("runs/tables/reranking.*.tex"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("command", [line for line in TABLES if line not in RERANKING])
def test_the_tables_of_the_readme_work(command, tmp_path, monkeypatch, capsys):
    """Their first rows (frozen, untrained, the default), on small features."""
    module, *arguments = shlex.split(command)[2:]
    table = importlib.import_module(module).TABLE
    features = write_features(tmp_path / "features.h5")
    short = ["--seeds=1", "--folds=2", "--steps=2", f"--features.path={features}"]
    monkeypatch.chdir(tmp_path)
    assert grid.main(table._replace(rows=table.rows[:3]), [*arguments, *short]) == 0, capsys.readouterr().err
    assert len(list(tmp_path.glob("runs/tables/*.tex"))) == 1


def test_the_sampling_table_is_that_of_the_committed_results():
    assert sampling_table() in README
