from collections import Counter
from functools import partial

import jax
import numpy as np
import pytest

from fgis.learning import relevance, samplers
from fgis.learning.pools import RunImages

# Coarse class 7: labels 0, 1, 2 of 5, 2 and 1 images; 8: labels 3, 4 of 3 and 1; 9: one lone image; 6: label 6 of 3.
ORDER = np.random.default_rng(0).permutation(16)
LABELS = np.array([0] * 5 + [1] * 2 + [2] + [3] * 3 + [4] + [5] + [6] * 3)[ORDER]
COARSE = np.array([7] * 8 + [8] * 4 + [9] + [6] * 3)[ORDER]
TOTAL = {0: 11, 1: 8, 2: 7, 3: 5, 4: 3, 5: 0, 6: 4}  # of an image with this label: 2 (f - 1) + (c - f)
ALL = np.arange(16)


def draw(seeds=1, triplets=2000, labels=LABELS, rows=ALL, coarse=COARSE, weighted=True, **options):
    draw_triplets = relevance.draw_deep_ranking_triplets if weighted else relevance.draw_uniform_triplets
    draws = [draw_triplets(RunImages(labels, rows, coarse), s, triplets=triplets, **options) for s in range(seeds)]
    assert all(one.shape == (triplets, 3) and one.dtype == np.int32 for one in draws)
    return np.concatenate(draws)


def grade(i, j):
    if i == j or COARSE[i] != COARSE[j]:
        return 0
    return 2 if LABELS[i] == LABELS[j] else 1


def exact_law(rows, out_of_class, cap, gap, weighted=True):
    """P(query, positive, negative) by the definitions, image by image; buffers hold image i in proportion to r_i."""
    rows = [int(i) for i in rows]
    total = {i: sum(grade(i, j) for j in rows) if weighted else 1 for i in rows}
    cap = cap if weighted else 1
    normalised = lambda weights: {k: w / sum(weights.values()) for k, w in weights.items() if w > 0}
    categories = sorted({COARSE[i] for i in rows})
    place = {}  # P(i | the buffer of its category)
    for c in categories:
        place |= normalised({i: max(total[i], 1) for i in rows if COARSE[i] == c})

    def accepted(i):
        return {j: place[j] * min(cap, grade(i, j)) / total[j] for j in rows if grade(i, j) > 0}

    def negatives(i, p):
        near = normalised({j: w for j, w in accepted(i).items() if grade(i, p) - grade(i, j) >= gap})
        far = {j: place[j] / (len(categories) - 1) for j in rows if COARSE[j] != COARSE[i] and grade(i, p) >= gap}
        share = out_of_class if near and far else 1.0 if far else 0.0
        return Counter({j: w * share for j, w in far.items()}) + Counter({j: w * (1 - share) for j, w in near.items()})

    law = Counter()
    able = [i for i in rows if any(negatives(i, p) for p in accepted(i))]
    for i, query in normalised({i: total[i] for i in able}).items():
        for p, positive in normalised({p: w for p, w in accepted(i).items() if negatives(i, p)}).items():
            for j, negative in negatives(i, p).items():
                law[i, p, j] = query * positive * negative
    return law


def test_total_relevance_by_hand_and_by_its_definition():
    found = relevance.total_relevance(LABELS, COARSE)
    assert found.tolist() == [TOTAL[label] for label in LABELS]
    assert found.tolist() == [sum(grade(i, j) for j in ALL) for i in ALL]
    assert relevance.total_relevance(LABELS, LABELS)[LABELS == 0].tolist() == [8] * 5


@pytest.mark.parametrize("buffer", [1, 3, 20])
def test_a_buffer_evicts_its_smallest_key_or_discards_what_arrives(buffer):
    rng = np.random.default_rng(buffer)
    arriving, keys = rng.integers(0, 6, 15), rng.random(15)
    held = []  # (key, image), one arrival after the other
    for key, image in zip(keys, arriving):
        if len(held) < buffer:
            held.append((key, image))
        elif key > min(held)[0]:
            held[held.index(min(held))] = (key, image)
    assert sorted(relevance.fill_buffer(arriving, keys, buffer)) == sorted(image for _, image in held)


def test_a_place_of_a_buffer_holds_an_image_in_proportion_to_its_total_relevance():
    # 6000 categories of three images: as many independent buffers. One place is exact, 20 lose little to their number.
    category, total = np.repeat(np.arange(6000), 3), np.tile([9, 3, 1], 6000)
    for buffer, tolerance in ((1, 0.02), (20, 0.03)):
        held = relevance.fill_buffers(category, total, buffer, np.random.default_rng(1))
        assert held.shape == (6000, buffer)
        assert (category[held] == np.arange(6000)[:, None]).all()
        shares = np.bincount(held.ravel() % 3) / held.size
        np.testing.assert_allclose(shares, np.array([9, 3, 1]) / 13, atol=tolerance)


def test_queries_come_in_proportion_to_their_total_relevance_over_the_whole_run():
    queries = draw(seeds=16, buffer=1024)[:, 0]
    for row in ALL:
        assert (queries == row).mean() == pytest.approx(TOTAL[LABELS[row]] / 106, rel=0.12), LABELS[row]


@pytest.mark.parametrize(("cap", "same_label"), [(2.0, 8 / 11), (1.0, 4 / 7), (0.5, 4 / 7)])
def test_positives_come_in_proportion_to_the_capped_relevance(cap, same_label):
    # A query of label 0 has 4 others of its label and 3 of its coarse class alone: 4 min(T_p, 2) against 3 min(T_p, 1).
    drawn = draw(seeds=16, buffer=512, positive_cap=cap)
    positives = drawn[LABELS[drawn[:, 0]] == 0, 1]
    assert (LABELS[positives] == 0).mean() == pytest.approx(same_label, abs=0.02)
    lone = (LABELS[positives] == 2).mean()  # of the three others, one
    assert lone == pytest.approx((1 - same_label) / 3, rel=0.12)


def test_negatives_come_from_the_class_where_it_has_any_and_the_draw_says_so():
    drawn = draw(seeds=16, buffer=512, out_of_class=0.25)
    query, positive, negative = drawn.T
    inside = COARSE[negative] == COARSE[query]
    twice = LABELS[positive] == LABELS[query]
    assert not inside[~twice].any()  # nothing in the class is less relevant than a positive of another label
    assert not inside[COARSE[query] == 6].any()  # one label, so nothing less relevant
    both = twice & (COARSE[query] != 6)
    assert inside[both].mean() == pytest.approx(0.75, abs=0.02)
    # Out of class, every other buffer counts alike: a query of coarse class 7 meets the lone image one time in three.
    outside = negative[~inside & (COARSE[query] == 7)]
    assert (COARSE[outside] == 9).mean() == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize(
    ("keep", "options"),
    [
        ((6, 7, 8, 9), dict(out_of_class=0.3, positive_cap=2.0, relevance_gap=1.0)),
        pytest.param((6, 7, 8, 9), dict(out_of_class=0.0, positive_cap=1.0, relevance_gap=1.0), marks=pytest.mark.slow),
        pytest.param((6, 7, 8, 9), dict(out_of_class=1.0, positive_cap=1.5, relevance_gap=2.0), marks=pytest.mark.slow),
        ((7, 8), dict(out_of_class=0.6, positive_cap=2.0, relevance_gap=1.0)),
        ((7, 8), dict(out_of_class=0.6, weighted=False)),
    ],
)
def test_triplets_follow_the_law_of_the_definitions(keep, options):
    rows = np.flatnonzero(np.isin(COARSE, keep))
    cap, gap, weighted = options.get("positive_cap"), options.get("relevance_gap", 1), options.get("weighted", True)
    law = exact_law(rows, options["out_of_class"], cap, gap, weighted)
    assert sum(law.values()) == pytest.approx(1)
    found = Counter(map(tuple, draw(seeds=24, buffer=512, triplets=4000, rows=rows, **options).tolist()))
    assert set(found) <= set(law)
    count = sum(found.values())
    assert sum(abs(found[t] / count - chance) for t, chance in law.items()) / 2 < 0.05
    for side in range(3):  # each image on each side
        shares = np.zeros((2, 16))
        for triplet, chance in law.items():
            shares[:, triplet[side]] += chance, found[triplet] / count
        np.testing.assert_allclose(shares[1], shares[0], atol=0.01)


def test_a_run_of_one_category_takes_negatives_from_it_alone():
    rows = np.flatnonzero(COARSE == 7)
    query, positive, negative = draw(rows=rows, out_of_class=1.0).T
    assert (LABELS[positive] == LABELS[query]).all()  # a positive of another label would leave no negative
    assert (positive != query).all()
    assert set(LABELS[query]) == {0, 1}  # the lone image of label 2 has no such positive
    assert (LABELS[negative] != LABELS[query]).all()
    assert set(negative) == set(rows)


@pytest.mark.parametrize("gap", [0.0, 1.0, 1.5, 2.0])
def test_the_gap_is_kept_by_every_triplet(gap):
    drawn = draw(out_of_class=0.5, relevance_gap=gap)
    gaps = [grade(q, p) - grade(q, n) for q, p, n in drawn.tolist()]
    assert min(gaps) == (2 if gap > 1 else 1)
    assert all(grade(q, p) > 0 for q, p, _ in drawn.tolist())


def test_images_that_cannot_be_queries_do_not_count_for_their_category():
    # Coarse class 0: two images of one label (r = 22) and 20 lone ones, without a positive of grade 2; 1: one label of
    # 4 images (r = 6). Of the images that can be queries, 44 of the total relevance of 68 lie in coarse class 0.
    labels = np.array([0, 0, *range(1, 21), 21, 21, 21, 21])
    coarse = (labels == 21).astype(int)
    drawn = draw(seeds=2, labels=labels, rows=np.arange(26), coarse=coarse, relevance_gap=2.0, buffer=256)
    assert set(drawn[:, 0]) == {0, 1, 22, 23, 24, 25}
    assert (coarse[drawn[:, 0]] == 0).mean() == pytest.approx(44 / 68, abs=0.03)


def test_without_coarse_labels_negatives_are_of_another_label():
    query, positive, negative = draw(coarse=None, out_of_class=0.0).T
    assert (LABELS[positive] == LABELS[query]).all()
    assert (positive != query).all()
    assert (LABELS[negative] != LABELS[query]).all()
    assert set(LABELS[query]) == {0, 1, 3, 6}  # those with two images; lone ones are negatives alone
    assert {2, 4, 5} <= set(LABELS[negative])


@pytest.mark.parametrize(
    ("rows", "coarse", "options"),
    [
        ([], COARSE, {}),
        (np.flatnonzero(LABELS == 0), COARSE, {}),  # no negative
        (np.flatnonzero(LABELS == 5), COARSE, {}),
        ([np.flatnonzero(label == LABELS)[0] for label in range(7)], None, {}),  # no positive
        (ALL, COARSE, {"relevance_gap": 3.0}),
    ],
)
def test_where_no_triplet_is_possible_all_rows_are_padding(rows, coarse, options):
    drawn = draw(triplets=50, rows=np.array(rows, int), coarse=coarse, **options)
    assert (drawn == -1).all()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"buffer": 1}, "buffer: 1 found; write a whole number of at least 2"),
        ({"positive_cap": 0.0}, "positive_cap: 0.0 found; write a number above 0"),
    ],
)
def test_options_that_allow_no_triplet_are_refused(options, line):
    with pytest.raises(ValueError) as error:
        draw(**options)
    assert str(error.value) == line


def test_a_run_sees_its_own_images_and_their_labels_alone():
    own = ALL[ALL % 3 > 0]
    drawn = draw(rows=own)
    assert set(np.unique(drawn)) <= set(own)
    elsewhere = ALL % 3 == 0
    again = draw(rows=own, labels=np.where(elsewhere, 0, LABELS), coarse=np.where(elsewhere, 7, COARSE))
    assert (drawn == again).all()
    assert (drawn == draw(rows=own[::-1])).all()


def test_draws_depend_on_the_seed_and_runs_can_be_stacked():
    images = [RunImages(LABELS, rows, COARSE) for rows in (ALL, ALL, ALL[:9], ALL[:0])]
    pool = partial(samplers.SAMPLERS["deep_ranking"].pool, triplets=40)
    pools = [pool(one, seed) for one, seed in zip(images, (0, 1, 0, 0))]
    assert (pools[0] == pool(images[0], 0)).all()
    assert (pools[0] != pools[1]).any()
    sample = lambda drawn, seed: samplers.sample_deep_ranking(drawn, seed, 2, batch=5)
    rows = jax.jit(jax.vmap(sample))(np.stack(pools), np.arange(4))
    assert rows.shape == (4, 15)
    assert (rows[2] < 9).all()
    assert (rows[3] == -1).all()  # no triplet is possible
