"""Triplets by scorers: ranks that are worked out by hand, for images on an arc (deep) of two colours (copies)."""

from functools import partial

import numpy as np
import pytest

from fgis.learning import heads, samplers, scorers
from fgis.learning.pools import RunImages
from fgis.learning.recipe import Strategy, make_runs
from fgis.learning.train import TrainingData

ALL = np.arange(12)
ANGLES = np.radians(ALL * (ALL + 1) / 2)  # 0, 1, 3, 6, 10 ... 66 degrees: no image lies halfway between two others
ARC = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32) * (1 + ALL[:, None])  # of any length
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
COLOURS = np.float32([RED if row % 2 == 0 else BLUE for row in ALL])
NOISE = np.random.default_rng(0).random((12, 3), np.float32)  # the smaller copy, which no scorer looks at
PIXELS = np.concatenate([ARC, NOISE, np.tile(COLOURS, 4)], axis=1)  # copies of 1² and 2²


def draw(rows=ALL, features=ARC, seed=0, pixels=(), labels=ALL, **options):
    images = RunImages(labels, np.array(rows), None, lambda wanted: features[wanted], pixels)
    drawn = scorers.draw_scored_triplets(images, seed, **{"triplets": 3000, **options})
    assert drawn.dtype == np.int32
    return drawn


def found(drawn, query):
    """The positives and the negatives of a query, in ascending order."""
    own = drawn[drawn[:, 0] == query]
    return [sorted(set(own[:, side].tolist())) for side in (1, 2)]


def test_ranks_by_one_scorer():
    # The rest of query 3, at 6 degrees, by distance: 2 (3), 4 (4), 1 (5), 0 (6), 5 (9), 6 (15), 7 (22), ...
    ranks = {"positive_ranks": 2, "negative_ranks": (3, 5)}
    assert found(draw(**ranks, out_of_class=0.0), 3) == [[2, 4], [0, 5]]
    assert found(draw(**ranks, out_of_class=1.0), 3) == [[2, 4], [6, 7, 8, 9, 10, 11]]
    drawn = draw(**ranks, out_of_class=0.25, triplets=20_000)
    assert found(drawn, 3) == [[2, 4], [0, 5, 6, 7, 8, 9, 10, 11]]
    own = drawn[drawn[:, 0] == 3]
    assert len(own) / 20_000 == pytest.approx(1 / 12, abs=0.01)  # all images are queries alike
    assert (own[:, 1] == 2).mean() == pytest.approx(1 / 2, abs=0.06)
    assert np.isin(own[:, 2], [0, 5]).mean() == pytest.approx(3 / 4, abs=0.06)


@pytest.mark.parametrize(
    ("query", "positives", "in_class", "behind"),
    [
        # Deep: 1, 2, 3, 4, ...; colour: 2, 4, 6, 8, 10, then the blue ones.
        (0, [1, 2], [3, 6], [5, 7, 8, 9, 10, 11]),
        # Deep: 0, 2, 3, 4, ...; colour: 3, 5, 7, 9, 11: the third of one is the first of the other, a positive.
        (1, [0, 3], [7], [4, 6, 8, 9, 10, 11]),
    ],
)
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_ranks_by_two_scorers_and_the_larger_copy(query, positives, in_class, behind, order):
    features = PIXELS if order == (1, 2) else np.roll(PIXELS[:, 2:], 12, axis=1)
    if order == (2, 1):
        features = np.concatenate([ARC, features], axis=1)
    ranks = {"features": features, "pixels": order, "positive_ranks": 1, "negative_ranks": (2, 3)}
    assert found(draw(**ranks, out_of_class=0.0), query) == [positives, in_class]
    assert found(draw(**ranks, out_of_class=1.0), query) == [positives, behind]


def test_ties_go_by_row():
    alike = np.ones((6, 3), np.float32)  # query 2: rows 0, 1, 3, 4, 5
    for share, negative in ((0.0, 4), (1.0, 5)):
        drawn = draw(range(6), alike, positive_ranks=2, negative_ranks=(3, 4), out_of_class=share)
        assert found(drawn, 2) == [[0, 1], [negative]]


def test_where_one_kind_of_negative_is_missing_the_other_is_taken():
    ranks = {"positive_ranks": 2, "negative_ranks": (3, 50)}  # nothing lies behind rank 50 of 11
    assert found(draw(**ranks, out_of_class=1.0), 3)[1] == [0, 5, 6, 7, 8, 9, 10, 11]
    # Query 0: the second by one scorer is the first by the other, so that both ranks of in-class negatives are taken.
    colours = np.where(np.isin(ALL, (0, 1, 2))[:, None], np.float32(RED), np.float32(BLUE))
    features = np.concatenate([ARC[[0, 2, 1, *range(3, 12)]], np.tile(colours, 4)], axis=1)
    drawn = draw(features=features, pixels=(2,), positive_ranks=1, negative_ranks=(1, 2), out_of_class=0.0)
    assert found(drawn, 0) == [[1, 2], [3, 4, 5, 6, 7, 8, 9, 10, 11]]


def test_a_run_sees_its_own_images_alone_and_no_labels():
    rows = [11, 2, 3, 5, 7, 8]
    unseen = np.setdiff1d(ALL, rows)
    features = ARC.copy()
    features[unseen] = np.nan
    ranks = {"positive_ranks": 1, "negative_ranks": (2, 3)}
    drawn = draw(rows, features, **ranks)
    assert set(np.unique(drawn)) == set(rows)
    assert found(drawn, 2) == [[3], [7, 8, 11]]
    assert (drawn == draw(sorted(rows), ARC, **ranks, labels=ALL // 3)).all()


def test_draws_depend_on_the_seed_and_not_on_how_many_are_ranked_together(monkeypatch):
    ranks = {"features": PIXELS, "pixels": (1, 2), "positive_ranks": 1, "negative_ranks": (2, 3)}
    first = draw(**ranks)
    assert (first == draw(**ranks)).all()
    assert (first != draw(**ranks, seed=1)).any()
    monkeypatch.setattr(scorers, "BLOCK", 5)
    assert (first == draw(**ranks)).all()
    monkeypatch.setattr(scorers, "CELLS", 60)  # five queries at a time
    assert found(draw(**ranks), 1)[0] == found(first, 1)[0]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"positive_ranks": 0}, "positive_ranks: 0 found; write a whole number from 1 to 2147483647"),
        ({"negative_ranks": (0, 3)}, "negative_ranks: 0 found; write a whole number from 1 to 2147483647"),
        (
            {"positive_ranks": 3, "negative_ranks": (2, 5)},
            "negative_ranks: (2, 5) found; write two ascending ranks, the first of at least positive_ranks, which is 3",
        ),
        (
            {"negative_ranks": (10,)},
            "negative_ranks: (10,) found; write two ascending ranks, the first of at least positive_ranks, which is 10",
        ),
        (
            {"negative_ranks": (11, 20)},
            "negative_ranks: (11, 20) found, but 13 images are needed for ranks behind 11 (scorers: 1), and a run sees "
            "12; write lower ranks",
        ),
    ],
)
def test_ranks_that_allow_no_triplet_are_refused(options, line):
    with pytest.raises(ValueError) as error:
        draw(**options)
    assert str(error.value) == line
    with pytest.raises(ValueError, match="features: None found; give"):
        scorers.draw_scored_triplets(RunImages(ALL, ALL), 0, positive_ranks=1, negative_ranks=(2, 3))


def test_colour_histograms_by_hand():
    # Black has value 0; grey neither hue nor chroma; a dark green of full saturation; a pale magenta.
    pixels = np.float32([[0, 0, 0], [0.5, 0.5, 0.5], [0, 0.3, 0], [0.9, 0.6, 0.9]]).reshape(1, 2, 2, 3)
    places = {0: 0, 1: 2, 2: (5 * 4 + 3) * 4 + 1, 3: (13 * 4 + 1) * 4 + 3}  # (hue · 4 + saturation) · 4 + value
    (histogram,) = scorers.colour_histograms(pixels)
    assert histogram.shape == (256,)
    assert {int(place): histogram[place] for place in np.flatnonzero(histogram)} == {p: 0.25 for p in places.values()}
    assert scorers.colour_histograms(np.tile(pixels, (3, 1, 1, 1))).sum(axis=1).tolist() == [1, 1, 1]


def test_runs_are_drawn_from_their_own_features_wherever_these_lie():
    pool = partial(samplers.SAMPLERS["scored_triplets"].pool, triplets=50, positive_ranks=1, negative_ranks=(2, 3))
    strategy = Strategy(heads.residual(rank=1), pool=pool)
    fetched = []
    fetch = lambda rows: fetched.append(rows) or PIXELS[rows]
    for features in (PIXELS, fetch):
        runs = make_runs(strategy, TrainingData(features, ALL), [(0, ALL), (3, ALL[4:])], pixels=(1, 2))
        for drawn, seed, rows in zip(np.asarray(runs.pools), (0, 3), (ALL, ALL[4:])):
            expected = draw(rows, PIXELS, seed, (1, 2), triplets=50, positive_ranks=1, negative_ranks=(2, 3))
            assert (drawn == expected).all()
    assert {len(rows) for rows in fetched} == {12, 8}
