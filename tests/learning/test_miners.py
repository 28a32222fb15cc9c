"""Hand-worked cases, the exact distribution of what is drawn, and what must not change what is mined."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from fgis.errors import UserError
from fgis.learning import miners

KEY = jax.random.key(0)
DISTANCE_WEIGHTED = partial(miners.distance_weighted, dimensions=6)
DRAWN = {"random_negatives": miners.random_negatives, "distance_weighted": DISTANCE_WEIGHTED}
MINERS = {
    **miners.MINERS,
    "semi_hard, hardest": partial(miners.semi_hard, fallback="hardest"),
    "semi_hard, easiest": partial(miners.semi_hard, fallback="easiest"),
    **DRAWN,
}
COMPILED = {name: jax.jit(miner) for name, miner in MINERS.items()}
CHOSEN = {name: miner for name, miner in COMPILED.items() if name not in DRAWN}
LISTING_PAIRS = {name: miner for name, miner in MINERS.items() if name not in ("batch_hard", "easy_semi_hard")}
every_miner = pytest.mark.parametrize("miner", COMPILED.values(), ids=MINERS)
# Anchors 0 and 1 against five candidates; row 0 is anchor 0 itself, row 4 is padding.
DISTANCES = jnp.array([[0.0, 0.3, 0.9, 0.5, 0.1], [0.3, 0.0, 0.2, 0.2, 0.1]])
LABELS = jnp.array([7, 7, 3, 7, 7])
ROWS = jnp.array([10, 11, 12, 13, -1])


def masks():
    return miners.relations(LABELS[:2], ROWS[:2], LABELS, ROWS)


def mask(*indices, c):
    return jnp.isin(jnp.arange(c), jnp.array(indices))[None]


def batch(n=24, classes=5, d=6, seed=0):
    """Distances [n, n] between unit vectors in loose clusters, labels and rows; classes of different sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distances = np.sqrt(np.maximum(2 - 2 * x @ x.T, 0)).astype(np.float32)
    return distances, labels, np.arange(n)


def mine(miner, distances, labels, rows, order=slice(None), key=KEY):
    """Mines with the candidates in another ``order``."""
    relations = miners.relations(*map(jnp.asarray, (labels, rows, labels[order], rows[order])))
    return miner(key, jnp.asarray(distances[:, order]), *relations)


def listed(found):
    """The triplets of weight above 0, as (anchor, positive, negative)."""
    return np.stack([np.asarray(x) for x in found[:3]], axis=1)[np.asarray(found.weight) > 0].tolist()


def test_relations_exclude_the_same_image_and_padding():
    positives, negatives = masks()
    assert positives.astype(int).tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 1, 0]]
    assert negatives.astype(int).tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]


def test_an_image_drawn_twice_is_no_positive_of_itself():
    positives, _ = miners.relations(jnp.array([1]), jnp.array([5]), jnp.array([1, 1, 1]), jnp.array([5, 5, 6]))
    assert positives.tolist() == [[False, False, True]]


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative():
    found = miners.batch_hard(KEY, DISTANCES, *masks())
    assert listed(found) == [[0, 3, 2], [1, 0, 2]]
    assert found.weight.tolist() == [1, 1]


# One anchor: positives at .50 and .10, negatives at .55, .65, .52 and .05.
PAIRS = jnp.array([[0.0, 0.50, 0.10, 0.55, 0.65, 0.52, 0.05]]), mask(1, 2, c=7), mask(3, 4, 5, 6, c=7)


@pytest.mark.parametrize(
    ("fallback", "expected"),
    [("drop", [[0, 1, 5]]), ("hardest", [[0, 1, 5], [0, 2, 6]]), ("easiest", [[0, 1, 5], [0, 2, 4]])],
)
def test_semi_hard_lists_one_negative_per_pair_and_falls_back_where_none_lies_in_the_margin(fallback, expected):
    found = miners.semi_hard(KEY, *PAIRS, margin=0.2, fallback=fallback, max_positives=3)
    assert listed(found) == expected
    assert len(found.weight) == 3  # the third slot is empty


def test_semi_hard_excludes_both_ends_of_the_margin():
    distances = jnp.array([[0.5, 0.5], [0.5, 0.75]])
    positives = jnp.repeat(mask(0, c=2), 2, axis=0)
    assert listed(miners.semi_hard(KEY, distances, positives, ~positives, margin=0.25)) == []


WRITE = "write 0 < minimum < maximum"


@pytest.mark.parametrize(
    ("miner", "line"),
    [
        (partial(miners.semi_hard, fallback="x"), "semi_hard.fallback: 'x' found; write one of drop, hardest, easiest"),
        (partial(DISTANCE_WEIGHTED, minimum=0.0), f"distance_weighted.minimum: 0.0 found with maximum=1.4; {WRITE}"),
        (partial(DISTANCE_WEIGHTED, minimum=1.4), f"distance_weighted.minimum: 1.4 found with maximum=1.4; {WRITE}"),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused_in_one_line(miner, line):
    with pytest.raises(UserError) as error:
        miner(KEY, *PAIRS)
    assert str(error.value) == f"config.miner.{line}"


def test_the_easiest_fallback_is_the_semi_hard_loss_of_tensorflow():
    """Its rule, pair by pair: the nearest negative beyond the positive; if there is none, the farthest negative."""
    distances, labels, rows = batch()
    squared, expected, without = distances**2, [], 0
    for a in rows:
        d_an = squared[a, labels != labels[a]]
        for d_ap in squared[a, (labels == labels[a]) & (rows != a)]:
            beyond = d_an[d_an > d_ap]
            without += not len(beyond)
            expected.append(max(0, 0.3 + d_ap - (beyond.min() if len(beyond) else d_an.max())))
    found = listed(mine(partial(miners.semi_hard, margin=0.3, fallback="easiest"), squared, labels, rows))
    anchor, positive, negative = np.transpose(found)
    losses = np.maximum(0, 0.3 + squared[anchor, positive] - squared[anchor, negative])
    np.testing.assert_allclose(np.sort(losses), np.sort(expected), atol=1e-6)
    assert without > 0


def test_easy_semi_hard_takes_the_nearest_positive_and_the_nearest_negative_beyond_it():
    distances = jnp.array([[0.4, 0.3, 0.2, 0.35, 0.9], [0.4, 0.5, 0.2, 0.4, 0.1]])
    positives, negatives = (jnp.repeat(m, 2, axis=0) for m in (mask(0, 1, c=5), mask(2, 3, 4, c=5)))
    found = miners.easy_semi_hard(KEY, distances, positives, negatives)
    assert listed(found) == [[0, 1, 3]]
    assert found.weight.tolist() == [1, 0]  # the second anchor's negatives lie at most as far as its nearest positive


def test_hard_negatives_takes_the_nearest_negative_for_every_positive():
    assert listed(miners.hard_negatives(KEY, *PAIRS)) == [[0, 1, 6], [0, 2, 6]]


@pytest.mark.parametrize("name", CHOSEN)
def test_ties_go_to_the_lowest_index(name):
    distances, positives, negatives = jnp.array([[0.4, 0.4, 0.4, 0.5, 0.5, 0.5]]), mask(1, 2, c=6), mask(4, 5, c=6)
    expected = [[0, 1, 4], [0, 2, 4]][: 2 if name in LISTING_PAIRS else 1]
    assert listed(CHOSEN[name](KEY, distances, positives, negatives)) == expected
    if "," in name:  # and those of a fallback
        assert listed(CHOSEN[name](KEY, 0 * distances, positives, negatives)) == expected


X = np.array([[1, 0], [0.6, 0.8], [0, -1], [-0.8, 0.6]] * 2, np.float32)
CLASSES, PLACES = np.repeat(np.arange(2), 4), np.arange(8)
# Embeddings, labels, rows, and how many anchors get a triplet from: most miners; and those of COLUMN.
DEGENERATE = {
    "one class": (X, CLASSES * 0, PLACES, (0, 0, 0, 0)),  # no negatives
    "singletons": (X, PLACES, PLACES, (0, 0, 0, 0)),  # no positives
    "padding": (X, CLASSES, PLACES * 0 - 1, (0, 0, 0, 0)),
    "duplicates": (X * 0 + X[1], CLASSES, PLACES, (8, 0, 0, 8)),
    "antipodes": (np.where(CLASSES[:, None], -X[:1], X[:1]) * 1.0000005, CLASSES, PLACES, (8, 0, 8, 0)),
    "zeros": (X * 0, CLASSES, PLACES, (8, 0, 0, 8)),
    "some zeros": (X * (PLACES > 1)[:, None], CLASSES, PLACES, (8, 4, 8, 8)),
}
COLUMN = {"semi_hard": 1, "easy_semi_hard": 2, "distance_weighted": 3}


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_degenerate_batch_gives_no_nan_and_lists_no_false_triplet(name, dtype):
    for kind, (x, labels, rows, anchors) in DEGENERATE.items():
        distances = jnp.linalg.norm(x[:, None] - x[None], axis=-1).astype(dtype)
        positives, negatives = miners.relations(*map(jnp.asarray, (labels, rows, labels, rows)))
        with jax.debug_nans(True):
            found = COMPILED[name](KEY, distances, positives, negatives)
        triplets = listed(found)
        assert set(np.unique(np.asarray(found.weight, np.float32))) <= {0, 1}, kind
        assert all(((index >= 0) & (index < 8)).all() for index in found[:3]), kind
        assert all(positives[a, p] and negatives[a, n] for a, p, n in triplets), kind
        assert len({a for a, _, _ in triplets}) == anchors[COLUMN.get(name, 0)], kind


@every_miner
def test_what_is_listed_respects_the_masks(miner):
    distances, labels, rows = batch()
    rows[20:] = -1
    triplets = listed(mine(miner, distances, labels, rows))
    assert len(triplets) > 8
    assert all(labels[a] == labels[p] != labels[n] and a != p and max(a, p, n) < 20 for a, p, n in triplets)


@pytest.mark.parametrize("miner", [miners.batch_hard, miners.hard_negatives])
def test_distances_that_are_nan_are_listed_so_that_the_loss_shows_them(miner):
    assert len(listed(miner(KEY, jnp.full((2, 5), jnp.nan), *masks()))) >= 2


@pytest.mark.parametrize("miner", CHOSEN.values(), ids=CHOSEN)
def test_permuting_the_candidates_permutes_the_answer(miner):
    distances, labels, rows = batch()
    order = np.random.default_rng(1).permutation(24)
    found = listed(mine(miner, distances, labels, rows, order))
    assert sorted([a, order[p], order[n]] for a, p, n in found) == sorted(listed(mine(miner, *batch()))) != []


@every_miner
def test_renaming_the_labels_changes_nothing(miner):
    distances, labels, rows = batch()
    renamed = np.array([40, 3, 17, 0, 8])[labels]
    assert listed(mine(miner, distances, renamed, rows)) == listed(mine(miner, *batch())) != []


@every_miner
def test_a_masked_row_changes_nothing(miner):
    distances, labels, rows = batch()
    expected = listed(mine(miner, distances, labels, rows))
    padded = np.insert(np.insert(distances, 7, 0.3, axis=1), 24, 0.3, axis=0)  # candidate 7, and a last anchor
    places = np.arange(24) + (np.arange(24) >= 7)
    relations = miners.relations(
        *map(jnp.asarray, (np.append(labels, 0), np.append(rows, -1), np.insert(labels, 7, 1), np.insert(rows, 7, -1)))
    )
    found = listed(miner(KEY, jnp.asarray(padded), *relations))
    assert found == [[a, places[p], places[n]] for a, p, n in expected]


@pytest.mark.parametrize("miner", LISTING_PAIRS.values(), ids=LISTING_PAIRS)
def test_a_bound_on_the_positives_changes_nothing_until_it_binds(miner):
    every, most = listed(mine(miner, *batch())), int(np.bincount(batch()[1]).max()) - 1
    bounded, fewer = (mine(partial(miner, max_positives=bound), *batch()) for bound in (most, 2))
    assert listed(bounded) == every
    assert (len(bounded.weight), len(fewer.weight)) == (24 * most, 24 * 2)
    assert listed(fewer) == every[: len(listed(fewer))] != every


DRAWS = 40_000


def frequencies(miner, d_an):
    """How often each of the negatives at ``d_an`` is drawn, by as many equal anchors; candidate 2 is the positive."""
    c = len(d_an) + 1
    distances = jnp.asarray(np.insert(d_an, 2, 0.7), jnp.float32)
    distances, positives = (jnp.broadcast_to(x, (DRAWS, c)) for x in (distances, mask(2, c=c)))
    found = miner(KEY, distances, positives, ~positives, max_positives=1)
    assert found.weight.all()
    return np.delete(np.bincount(found.negative, minlength=c), 2) / DRAWS


def assert_near(found, expected):
    """Within five standard errors, and exactly 0 where the probability is."""
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / DRAWS)).all(), (found, expected)


def exact(d, n):
    kept, d = np.less(d, 1.4), np.clip(np.asarray(d, np.float64), 0.5, 1.4)
    log_weights = (2 - n) * np.log(d) - (n - 3) / 2 * np.log(1 - d**2 / 4)
    weights = np.where(kept, np.exp(log_weights - log_weights[kept].max()), 0)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("n", "d_an"), [(4, [1.39, 0.3, 0.5, 0.8, 1.0, 1.41, 2.1]), (256, [0.903, 0.9, 0.905, 0.91, 1.2, 1.41, 1.99])]
)
def test_distance_weighted_draws_from_the_distribution_of_the_paper(n, d_an):
    expected = exact(d_an, n)
    assert (expected[:4] > 0.02).all()
    assert_near(frequencies(partial(miners.distance_weighted, dimensions=n), d_an), expected)


def test_random_negatives_are_uniform():
    assert_near(frequencies(miners.random_negatives, [0.1, 2.0, 0.7, 0.0, 0.5]), np.full(5, 0.2))


@pytest.mark.parametrize("miner", DRAWN.values(), ids=DRAWN)
def test_permuting_the_candidates_permutes_the_distribution(miner):
    d_an, order = np.array([1.3, 0.4, 0.6, 1.7, 0.9]), np.array([3, 0, 4, 2, 1])
    found, permuted = frequencies(miner, d_an), frequencies(miner, d_an[order])
    np.testing.assert_allclose(permuted, found[order], atol=5 * np.sqrt(0.5 / DRAWS))
    assert found.max() > found.min() + 0.05 or miner is miners.random_negatives


def test_distance_weighted_scales_every_anchor_by_itself():
    """At n = 256, log w is 184 at .5, 0 at 1.39, and 408 at 1.99, which is not admissible."""
    distances = jnp.array([[0.6, 0.5, 1.99], [0.6, 1.39, 1.99], [0.6, 1.4, 1.99]])
    positives = jnp.repeat(mask(0, c=3), 3, axis=0)
    found = miners.distance_weighted(KEY, distances, positives, ~positives, dimensions=256, max_positives=1)
    assert listed(found) == [[0, 0, 1], [1, 0, 1]]  # the third anchor has no admissible negative


@pytest.mark.parametrize("n", [2, 3, 4, 256, 2048])
def test_distance_weighted_is_finite_at_both_ends_of_the_sphere(n):
    distances = jnp.array([[0.7, 0.0, 2.0, 2.0000005, 1.9999999]])
    miner = partial(miners.distance_weighted, dimensions=n, minimum=1e-6, maximum=3.0)
    with jax.debug_nans(True):
        found = miner(KEY, distances, mask(0, c=5), mask(2, 3, 4, c=5))
        at_zero = miner(KEY, distances, mask(0, c=5), mask(1, c=5))
    assert found.weight[0] == at_zero.weight[0] == 1
    assert int(found.negative[0]) in [2, 3, 4]


@pytest.mark.parametrize("miner", DRAWN.values(), ids=DRAWN)
def test_draws_differ_from_key_to_key_from_anchor_to_anchor_and_from_pair_to_pair(miner):
    distances = jnp.full((50, 103), 0.9)
    positives = jnp.repeat(mask(0, 1, 2, c=103), 50, axis=0)
    one, other = (miner(jax.random.key(k), distances, positives, ~positives, max_positives=3) for k in (0, 1))
    by_slot = np.asarray(one.negative).reshape(3, 50)
    assert np.mean(np.asarray(one.negative) == np.asarray(other.negative)) < 0.1
    assert np.mean(by_slot[0] == by_slot[1]) < 0.2
    assert all(len(set(draws)) > 25 for draws in by_slot.tolist())


def test_rounding_never_draws_a_candidate_of_weight_zero(monkeypatch):
    """Sums over 1024 weights move by rounding also where a weight is 0: draw at just those places."""
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.random((40, 1024)) * (rng.random((40, 1024)) < 0.5), jnp.float32)
    sums, positives = np.asarray(jnp.cumsum(weights, axis=1)), mask(0, c=1024)
    places = np.argwhere((np.diff(sums) > 0) & (np.asarray(weights)[:, 1:] == 0))
    assert len(places) > 20
    for row, place in places[:20]:
        number = sums[row, place] / sums[row].max()
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, number, dtype))
        found = miners._one_drawn_per_pair(KEY, weights[row][None], weights[row][None], positives, 1)
        assert found.weight[0] * weights[row, found.negative[0]] > 0


@pytest.mark.parametrize("name", miners.MINERS)
@pytest.mark.parametrize("how", ["halves", "vmap", "pmap", "shard_map"])
def test_splitting_the_anchors_changes_nothing(name, how):
    """Nor does it matter whether one key is given, or its folds for every anchor."""
    miner, (distances, labels, rows), count = COMPILED[name], batch(), 2 if how == "halves" else 4
    relations = miners.relations(*map(jnp.asarray, (labels, rows, labels, rows)))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(24))
    whole = keys, jnp.asarray(distances), *relations
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), whole)
    if how == "halves":
        found = [miner(*jax.tree.map(lambda x, i=i: x[i], parts)) for i in range(count)]
    else:
        mesh, spec = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data")
        shard_map = jax.jit(jax.shard_map(miner, mesh=mesh, in_specs=spec, out_specs=spec))
        found = shard_map(*whole) if how == "shard_map" else getattr(jax, how)(miner)(*parts)
        found = [jax.tree.map(lambda x, i=i: x.reshape(count, -1)[i], found) for i in range(count)]
    together = [[a + i * 24 // count, p, n] for i, part in enumerate(found) for a, p, n in listed(part)]
    assert sorted(together) == sorted(listed(miner(KEY, *whole[1:]))) != []


@every_miner
def test_mining_a_batch_of_b_never_holds_b_cubed(miner):
    b = 64
    shapes = [jax.ShapeDtypeStruct((b, b), d) for d in (jnp.float32, bool, bool)]
    memory = miner.lower(KEY, *shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * b**2 * 4  # measured: 2 to 5.5 arrays [b, b]
