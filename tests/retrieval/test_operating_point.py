"""Two distances chosen on a gallery, and rates that hold for photos it was not chosen on."""

import numpy as np
import pytest

from fgis.retrieval.operating_point import choose_operating_point, judge_distance

OBJECTS = np.repeat(np.arange(20), 4)


def test_by_hand():
    """Unknown scores 0.01 … 0.80, so every object has four of its own; the threshold keeps away from the least ones."""
    unknown = np.arange(1, 81)[None] / 100
    known = np.where(np.arange(80) % 10 == 0, 0.9, 0.05)[None]
    point = choose_operating_point(known, unknown, OBJECTS, false_alarms=0.25, missed=0.1)
    accepted = (unknown <= point.threshold).sum()
    assert 0 < accepted / 80 < 0.25
    assert point.threshold == pytest.approx((accepted + 1) / 100)  # just below the next score
    assert point.detection == 0.9  # all but eight of eighty
    assert (point.limit, point.missed) == (point.threshold, 0.1)  # 0.05 is below the threshold, 0.9 beyond it
    assert accepted / 80 < point.false_alarms <= 0.25


def test_the_limit_leaves_a_band_of_uncertainty_where_known_objects_are_far():
    unknown = np.linspace(0.1, 1, 80)[None]
    known = np.linspace(0.05, 0.6, 80)[None]
    point = choose_operating_point(known, unknown, OBJECTS)
    assert point.threshold < 0.2 < point.limit
    assert point.limit == np.sort(known[0])[75]
    assert point.missed == pytest.approx(4 / 80)
    assert [judge_distance(d, point) for d in (0.01, point.threshold, 0.4, point.limit, 0.99)] == [
        "known", "known", "uncertain", "uncertain", "absent"
    ]  # fmt: skip


def test_few_objects_cannot_promise_few_false_alarms():
    unknown, known = np.ones((1, 4)), np.zeros((1, 4))
    point = choose_operating_point(known, unknown, np.array([0, 0, 1, 1]), false_alarms=0.1)
    assert point.false_alarms == pytest.approx(0.5 / 2.5)  # none seen of two objects
    assert point.detection == 1


def test_what_nothing_tells_is_nan_or_none():
    point = choose_operating_point(np.full((1, 3), np.nan), np.ones((1, 3)), np.arange(3))
    assert np.isnan(point.detection)
    assert np.isnan(point.missed)
    assert point.limit == np.inf
    assert judge_distance(99.0, point) == "uncertain"
    assert choose_operating_point(np.ones((1, 3)), np.full((1, 3), np.inf), np.zeros(3, int)) is None
    assert judge_distance(0.0, None) == "uncertain"
    with pytest.raises(ValueError, match=r"missed: 2.0 found"):
        choose_operating_point(np.ones((1, 3)), np.ones((1, 3)), np.arange(3), missed=2.0)


def test_stated_rates_hold_for_photos_of_the_same_kind():
    """Photos are points around 30 objects; new ones, and those of 200 other objects, are drawn as the gallery was."""
    differences = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        photos = rng.normal(size=(230, 1, 8)) + 0.6 * rng.normal(size=(230, 12, 8))
        gallery, labels = photos[:30, :8].reshape(-1, 8), np.repeat(np.arange(30), 8)
        distance = lambda a, b: np.linalg.norm(a[:, None] - b, axis=-1)
        own = distance(gallery, gallery)
        known = np.where(np.eye(240, dtype=bool), np.inf, own).min(axis=1)
        unknown = np.where(labels[:, None] == labels, np.inf, own).min(axis=1)
        point = choose_operating_point(known[None], unknown[None], labels)
        assert point.false_alarms <= 0.1
        found = distance(photos[:30, 8:].reshape(-1, 8), gallery).min(axis=1)
        foreign = distance(photos[30:, 0], gallery).min(axis=1)
        differences.append([
            np.mean(found <= point.threshold) - point.detection,
            np.mean(foreign <= point.threshold) - point.false_alarms,
            np.mean(found > point.limit) - point.missed,
        ])  # fmt: skip
    assert np.abs(np.mean(differences, axis=0)).max() < 0.05
