"""Expected values are worked out by hand, on relevance that is not symmetric."""

import numpy as np
import pytest

from fgis.retrieval import metrics
from fgis.types import UserError

# Query 0: relatives at ranks 2, 3 and 6 of 3; query 1: at rank 1 of 2 (the other is not retrieved); query 2: none
# exist.
RELEVANCE = np.array([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
TOTALS = np.array([3, 2, 0])

EXPECTED = {
    "ns_score": [2, 1, np.nan],
    "accuracy_top4": [0.5, 0.25, np.nan],
    "recall@1": [0, 1, np.nan],
    "recall@2": [1, 1, np.nan],
    "precision@3": [2 / 3, 1 / 3, np.nan],
    "r_precision": [2 / 3, 1 / 2, np.nan],
    "map@r": [(1 / 2 + 2 / 3) / 3, 1 / 2, np.nan],
}


def test_every_metric_has_a_hand_worked_value():
    assert {name.split("@")[0] if name != "map@r" else name for name in EXPECTED} == set(metrics.METRICS)


@pytest.mark.parametrize("name", EXPECTED)
def test_metric_by_hand(name):
    function, _, _ = metrics.find_metric(name, 3)
    np.testing.assert_allclose(function(RELEVANCE, TOTALS), EXPECTED[name])


@pytest.mark.parametrize(("name", "includes_query", "depth"), [
    ("ns_score", True, 4), ("accuracy_top4", True, 4), ("recall@10", False, 10), ("precision@2", False, 2),
    ("r_precision", False, 7), ("map@r", False, 7),
])  # fmt: skip
def test_a_metric_knows_its_depth_and_whether_the_query_counts(name, includes_query, depth):
    assert metrics.find_metric(name, 7)[1:] == (includes_query, depth)


@pytest.mark.parametrize("name", ["recal@1", "recall", "recall@0", "recall@x", "ns_score@4", "map@5", ""])
def test_an_unknown_metric_is_named(name):
    with pytest.raises(UserError, match=f"'{name}' is no metric"):
        metrics.find_metric(name)
