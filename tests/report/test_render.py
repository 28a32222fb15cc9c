import re
from html.parser import HTMLParser

import numpy as np

from fgis.base import Neighbours, RunPlan
from fgis.report import examples, plots, render, summary
from tests.report import reports
from tests.report.reports import GAIN, LOSS, NULL, UNDEFINED, evaluation, report

PLANS = [RunPlan(0, -1), RunPlan(0, 0), RunPlan(0, 1)]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements of a page as (tag, attributes, text, tags around it); raises where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), "", [other[0] for other in self.open]]
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), "", []])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def find(self, tag, **attributes):
        return [e for e in self.elements if e[0] == tag and attributes.items() <= e[1].items()]


def history():
    return [{"step": step, "loss": [1.0 / step, 0.5, 0.25], "dead_units": [None] * 3} for step in (1, 2)]


def make_examples(worst=True, best=True):
    labels, ids = np.array([0, 0, 1, 1]), np.array(["a", "<script>b", "c", "d"])
    names = ("<b>cup</b>", "pan")

    def panel(query, rows):
        ranked = Neighbours(np.array([rows]), np.array([[0.25, 0.5]]))
        return examples.query_panel(query, ranked, labels, ids, names)

    bad, good = [panel(0, [2, 1])] * worst, [panel(2, [3, 0])] * best
    return examples.Examples("unseen_objects", "ns_score", bad, good)


def test_the_page_is_self_contained_reproducible_and_starts_with_the_summary():
    found = report(closed_set=evaluation(LOSS), unseen_objects=evaluation(GAIN, NULL))
    text = render.report_html(found, history(), PLANS, make_examples())
    assert text == render.report_html(found, history(), PLANS, make_examples())
    assert not re.findall(r'(?:src|href)="(?!data:|#)|url\((?!#)|@import', text)
    page = Page(text)
    paragraphs = page.find("p")
    assert paragraphs[0][2] == summary.paragraph(found)
    assert page.find("h1")[0][2] == "cups on vit features"
    assert "3 runs trained together to step 20" in text
    ids = [element[1]["id"] for element in page.elements if "id" in element[1]]
    assert len(ids) == len(set(ids))


def test_marks_stand_exactly_where_the_interval_of_a_difference_excludes_0():
    edges = [GAIN, LOSS, NULL, reports.figure(0.25, 0.0, 0.5), reports.figure(0.25, 1e-19, 0.5), UNDEFINED]
    one = evaluation(GAIN)
    for row in ("frozen", "untrained", "trained", "difference"):
        one[row] = {f"m{i}": edge for i, edge in enumerate(edges)}
    page = Page(render.report_html(report(closed_set=one), [], PLANS))
    cells = page.find("td")
    assert [cell[2] for cell in cells if cell[1].get("class") == "marked"] == [
        "▲ +0.2500+0.1250 to +0.5000", "▼ -0.2500-0.5000 to -0.1250",
    ]  # fmt: skip
    shown = [cell[2] for cell in cells]
    assert "+0.2500-0.1250 to +0.5000" in shown
    assert shown.count("–") == 6 + 4  # published figures of these metrics, and the undefined one of four rows
    assert not any("nan" in text for text in shown)
    assert "–: no query has a value." in [element[2] for element in page.find("p")]


def test_only_the_main_tables_are_unfolded():
    found = report(closed_set=evaluation(GAIN), open_set=evaluation(GAIN, metric="auroc"), transfer=evaluation(GAIN))
    page = Page(render.report_html(found, history(), PLANS, make_examples()))
    folded = page.find("details")
    assert [element[1]["id"] for element in folded] == [
        "open_set",
        "curves",
        "worst",
        "best",
        "configuration",
        "versions",
    ]
    assert not any("open" in element[1] for element in folded)
    assert [e[2] for e in page.find("h2") if "details" not in e[3]] == ["Closed set", "Transfer"]
    assert [element[2] for element in page.find("summary")] == [
        "Open set: auroc", "Training curves (1)", "Worst queries: unseen objects, by ns_score (1)",
        "Best queries: unseen objects, by ns_score (1)", "Configuration", "Versions",
    ]  # fmt: skip
    assert [e[1]["aria-label"] for e in page.find("div", tabindex="0")] == [
        "Table: closed set", "Table: transfer", "Table: open set", "Table: configuration", "Table: versions",
    ]  # fmt: skip


def test_the_first_cell_of_every_row_is_sticky():
    text = render.report_html(report(closed_set=evaluation(GAIN)), [], PLANS)
    assert re.search(r"tr > :first-child {[^}]*position: sticky; left: 0;[^}]*background: var\(--page\)", text)
    assert len(Page(text).find("th", scope="row")) == 5 + 4 + 1  # figures, choices, versions


def test_examples_have_escaped_names_and_say_what_is_relevant():
    text = render.report_html(report(closed_set=evaluation(GAIN)), [], PLANS, make_examples())
    assert "<script" not in text
    assert "<b>" not in text
    tiles = [(element[1]["class"], element[2]) for element in Page(text).find("li")]
    assert tiles == [
        ("tile query", "<b>cup</b>aquery"),
        ("tile bad", "panc1 · 0.2500✗ not relevant"),
        ("tile good", "<b>cup</b><script>b2 · 0.5000✓ relevant"),
        ("tile query", "pancquery"),
        ("tile good", "pand1 · 0.2500✓ relevant"),
        ("tile", "<b>cup</b>a2 · 0.5000other object"),
    ]


def test_missing_examples_are_explained():
    text = render.report_html(report(closed_set=evaluation(GAIN)), [], PLANS, make_examples(worst=False, best=False))
    assert "No query to show: each one that has relevant images has them first." in text
    assert "No query has all its relevant images first." in text
    assert "Worst queries" not in render.report_html(report(closed_set=evaluation(GAIN)), [], PLANS)


def test_choices_that_were_not_made_are_left_out():
    page = Page(render.report_html(report(closed_set=evaluation(GAIN)), [], PLANS))
    cells = [element[2] for element in page.find("td") if element[2]]
    assert {"collection cups, backbone vit", "hard_negatives", "triplet: margin 0.2"} <= set(cells)


def test_collapsed_runs_are_warned_of_before_the_summary():
    found = report(closed_set=evaluation(GAIN)) | {"collapsed": [[0, -1]]}
    assert Page(render.report_html(found, [], PLANS)).find("p")[0][2].startswith("COLLAPSED: 1 runs (seed 0)")


def test_a_curve_shows_runs_of_all_objects_and_of_folds_apart():
    (curve,) = plots.curves(history(), PLANS)  # dead_units has no finite value
    assert curve.title == "training loss"
    assert "all objects (1 run)" in curve.svg
    assert "folds (2 runs)" in curve.svg
    assert "currentColor" in curve.svg
    assert curve == plots.curves(history(), PLANS)[0]
    assert plots.curves([], PLANS) == plots.curves([{"step": 1, "active": [1.0] * 3}, {"step": 2}], PLANS) == []
