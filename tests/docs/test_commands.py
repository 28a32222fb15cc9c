"""Every command and every block of Python in README and docs, on images made here, with short training.

Lines that set up an environment are listed here; ``.ci/run`` runs those of README.
"""

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from experiments import grid, reranking
from fgis.commands import command_line
from fgis.main import main
from fgis.report import plots
from tests.docs.blocks import all_blocks, bash_lines, write_photo, write_photos
from tests.tiny import ROOT, write_features

SHORT = (
    "--config.train.total_steps=4", "--config.train.record_every_steps=2", "--config.train.checkpoint_every_steps=2",
    "--config.evaluation.resamples=20", "--config.seeds=1", "--config.folds=2",
)  # fmt: skip
SETUP = (  # what a line begins with that installs something, or is a tool of its own
    "python3 -m venv", "source .venv", "pip install", "pre-commit install", "pytest", "mkdocs build",
)  # fmt: skip
LATER = ("docs/map.md", "docs/galleries.md")  # pages that use what others have trained or indexed
LINES = sorted(
    [(page, line) for page, line in bash_lines() if not page.startswith("docs/extending/")],
    key=lambda found: found[0] in LATER,
)
COMMANDS = [line for _, line in LINES if line.startswith("python -m fgis.main")]
EXAMPLES = [line for _, line in LINES if line.startswith("python examples/")]
BENCHMARKS = [line for _, line in LINES if line.startswith("python -m experiments.benchmarks.")]
TABLES = [line for _, line in LINES if re.match(r"python -m experiments\.\w+ --dataset", line)]
PYTHON = [
    block for block in all_blocks() if block.language == "python" and not block.page.startswith("docs/extending/")
]
FIRST = "python -m fgis.main --config=configs/ukbench.py"
NUMBER = re.compile(r"\d+\.\d+")


def test_every_line_is_of_a_kind_that_is_run_here_or_sets_up_an_environment():
    known = {*COMMANDS, *EXAMPLES, *BENCHMARKS, *TABLES, "python -m experiments.readme --check"}
    others = [f"{page}: {line}" for page, line in LINES if line not in known and not line.startswith(SETUP)]
    assert others == []


@pytest.mark.parametrize("line", BENCHMARKS)
def test_the_benchmarks_exist(line):
    assert importlib.util.find_spec(line.split()[2])


def test_the_page_of_ablations_lists_the_choices_there_are():
    from fgis.distances import DISTANCES
    from fgis.experiment.config import CHOICES

    page = (ROOT / "docs" / "ablations.md").read_text()
    for group, names in {**CHOICES, "distance": DISTANCES}.items():
        rows = [line for line in page.splitlines() if line.startswith(f"| `{group}`")]
        listed = set(re.findall(r"`(\w+)`", " ".join(rows)))
        assert set(names) <= listed, group
        words = {group, "size", "warmup_steps", "fallback", "drop", "hardest", "easiest", "given", "batch_all"}
        assert listed <= set(names) | words, group


def test_the_pages_list_the_metrics_and_the_backbones_there_are():
    from fgis.features.backbones import BACKBONES
    from fgis.retrieval.metrics import METRICS

    evaluation = re.sub("@K`", "`", (ROOT / "docs" / "evaluation.md").read_text())
    assert [name for name in METRICS if f"`{name.removesuffix('@k')}`" not in evaluation] == []
    own_data = (ROOT / "docs" / "own-data.md").read_text()
    assert [name for name in BACKBONES if f"`{name}`" not in own_data] == []


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Programs that run for a moment need not be fast; compiling them is most of what these tests cost.

    One thread for NumPy's linear algebra: with one per core, decompositions take ten times as long on a busy machine.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with threadpool_limits(1):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a user would have it: photos of six objects, UKBench and GroceryStore in small."""
    place = tmp_path_factory.mktemp("newcomer")
    for name in ("configs", "examples"):
        (place / name).symlink_to(ROOT / name)
    lines = []
    write_photos(place / "photos")
    for label in range(6):
        for view in range(2):
            write_photo(place / "grocerystore" / "train" / f"{label}_{view}.jpg", label)
            lines.append(f"train/{label}_{view}.jpg, {label}, 0")
        for view in range(4):
            write_photo(place / "ukbench" / f"ukbench{4 * label + view:05d}.jpg", label)
    write_photo(place / "query.jpg", 3)
    write_features(place / "small.h5")
    (place / "triplets.csv").write_text("ukbench00000.jpg,ukbench00001.jpg,ukbench00004.jpg\n")
    (place / "photos" / "object0" / "broken.jpg").write_bytes(b"no image")
    for split, content in (("train", lines), ("val", []), ("test", [])):
        (place / "grocerystore" / f"{split}.txt").write_text("\n".join(content))
    for block in PYTHON:
        if block.title:
            (place / block.title).write_text(block.text)
    return place


def adapted(command: str) -> list[str]:
    """The arguments of a command, with random weights, small images and short training.

    A command that needs no configuration, or reads the one of its work directory, gets no keys that would change it.
    """
    arguments = shlex.split(command.replace("(299,299)", "(64,64)"))[3:]
    if "--config=" not in command:
        return [word.replace("--step=200", "--step=4") for word in arguments]
    own_features = any(word in command for word in ("extract", "features/", "photos.py", "grocerystore.py"))
    if own_features and "backbone= " not in command:
        arguments.append("--config.features.weights=none")
        if "299" not in command:
            arguments.append("--config.features.image_size=(64,64)")
    if "--mode=extract" not in command:
        arguments += SHORT
        if "--workdir" not in command and "--mode=search" not in command:  # README's, which SHORT would lengthen
            number = COMMANDS.index(command)
            arguments.append("--workdir=runs/ukbench" if command == FIRST else f"--workdir=runs/{number}")
            if not own_features and command != FIRST:  # an ablation: on small features
                arguments += ["--config.features.backbone=", "--config.features.path=small.h5"]
    return arguments


@pytest.mark.slow
def test_the_commands_and_the_python_of_the_pages_work(place, monkeypatch, capsys):
    """In their order: later ones read what earlier ones wrote."""
    monkeypatch.chdir(place)
    for line in [*EXAMPLES, *COMMANDS]:
        if line in EXAMPLES:
            _, script, *arguments = line.split()
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            runpy.run_path(script, run_name="__main__")
        elif "--mode=serve" in line:  # it would not end; tests/web serves for real
            assert command_line.parse(adapted(line)).options.gallery == "gallery"
            assert (place / "gallery" / "gallery.json").exists()
        else:
            assert main(adapted(line)) == 0, f"{line}: {capsys.readouterr().err}"
        if line == FIRST:
            monkeypatch.setattr(plots, "_draw_curve", lambda *_: "")  # drawn once is enough
    assert "data:image/jpeg" in (place / "runs" / "photos" / "report.html").read_text()
    assert len(list(place.glob("runs/photos/search/*.html"))) == 1
    assert len(list(place.glob("runs/search/*.html"))) == 1
    assert len(list(place.glob("runs/ukbench/**/neighbours.h5"))) == 1
    capsys.readouterr()
    for block in PYTHON:
        if not block.title and block.page != "README.md":
            exec(compile(block.text, block.page, "exec"), {"__name__": "block"})
            printed = capsys.readouterr().out
            assert block.output is None or same(printed, block.output), f"{block.page}: {printed}"


def same(printed: str, shown: str, tolerance: float = 0.011) -> bool:
    """Whether two texts are the same but for digits that depend on the processor."""
    numbers = [np.array([float(one) for one in NUMBER.findall(text)]) for text in (printed, shown)]
    if NUMBER.sub("#", printed) != NUMBER.sub("#", shown):
        return False
    return bool(np.all(np.abs(numbers[0] - numbers[1]) <= tolerance))


def test_outputs_may_differ_in_the_last_digits_alone():
    assert same("N-S 3.955\n", "N-S 3.960\n")
    assert not same("N-S 3.955\n", "N-S 3.970\n")
    assert not same("N-S 3.955\n", "MAP 3.955\n")


@pytest.mark.slow
def test_the_python_of_readme_prints_what_readme_shows(capsys):
    """One block, which is examples/train_and_evaluate.py as well."""
    (block,) = (block for block in PYTHON if block.page == "README.md")
    example = (ROOT / "examples" / "train_and_evaluate.py").read_text()
    assert example.split('"""')[2].strip() == block.text.strip()
    exec(compile(block.text, "README.md", "exec"), {"__name__": "block"})
    assert block.output
    assert same(capsys.readouterr().out, block.output)


@pytest.mark.slow
def test_a_miner_of_ones_own_learns(capsys):
    runpy.run_path(str(ROOT / "examples" / "own_miner.py"), run_name="__main__")
    losses = [float(number) for number in NUMBER.findall(capsys.readouterr().out)]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.03


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in TABLES if "reranking" in line])
def test_the_table_of_re_rankings_works(line, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reranking, "GRID", {"local_scaling": {"k": (2,)}})
    features = write_features(tmp_path / "features.h5")
    monkeypatch.chdir(tmp_path)
    assert reranking.main([*shlex.split(line)[3:], f"--features.path={features}"]) == 0, capsys.readouterr().err
    assert len(list(tmp_path.glob("runs/tables/reranking.*.tex"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in TABLES if "reranking" not in line])
def test_the_tables_work(line, tmp_path, monkeypatch, capsys):
    """The first rows on small features: frozen, untrained and the default of one table, frozen of the others."""
    module, *arguments = shlex.split(line)[2:]
    table = importlib.import_module(module).TABLE
    features = write_features(tmp_path / "features.h5")
    short = ["--seeds=1", "--folds=2", "--steps=2", f"--features.path={features}"]
    monkeypatch.chdir(tmp_path)
    rows = table.rows[: 3 if line == TABLES[0] else 1]
    assert grid.main(table._replace(rows=rows), [*arguments, *short]) == 0, capsys.readouterr().err
    assert len(list(tmp_path.glob("runs/tables/*.tex"))) == 1


@pytest.mark.slow
def test_the_site_is_built_strictly(tmp_path):
    """mkdocs.yml says strict: a broken link, an unknown name or a page that is not in the menu is an error."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; pip install -e '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed; pip install -e '.[docs]'")
    pytest.importorskip("material", reason="mkdocs-material is not installed; pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "```" not in (tmp_path / "api" / "retrieval" / "index.html").read_text()
