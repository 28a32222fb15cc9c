"""Every figure in README and docs is that of its source, and a figure without a source is noticed."""

import pytest

from experiments import page_tables, readme
from tests.tiny import ROOT

PAGES = [str(page.relative_to(ROOT)) for page in readme.pages()]
SOURCE = "<!-- figures: docs/results/ukbench.json\nunseen_objects/trained/ns_score\n-->"


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_of_a_page_are_those_of_the_committed_results(page):
    text = (ROOT / page).read_text()
    assert readme.with_tables(text) == text, "python -m experiments.readme writes them anew"


@pytest.mark.parametrize("page", PAGES)
def test_every_figure_of_a_page_is_that_of_its_source(page):
    assert readme.wrong((ROOT / page).read_text()) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "It scores 3.961.",
        "It scores 3.961 [3.938, 3.981], as measured.",
        "It scores 3.96, not `3.97`, and [a link](page-1.5.md) is no figure.",
        "It scores **3.9613**.",
    ],
)
def test_a_right_figure_passes(sentence):
    assert readme.wrong(f"{sentence}\n{SOURCE}\n") == []


@pytest.mark.parametrize(
    "text",
    [
        "It scores 3.962.\n" + SOURCE,
        "It scores 3.961 [3.938, 3.980].\n" + SOURCE,
        "It scores 3.961, by +0.022 more.\n" + SOURCE,
        "It scores −3.961.\n" + SOURCE,
        "It scores 3.961.",
        "It takes 17 s.",
        "It finds 96 % of them.",
        "It is 13 × as fast.",
        "| row | score |\n|---|---|\n| trained | 3.961 |",
        "Nothing is measured here.\n" + SOURCE,
        "It scores 3.961.\n\n" + SOURCE,  # the source belongs into the paragraph of the figure
        "It scores 3.961.\n" + SOURCE.replace("trained", "retrained"),
    ],
)
def test_a_wrong_figure_and_one_without_a_source_fail(text):
    assert len(readme.wrong(text + "\n")) >= 1


def test_signs_separators_and_decimals_are_those_of_the_text():
    assert readme._as_written("−.005", -0.0047) == "−.005"
    assert readme._as_written("+0.000", 0.0002) == "+0.000"
    assert readme._as_written("0.02", -0.0223) == "−0.02"
    assert readme._as_written("1,234", 1233.6) == "1,234"


def test_units_and_differences_of_two_paths():
    path = "unseen_objects/trained/accuracy_top4 minus unseen_objects/frozen/accuracy_top4"
    comment = f"<!-- figures: docs/results/ukbench.json\n{path}\n{page_tables.BENCHMARKS}\nsemi_hard_1024/ours_s\n-->"
    assert readme.wrong(f"It gains 0.6 % in 30 ms.\n{comment}\n") == []
    assert len(readme.wrong(f"It gains 0.5 % in 31 ms.\n{comment}\n")) == 2


def test_a_table_that_was_changed_by_hand_is_made_anew():
    text = (ROOT / "docs" / "speed.md").read_text()
    assert "0.0295 s" in text
    assert readme.with_tables(text.replace("0.0295 s", "0.0195 s")) == text
