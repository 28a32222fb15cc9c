import pytest

from fgis.report.tables import ROWS, Cell, distinguishable, figure, make_cell, tables
from tests.report import reports


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.125, 0.5, 1), (-0.5, -0.125, -1), (-0.125, 0.5, 0), (0.0, 0.5, 0), (-0.5, 0.0, 0), (0.0, 0.0, 0),
        (1e-9, 0.5, 1), (1e-19, 0.5, 0), (-0.5, -1e-19, 0),  # the last bits of a sum are no effect
        (None, None, 0), (float("nan"), float("nan"), 0),
    ],
)  # fmt: skip
def test_a_difference_is_distinguishable_where_its_interval_excludes_0(low, high, expected):
    assert distinguishable(reports.figure(0.25, low, high)) == expected


@pytest.mark.parametrize("value", [None, reports.UNDEFINED, reports.figure(None, None, None)])
def test_what_has_no_figure_is_a_dash(value):
    assert make_cell(value, signed=True) == Cell("–")
    assert figure(value) == "–"
    assert distinguishable(value) == 0


def test_figures_have_their_interval_and_differences_a_sign_and_a_mark():
    assert figure(reports.figure(3.942, 3.921, 3.96)) == "3.9420 [3.9210, 3.9600]"
    assert figure(reports.figure(0.5, float("nan"), 0.75)) == "0.5000"
    assert make_cell(reports.GAIN) == Cell("0.2500", "0.1250", "0.5000")
    assert make_cell(reports.GAIN, signed=True) == Cell("+0.2500", "+0.1250", "+0.5000", "▲")
    assert make_cell(reports.LOSS, signed=True) == Cell("-0.2500", "-0.5000", "-0.1250", "▼")
    assert make_cell(reports.NULL, signed=True).mark == ""


def test_tables_have_published_figures_and_every_row_in_order():
    row = {"ns_score": reports.GAIN, "map@r": None}
    one = reports.evaluation(reports.GAIN, without_relatives=2, tied={"trained": 1.0}) | dict.fromkeys(ROWS, row)
    (table,) = tables(reports.report(closed_set=one))
    assert table.description.endswith(
        "(8 queries, gallery of 9, 2 without a relevant image left out, up to 1 of them cut off at a tie)"
    )
    assert (table.name, table.title, table.metrics, table.note) == (
        "closed_set",
        "closed set",
        ["ns_score", "map@r"],
        "",
    )
    assert [(row.title, *map(str, row.cells)) for row in table.rows] == [
        ("VGG16", "3.787", "–"),
        ("frozen features", "0.2500 [0.1250, 0.5000]", "–"),
        ("head before training", "0.2500 [0.1250, 0.5000]", "–"),
        ("trained head", "0.2500 [0.1250, 0.5000]", "–"),
        ("frozen features, re-ranked", "0.2500 [0.1250, 0.5000]", "–"),
        ("trained head, re-ranked", "0.2500 [0.1250, 0.5000]", "–"),
        ("trained − frozen, paired", "+0.2500 [+0.1250, +0.5000]", "–"),
        ("trained − untrained, paired", "+0.2500 [+0.1250, +0.5000]", "–"),
        ("re-ranked − trained, paired", "+0.2500 [+0.1250, +0.5000]", "–"),
    ]
    assert [row.difference for row in table.rows] == [False] * 6 + [True] * 3


def test_a_data_set_without_relevant_images_has_dashes_and_one_sentence():
    one = reports.evaluation(reports.UNDEFINED, without_relatives=8)
    one |= {row: {"ns_score": reports.UNDEFINED} for row in ("frozen", "trained")}
    (table,) = tables(reports.report(closed_set=one))
    assert table.note == "No query has a relevant image in the data set, so there is nothing to score."
    assert "nan" not in str(table.rows)
