"""README: short, and what a reader needs first stands first; its commands and figures: ``tests/docs``."""

import re

import fgis
from tests.docs.blocks import blocks_of
from tests.tiny import ROOT

LINES = (ROOT / "README.md").read_text().splitlines()
FIRST_SCREEN = "\n".join(LINES[:60])


def test_readme_is_short():
    assert len(LINES) <= 130


def test_the_first_screen_has_the_picture_two_commands_and_the_table():
    assert "![" in FIRST_SCREEN
    (block, *_) = blocks_of(ROOT / "README.md")
    setup, command = block.text.splitlines()
    assert block.text in FIRST_SCREEN
    assert setup.startswith("python3 -m venv")
    assert command == "python -m fgis.main --config=configs/ukbench.py"
    assert "<!-- end of table -->" in FIRST_SCREEN
    assert FIRST_SCREEN.count("| **trained head**") == 1


def test_the_picture_is_small_and_made_of_photographs_that_are_credited():
    picture = ROOT / "docs" / "pictures" / "search.webp"
    assert f"]({picture.relative_to(ROOT)})" in FIRST_SCREEN
    assert picture.stat().st_size < 200_000
    script, credits = ((ROOT / "docs" / name).read_text() for name in ("pictures.py", "credits.md"))
    names = re.findall(r'"(\w+)"', "".join(re.findall(r"^OBJECTS \+?= (.*)$", script, re.MULTILINE)))
    assert len(names) == 12
    assert [name for name in names if f"`{name}`" not in credits] == []


def test_commands_after_the_first_say_that_the_environment_has_to_be_active():
    assert "source .venv/bin/activate" in FIRST_SCREEN
    assert "In a new terminal" in FIRST_SCREEN


def test_the_test_command_stands_alone_on_a_line_for_ci():
    lines = [line for line in LINES if "'.[test]'" in line]
    assert len(lines) == 1
    assert re.fullmatch(r"python3 -m venv \.venv && .*-c constraints\.txt -e '\.\[test\]' && .*pytest.*", lines[0])


def test_links_lead_to_files():
    for text in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)#]+)", (ROOT / text).read_text()):
            assert (ROOT / link).exists(), f"{text}: {link}"


def test_the_citation_has_the_version_of_the_package():
    assert f"\nversion: {fgis.__version__}\n" in (ROOT / "CITATION.cff").read_text()
