"""Every command of the README, word for word, on images made here, with short training and without the network.

Commands that set up an environment are run by ``.ci/run``, which reads the test command from the README.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgis.main import main
from tests.tiny import ROOT

SHORT = (
    "--config.train.total_steps=4", "--config.train.record_every_steps=2", "--config.train.checkpoint_every_steps=2",
    "--config.evaluation.resamples=20", "--config.seeds=1", "--config.folds=2",
)  # fmt: skip
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.startswith("python -m fgis.main")]
SETUP = [line for block in BLOCKS for line in block.splitlines() if not line.startswith("python -m fgis.main")]


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
    (place / "photos" / "object0" / "broken.jpg").write_bytes(b"no image")
    for split, content in (("train", lines), ("val", []), ("test", [])):
        (place / "grocerystore" / f"{split}.txt").write_text("\n".join(content))
    return place


def test_the_readme_has_two_setup_commands_and_the_rest_is_run_here():
    assert [line.split()[0:3] for line in SETUP] == [["python3", "-m", "venv"]] * 2
    assert SETUP[0].endswith(f".venv/bin/{COMMANDS_FIRST}")
    assert "pytest" in SETUP[1]


COMMANDS_FIRST = "python -m fgis.main --config=configs/ukbench.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [COMMANDS_FIRST, *COMMANDS], ids=lambda command: command.removeprefix("python -m fgis.main ")
)
def test_a_command_of_the_readme_works(command, place, monkeypatch, capsys):
    """In the order of the README: later commands read what earlier ones wrote."""
    monkeypatch.chdir(place)
    arguments = shlex.split(command)[3:]
    if "--mode=extract" in arguments or "features/" in command or "photos.py" in command or "grocery" in command:
        arguments += ["--config.features.weights=none"]
    if "299" in command:
        arguments = [a.replace("(299,299)", "(64,64)") for a in arguments]
    elif "--mode=extract" in arguments or "photos.py" in command or "grocery" in command:
        arguments += ["--config.features.image_size=(64,64)"]
    workdir = next((a.partition("=")[2] for a in arguments if a.startswith("--workdir=")), None)
    if workdir is None and "--mode=extract" not in arguments:
        # The README's default workdir, which SHORT would otherwise lengthen.
        workdir = "runs/ukbench" if command == COMMANDS_FIRST else f"runs/{abs(hash(command))}"
        arguments += [f"--workdir={workdir}"]
    if "--mode=extract" not in arguments:
        arguments += SHORT
    assert main(arguments) == 0, capsys.readouterr().err
    if workdir:
        assert (place / workdir / "report.html").exists()
