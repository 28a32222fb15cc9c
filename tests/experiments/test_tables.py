import json
import re

import numpy as np
import pytest

from experiments import rendering
from experiments.rendering import escape
from experiments.summaries import Measured, Outcome, summarize_table, table_page
from experiments.tables import FROZEN, Options, Published, Row, Table, place_of, row_config
from fgis.retrieval.significance import holm, sign_flip_p

LABELS = np.repeat(np.arange(20), 3)
RNG = np.random.default_rng(0)
RESULT = {
    "seconds": 12.3, "megabytes": 456.7, "machine": "2 CPU cores", "date": "2026-11-22", "features": {"size": 7},
    "training": {"loss": 0.5},
}  # fmt: skip
CONTEXT = {
    "command": "python -m experiments.t", "versions": {"jax": "1"}, "settings": dict(seeds=2, folds=5, steps=9),
    "dataset": "d", "metrics": ["a", "b|c"], "headline": "a",
}  # fmt: skip


def values(gain, seeds=2):
    base = np.random.default_rng(1).random((1, 60))
    noise = RNG.normal(size=(seeds, 60))
    return {"a": base + gain + 0.05 * noise, "b|c": base - gain + 0.05 * noise}


def found(row, gain, seeds=2, labels=LABELS, **more):
    return Outcome(row, Measured(values(gain, seeds), labels), {**RESULT, **more})


ONE_METRIC = CONTEXT | {"metrics": ["a"]}
FOUND = [
    found(FROZEN, 0, seeds=1),
    found(Row("reference_row"), 0.2, date="2026-11-23"),
    found(Row("good & cheap", note="a_note"), 0.3),
    found(Row("same"), 0.0, training={"collapsed": 0.25}),
    Outcome(Row("absent"), reason="needs x_y; run `python -m z --k='(1,2)'`"),
]
TABLE = Table(
    "t", [one.row for one in FOUND], "reference_row",
    {"d": (Published("peer_1", "A & B 2014", "closed set", {"a": 3.787}, "R@1 50 %"),)},
)  # fmt: skip


def markdown(summary):
    return rendering.markdown(summary, table_page(summary))


def latex(summary):
    return rendering.latex(summary, table_page(summary))


@pytest.fixture(scope="module")
def summary():
    return json.loads(json.dumps(summarize_table(TABLE, CONTEXT, FOUND, resamples=200)))


def test_differences_are_paired_and_corrected_over_the_table(summary):
    rows = {row["row"]: row["metrics"] for row in summary["rows"]}
    for key, other, names in (
        ("minus_frozen", 0, ["reference_row", "good & cheap", "same"]),
        ("minus_reference", 1, [FROZEN.name, "good & cheap", "same"]),
    ):
        differences = {one.row.name: one.measured.values["a"] - FOUND[other].measured.values["a"] for one in FOUND[:4]}
        p = [sign_flip_p(differences[name], LABELS) for name in names]
        assert [rows[name]["a"][key]["p"] for name in names] == p
        assert [rows[name]["a"][key]["p_holm"] for name in names] == holm(p)
        for name in names:
            assert rows[name]["a"][key]["mean"] == pytest.approx(differences[name].mean())
    assert "minus_frozen" not in rows[FROZEN.name]["a"]
    assert "minus_reference" not in rows["reference_row"]["a"]
    assert rows["absent"] == {}


def test_the_table_says_when_and_where_it_was_made(summary):
    assert (summary["date"], summary["machine"], summary["features"]) == ("2026-11-23", "2 CPU cores", {"size": 7})
    assert summary["rows"][2]["seconds"] == 12.3
    assert summary["rows"][2]["training"] == {"loss": 0.5}
    head = markdown(summary).splitlines()[2]
    assert head == "`python -m experiments.t` · 2026-11-23 · jax 1 · 2 CPU cores"


def cells(line):
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown_is_a_pipe_table_with_marks_and_dashes(summary):
    text = markdown(summary)
    lines = {cells(line)[0]: cells(line) for line in text.splitlines() if line.startswith("|")}
    main = [cells(line) for line in text.split("Differences")[0].splitlines() if line.startswith("|")]
    assert main[0] == ["row", "a", r"b\|c", "Δ frozen, a", "Δ reference_row, a", "s", "MB"]
    assert {len(row) for row in main} == {7}
    good = main[4]
    assert good[0] == "good & cheap"
    assert good[3].endswith("]*")
    assert good[5:] == ["12", "457"]
    assert main[2][3] == "–"  # the frozen features differ from themselves in nothing
    assert not main[5][3].endswith("*")  # "same" differs from them by noise
    assert main[6] == ["absent", "not run", "–", "–", "–", "–", "–"]
    assert main[7] == ["published: peer_1 (A & B 2014)", "3.787", "–", "–", "–", "–", "–"]
    assert lines["same"][1:] != main[5][1:]  # the second grid: the other metric
    assert "- good & cheap: a_note\n" in text
    assert "- same: **collapsed** in 25% of its runs, by their last batch\n" in text
    assert "- published: peer_1 (A & B 2014): closed set; R@1 50 %\n" in text
    assert "- not run: absent: needs x_y; run `python -m z --k='(1,2)'`" in text
    assert text.endswith(" and not under this protocol.\n")


def test_latex_is_a_fragment_whose_rows_have_all_their_cells(summary):
    text = latex(summary)
    for begin, body in zip(
        re.findall(r"\\begin{tabular}{p{0.28\\linewidth}(l*)}", text),
        re.findall(r"\\begin{tabular}.*?\\toprule\n(.*?)\\bottomrule\n\\end{tabular}", text, re.DOTALL),
        strict=True,
    ):
        rows = [line for line in body.splitlines() if line != r"\midrule"]
        assert all(row.endswith(r" \\") for row in rows)
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(begin)}
    assert text.count(r"\begin{tabular}") == 2
    assert r"good \& cheap" in text
    assert r"reference\_row" in text
    assert r"\texttt{python -m z --k='(1,2)'}" in text
    assert text.isascii() or not set(text) & set("Δ−–×±·≥≤→²χβ…") - set("·")
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert len(re.findall(r"(?<!\\){", uncommented)) == len(re.findall(r"(?<!\\)}", uncommented))
    assert not re.findall(r"(?<!\\)[%#$_](?![^$]*\$)", re.sub(r"\$[^$]*\$", "", uncommented))


def test_every_special_character_is_escaped():
    assert escape(r"50% & $x_1^2# {a}~\b") == (
        r"50\% \& \$x\_1\textasciicircum{}2\# \{a\}\textasciitilde{}\textbackslash{}b"
    )
    assert escape("[1] <a|b> *") == r"{[}1{]} \textless{}a\textbar{}b\textgreater{} \textsuperscript{*}"
    assert escape("Δ − 1 – 2 × χ²") == r"$\Delta$ $-$ 1 -- 2 $\times$ $\chi$\textsuperscript{2}"
    assert escape("-0.5 [-1, +2] x-1 --k=-1") == r"$-$0.5 {[}$-$1, +2{]} x-1 --k=$-$1"
    assert escape("run `a_b` **now_**") == r"run \texttt{a\_b} \textbf{now\_}"


def test_rows_on_other_images_have_no_differences():
    other = found(Row("others"), 0.5, labels=LABELS[::-1].copy())
    summary = summarize_table(TABLE, ONE_METRIC, [*FOUND, other], resamples=20)
    assert set(summary["rows"][-1]["metrics"]["a"]) == {"mean", "ci95"}
    assert markdown(summary)


def test_a_table_without_figures_renders():
    empty = [Outcome(one.row, reason="needs features") for one in FOUND]
    summary = summarize_table(TABLE, ONE_METRIC | {"dataset": "none"}, empty)
    assert "- not run: all rows: needs features" in markdown(summary)
    assert r"\end{tabular}" in latex(summary)


def test_places_are_readable_and_unique(tmp_path):
    place = place_of(tmp_path, "trained", {"miner.name": "semi hard/", "x": (1, 2)})
    assert re.fullmatch(r"trained,miner\.name=semi_hard_,x=_1,_2_-[0-9a-f]{8}", place.name)
    assert place == place_of(tmp_path, "trained", {"x": [1, 2], "miner.name": "semi hard/"})
    long = {"head.mlp.widths": tuple(range(99))}
    assert place_of(tmp_path, "trained", long) != place_of(tmp_path, "trained", {"head.mlp.widths": tuple(range(98))})
    assert len(place_of(tmp_path, "trained", long).name) < 80


def test_overrides_reach_the_configuration():
    row = Row("x", {"loss.triplet.margin": 0.7, "new.key": 1})
    config = row_config(TABLE, "ukbench", row, Options(seeds=4, folds=3, steps=7))
    assert (config["seeds"], config["folds"], config["closed_set"]) == (4, 3, False)
    assert config["train"]["total_steps"] == 7
    assert (config["loss"]["triplet"]["margin"], config["new"]["key"]) == (0.7, 1)
    assert config["evaluation"]["metrics"] == ["ns_score", "recall@1", "map@r"]
