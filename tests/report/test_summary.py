from fgis.report import summary


def report():
    row = {"ns_score": {"mean": 3.5, "ci95": [3.25, 3.75]}, "map@r": {"mean": None, "ci95": [None, None]}}
    evaluation = {"queries": 8, "gallery": 9, "without_relatives": 2, **dict.fromkeys(summary.ROWS, row)}
    published = [["VGG16", "closed_set", "ns_score", 3.787]]
    return {"config": {"evaluation": {"published": published}}, "evaluations": {"closed_set": evaluation}}


def test_tables_have_published_frozen_and_trained_rows():
    ((title, header, rows),) = summary.tables(report())
    assert "8 queries, gallery of 9, 2 without relatives left out" in title
    assert header == ["", "ns_score", "map@r"]
    assert rows == [
        ["VGG16", "3.787", "–"],
        ["frozen features", "3.5000 [3.2500, 3.7500]", "–"],
        ["head before training", "3.5000 [3.2500, 3.7500]", "–"],
        ["trained head", "3.5000 [3.2500, 3.7500]", "–"],
        ["frozen features, re-ranked", "3.5000 [3.2500, 3.7500]", "–"],
        ["trained head, re-ranked", "3.5000 [3.2500, 3.7500]", "–"],
        ["trained − frozen, paired", "+3.5000 [+3.2500, +3.7500]", "–"],
        ["trained − untrained, paired", "+3.5000 [+3.2500, +3.7500]", "–"],
        ["re-ranked − trained, paired", "+3.5000 [+3.2500, +3.7500]", "–"],
    ]
    assert "3.5000 [3.2500, 3.7500]" in summary.text(report())


def test_collapsed_runs_are_named_and_healthy_ones_are_not_mentioned():
    history = [{"step": 1, "collapsed": [1.0, 1.0, 1.0]}, {"step": 2, "collapsed": [0.0, 1.0, 1.0]}]
    assert summary.collapsed(history) == [1, 2]
    assert summary.collapsed([]) == summary.collapsed([{"step": 1}]) == []
    choices = {"miner": {"name": "hard_negatives"}, "loss": {"name": "triplet"}}
    found = report() | {"collapsed": [[0, -1], [3, 2]]}
    found["config"] |= choices
    text = summary.text(found)
    assert text.startswith("COLLAPSED: 2 runs (seed 0, seed 3 fold 2) ended")
    assert "hard_negatives" in text
    assert "COLLAPSED" not in summary.text(report())
    assert "COLLAPSED" not in summary.text(found | {"collapsed": []})
