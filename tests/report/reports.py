"""Reports by hand, for the tests of this folder."""

from typing import Any

CONFIG = {
    "features": {"collection": "cups", "backbone": "vit"},
    "evaluation": {"published": [["VGG16", "closed_set", "ns_score", 3.787]]},
    "miner": {"name": "hard_negatives", "hard_negatives": {}, "random_negatives": {}},
    "loss": {"name": "triplet", "triplet": {"margin": 0.2}, "margin": {"margin": 0.5}},
}


def figure(mean, low, high):
    return {"mean": mean, "ci95": [low, high]}


def evaluation(difference, training=None, metric="ns_score", **counts) -> dict[str, Any]:
    """Frozen 3.5, untrained 3.25, trained 3.75, whatever the differences are said to be."""
    rows = {"frozen": figure(3.5, 3.25, 3.75), "untrained": figure(3.25, 3, 3.5), "trained": figure(3.75, 3.5, 4)}
    rows |= {"difference": difference} | ({"difference_untrained": training} if training else {})
    counts = {"queries": 8, "gallery": 9, "without_relatives": 0, "tied": {"trained": 0.0}} | counts
    return counts | {row: {metric: value} for row, value in rows.items()}


def report(**evaluations) -> dict[str, Any]:
    return {
        "version": 1, "config": CONFIG, "step": 20, "versions": {"python": "3.12.1"}, "collapsed": [],
        "evaluations": evaluations,
    }  # fmt: skip


GAIN, LOSS, NULL = figure(0.25, 0.125, 0.5), figure(-0.25, -0.5, -0.125), figure(0.25, -0.125, 0.5)
UNDEFINED = figure(float("nan"), float("nan"), float("nan"))
