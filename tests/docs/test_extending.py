"""The steps of docs/extending, carried out in a copy of the package: each touches two places, and what it adds runs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import Block, blocks_of, write_photos
from tests.tiny import ROOT, write_features

PAGES = sorted(page for page in (ROOT / "docs" / "extending").glob("*.md") if page.name != "index.md")
SHORT = (
    "--config.train.total_steps=2", "--config.train.record_every_steps=2", "--config.train.checkpoint_every_steps=2",
    "--config.evaluation.resamples=5", "--config.seeds=1", "--config.folds=2", "--config.closed_set=False",
    "--config.features.backbone=", "--config.features.path=features.h5", "--config.sampler.pk.classes=6",
)  # fmt: skip
RUN = """
import json, sys
from fgis.main import main
codes = [main(arguments) for arguments in json.load(sys.stdin)]
sys.exit(max(codes))
"""


def carry_out(block: Block, folder: Path) -> None:
    """Writes a new module, inserts code above a line, or applies the hunks of a diff; each must fit exactly once."""
    name, _, line = block.title.partition(", above ")
    path = folder / name
    if block.language == "diff":
        text = path.read_text()
        for hunk in re.split(r"^@@\n", block.text, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            before = "".join(one[1:] for one in lines if one[0] in " -")
            assert text.count(before) == 1, f"{block.page}: {before!r} is not once in {name}"
            text = text.replace(before, "".join(one[1:] for one in lines if one[0] in " +"))
        path.write_text(text)
    elif line:
        text = path.read_text()
        assert len(re.findall(rf"^{line}\b", text, re.MULTILINE)) == 1, f"{block.page}: {line} is not once in {name}"
        path.write_text(re.sub(rf"^(?={line}\b)", lambda _: block.text + "\n\n", text, flags=re.MULTILINE))
    else:
        assert not path.exists(), f"{block.page}: {name} is not new"
        path.write_text(block.text)


def steps_of(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.title]


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the package with the steps of all pages."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "fgis", folder / "fgis", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", folder / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for page in PAGES:
        for block in steps_of(page):
            carry_out(block, folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_touches_two_places(page):
    """The function (a block of Python) and the table (a diff), and no file beside these."""
    steps = steps_of(page)
    assert [step.language for step in steps] == ["python", "diff"]
    assert len({step.title.partition(",")[0] for step in steps}) <= 2


def test_the_steps_of_all_pages_can_be_carried_out(extended):
    for path in extended.rglob("*.py"):
        compile(path.read_text(), path, "exec")


@pytest.mark.slow
def test_what_the_pages_add_runs(extended):
    """The commands of all pages, in one process; what is trained with, in one training."""
    write_features(extended / "features.h5")
    write_photos(extended / "photos")
    training, others, outputs = [], [], []
    for page in PAGES:
        block = next(block for block in blocks_of(page) if block.language == "bash")
        arguments = shlex.split(block.text)[3:]
        if any(word.startswith("--mode") for word in arguments):
            others.append(arguments)
            outputs.append(block.output or "")
        else:
            training += arguments[1:]
    assert len(training) == 6  # one choice each: miner, loss, sampler, head, metric, re-ranking
    calls = [["--config=ukbench", *training, *SHORT, "--workdir=runs/extended"], *others]
    done = subprocess.run(
        [sys.executable, "-c", RUN], input=json.dumps(calls), cwd=extended, capture_output=True, text=True,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # compiling is most of what this costs
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [output for output in outputs if output not in done.stdout] == []
    report = json.loads((extended / "runs" / "extended" / "report.json").read_text())
    assert {"all_found@3", "recall@1"} == set(report["evaluations"]["unseen_objects"]["reranked"])
