"""Hand-worked cases, a reference in NumPy, the exact distribution of what is drawn, and what must not change a result.

Nearly all batches have 24 anchors and 24 candidates, so that each miner is compiled once.
"""

import functools
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from fgis.base import BatchInfo
from fgis.learning import candidates, miners

KEY = jax.random.key(0)
N = 24
INFO = BatchInfo(dimensions=6)
MINERS = {
    **{name: partial(miner, info=INFO) for name, miner in miners.MINERS.items()},
    "semi_hard, hardest": partial(miners.semi_hard, fallback="hardest"),
    "semi_hard, easiest": partial(miners.semi_hard, fallback="easiest"),
}
DRAWN = ("random_negatives", "distance_weighted")
CHOSEN = [name for name in MINERS if name not in DRAWN]
ONE_PER_ANCHOR = ("batch_hard", "easy_semi_hard")
LISTING_PAIRS = [name for name in MINERS if name not in ONE_PER_ANCHOR]
compiled = functools.cache(lambda name: jax.jit(MINERS[name]))
every_miner = pytest.mark.parametrize("name", MINERS)


def masks(labels, rows, other_labels=None, other_rows=None):
    """Positives and negatives of each row among the others (themselves without any), by definition."""
    other_labels, other_rows = (labels, rows) if other_labels is None else (other_labels, other_rows)
    valid = (rows >= 0)[:, None] & (other_rows >= 0)[None]
    same = labels[:, None] == other_labels[None]
    return valid & same & (rows[:, None] != other_rows[None]), valid & ~same


def batch(n=N, classes=5, d=6, seed=0):
    """Distances [n, n] between unit vectors in loose clusters, labels and rows; classes of different sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.sqrt(np.maximum(2 - 2 * x @ x.T, 0)).astype(np.float32), labels, np.arange(n)


def padded(distances, positives, negatives):
    """The same batch among 24 anchors and 24 candidates, the further ones neither positive nor negative."""
    room = [(0, N - x) for x in np.shape(positives)]
    return np.pad(np.float32(distances), room), np.pad(positives, room), np.pad(negatives, room)


def listed(found):
    """The triplets of weight above 0, as (anchor, positive, negative)."""
    return np.stack([np.asarray(x) for x in found[:3]], axis=1)[np.asarray(found.weight) > 0].tolist()


def mine(name, distances, labels, rows, order=slice(None)):
    """Mines with the candidates in another ``order``."""
    return compiled(name)(KEY, distances[:, order], *masks(labels, rows, labels[order], rows[order]))


# Anchors 0 and 1 against five candidates; row 0 is anchor 0 itself, row 4 is padding.
DISTANCES = np.array([[0.0, 0.3, 0.9, 0.5, 0.1], [0.3, 0.0, 0.2, 0.2, 0.1]])
LABELS = np.array([7, 7, 3, 7, 7])
ROWS = np.array([10, 11, 12, 13, -1])


def test_relations_exclude_the_same_image_and_padding():
    positives, negatives = miners.relations(*map(jnp.asarray, (LABELS[:2], ROWS[:2], LABELS, ROWS)))
    assert positives.astype(int).tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 1, 0]]
    assert negatives.astype(int).tolist() == [[0, 0, 1, 0, 0], [0, 0, 1, 0, 0]]


def test_an_image_drawn_twice_is_no_positive_of_itself():
    positives, _ = miners.relations(jnp.array([1]), jnp.array([5]), jnp.array([1, 1, 1]), jnp.array([5, 5, 6]))
    assert positives.tolist() == [[False, False, True]]


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative():
    found = compiled("batch_hard")(KEY, *padded(DISTANCES, *masks(LABELS[:2], ROWS[:2], LABELS, ROWS)))
    assert listed(found) == [[0, 3, 2], [1, 0, 2]]
    assert found.weight.tolist() == [1, 1] + [0] * 22


def marked(*indices, c=N):
    return np.isin(np.arange(c), indices)[None]


# One anchor: positives at .50 and .10, negatives at .55, .65, .52 and .05.
PAIRS = padded([[0.0, 0.50, 0.10, 0.55, 0.65, 0.52, 0.05]], marked(1, 2, c=7), marked(3, 4, 5, 6, c=7))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("semi_hard", [[0, 1, 5]]),
        ("semi_hard, hardest", [[0, 1, 5], [0, 2, 6]]),
        ("semi_hard, easiest", [[0, 1, 5], [0, 2, 4]]),
        ("hard_negatives", [[0, 1, 6], [0, 2, 6]]),
    ],
)
def test_miners_list_one_negative_per_pair(name, expected):
    found = compiled(name)(KEY, *PAIRS)
    assert listed(found) == expected
    assert len(found.weight) == N * N  # a slot for every candidate, as no bound is known


def test_semi_hard_excludes_both_ends_of_the_margin():
    distances = np.array([[0.5, 0.5], [0.5, 0.75]])
    positives = np.array([[True, False]] * 2)
    miner = jax.jit(partial(miners.semi_hard, margin=0.25))
    assert listed(miner(KEY, *padded(distances, positives, ~positives))) == []


def test_easy_semi_hard_takes_the_nearest_positive_and_the_nearest_negative_beyond_it():
    distances = [[0.4, 0.3, 0.2, 0.35, 0.9], [0.4, 0.5, 0.2, 0.4, 0.1]]
    positives, negatives = (np.repeat(m, 2, axis=0) for m in (marked(0, 1, c=5), marked(2, 3, 4, c=5)))
    found = compiled("easy_semi_hard")(KEY, *padded(distances, positives, negatives))
    assert listed(found) == [[0, 1, 3]]  # the second anchor's negatives lie at most as far as its nearest positive


@pytest.mark.parametrize(
    ("options", "info", "line"),
    [
        ({"minimum": 0.0}, INFO, "minimum: 0.0 found; write a number above 0"),
        ({"minimum": 1.4}, INFO, "minimum: 1.4 found with maximum=1.4; write 0 < minimum < maximum"),
        ({}, BatchInfo(), "info.dimensions: None found; distance_weighted needs the dimensions of the embeddings"),
    ],
)
def test_distance_weighted_refuses_what_makes_no_sense(options, info, line):
    with pytest.raises(ValueError) as error:
        miners.distance_weighted(KEY, *map(jnp.asarray, PAIRS), info, **options)
    assert str(error.value) == line


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"fallback": "easy"}, "fallback: 'easy' found; did you mean 'easiest'? known: drop, easiest, hardest"),
        ({"margin": 0.0}, "margin: 0.0 found; write a number above 0"),
    ],
)
def test_semi_hard_refuses_what_makes_no_sense(options, line):
    with pytest.raises(ValueError) as error:  # without the type checks of tests, which would refuse the name first
        inspect.unwrap(miners.semi_hard)(KEY, *map(jnp.asarray, PAIRS), **options)
    assert str(error.value) == line


def test_the_easiest_fallback_is_the_semi_hard_loss_of_tensorflow():
    """Its rule, pair by pair: the nearest negative beyond the positive; if there is none, the farthest negative."""
    distances, labels, rows = batch()
    squared, expected, without = distances**2, [], 0
    for a in rows:
        d_an = squared[a, labels != labels[a]]
        for d_ap in squared[a, (labels == labels[a]) & (rows != a)]:
            beyond = d_an[d_an > d_ap]
            without += not len(beyond)
            expected.append(max(0, 0.2 + d_ap - (beyond.min() if len(beyond) else d_an.max())))
    anchor, positive, negative = np.transpose(listed(mine("semi_hard, easiest", squared, labels, rows)))
    losses = np.maximum(0, 0.2 + squared[anchor, positive] - squared[anchor, negative])
    np.testing.assert_allclose(np.sort(losses), np.sort(expected), atol=1e-6)
    assert without > 0


@pytest.mark.parametrize("name", CHOSEN)
def test_ties_go_to_the_lowest_index(name):
    distances, positives, negatives = padded([[0.4, 0.4, 0.4, 0.5, 0.5, 0.5]], marked(1, 2, c=6), marked(4, 5, c=6))
    expected = [[0, 1, 4], [0, 2, 4]][: 2 if name in LISTING_PAIRS else 1]
    assert listed(compiled(name)(KEY, distances, positives, negatives)) == expected
    if "," in name:  # and those of a fallback
        assert listed(compiled(name)(KEY, 0 * distances, positives, negatives)) == expected


def reference(name, distances, positives, negatives):
    """Pair by pair in NumPy, whose argmin takes the lowest index: every triplet that a miner without chance lists."""
    triplets = []
    for a in range(len(distances)):
        d, own, others = distances[a], np.flatnonzero(positives[a]), np.flatnonzero(negatives[a])
        nearest = lambda indices, d=d: indices[np.argmin(d[indices])]
        if name == "batch_hard":
            own = own[np.argmax(d[own])][None] if len(own) else own
        elif name == "easy_semi_hard":
            own = nearest(own)[None] if len(own) else own
        for p in own:
            inside = others[d[others] > d[p]]
            if name.startswith("semi_hard"):
                inside = inside[d[inside] < d[p] + np.float32(0.2)]
                other = {"hardest": nearest, "easiest": lambda i, d=d: i[np.argmax(d[i])]}.get(name[11:])
            else:
                inside = others if name in ("batch_hard", "hard_negatives") else inside
                other = None
            if len(inside):
                triplets.append([a, p, nearest(inside)])
            elif other and len(others):
                triplets.append([a, p, other(others)])
    return triplets


batches = st.tuples(
    st.integers(0, 2**32 - 1),  # what the rest is drawn with
    st.integers(1, N),  # classes: from one alone to singletons
    st.integers(0, N),  # padded rows
    st.sampled_from([1, 4, 1000]),  # different distances: ties everywhere, some, hardly any
)


def drawn_batch(seed, classes, padding, levels):
    rng = np.random.default_rng(seed)
    labels, rows = rng.integers(0, classes, N), rng.permutation(N)
    rows[rng.permutation(N)[:padding]] = -1
    return (rng.integers(0, levels, (N, N)) * np.float32(2 / levels)), labels, rows


@given(batches)
@settings(max_examples=20, derandomize=True, deadline=None)
def test_any_batch_gives_the_triplets_of_the_definition(drawn):
    distances, labels, rows = drawn_batch(*drawn)
    positives, negatives = masks(labels, rows)
    for name in CHOSEN:
        found = compiled(name)(KEY, distances, positives, negatives)
        assert sorted(listed(found)) == sorted(reference(name, distances, positives, negatives)), name


@given(batches)
@settings(max_examples=20, derandomize=True, deadline=None)
def test_any_batch_respects_its_masks_and_weighs_0_exactly_what_is_undefined(drawn):
    distances, labels, rows = drawn_batch(*drawn)
    positives, negatives = masks(labels, rows)
    for name in MINERS:
        found = compiled(name)(KEY, distances, positives, negatives)
        weight = np.asarray(found.weight)
        assert set(np.unique(weight)) <= {0, 1}
        assert all(((np.asarray(index) >= 0) & (np.asarray(index) < N)).all() for index in found[:3])
        assert all(positives[a, p] and negatives[a, n] for a, p, n in listed(found)), name
        if name in DRAWN:
            admissible = negatives & (distances < 1.4) if name == "distance_weighted" else negatives
            assert weight.sum() == (positives.sum(axis=1) * admissible.any(axis=1)).sum(), name


@given(batches)
@settings(max_examples=20, derandomize=True, deadline=None)
def test_permuting_the_candidates_of_any_batch_permutes_the_triplets(drawn):
    seed, classes, padding, _ = drawn
    _, labels, rows = drawn_batch(seed, classes, padding, 1000)
    rng = np.random.default_rng(seed)
    distances = rng.permuted(np.tile(np.arange(N, dtype=np.float32) / N, (N, 1)), axis=1)  # no ties
    order = rng.permutation(N)
    for name in CHOSEN:
        found = listed(mine(name, distances, labels, rows, order))
        assert sorted([a, order[p], order[n]] for a, p, n in found) == sorted(
            listed(mine(name, distances, labels, rows))
        )


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


@every_miner
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=[pytest.mark.slow, pytest.mark.lean])])
def test_a_degenerate_batch_gives_no_nan_and_lists_no_false_triplet(name, dtype):
    for kind, (x, labels, rows, anchors) in DEGENERATE.items():
        distances, positives, negatives = padded(np.linalg.norm(x[:, None] - x[None], axis=-1), *masks(labels, rows))
        with jax.debug_nans(True):
            found = compiled(name)(KEY, distances.astype(dtype), positives, negatives)
        triplets = listed(found)
        assert set(np.unique(np.asarray(found.weight, np.float32))) <= {0, 1}, kind
        assert all(positives[a, p] and negatives[a, n] for a, p, n in triplets), kind
        assert len({a for a, _, _ in triplets}) == anchors[COLUMN.get(name, 0)], kind


@pytest.mark.parametrize("name", ["batch_hard", "hard_negatives"])
def test_distances_that_are_nan_are_listed_so_that_the_loss_shows_them(name):
    distances, positives, negatives = PAIRS
    assert len(listed(compiled(name)(KEY, np.full_like(distances, np.nan), positives, negatives))) >= 1


@every_miner
def test_renaming_the_labels_changes_nothing(name):
    distances, labels, rows = batch()
    renamed = np.array([40, 3, 17, 0, 8])[labels]
    assert listed(mine(name, distances, renamed, rows)) == listed(mine(name, *batch())) != []


@every_miner
def test_a_masked_row_changes_nothing_wherever_it_stands(name):
    distances, labels, rows = batch()
    rows[23] = -1
    expected = listed(mine(name, distances, labels, rows))
    moved = np.insert(np.arange(23), 7, 23)  # candidate 7 is padding at another distance; the anchors stay in place
    elsewhere = distances[:, moved]
    elsewhere[:, 7] = 0.3
    found = listed(compiled(name)(KEY, elsewhere, *masks(labels, rows, labels[moved], rows[moved])))
    assert [[a, moved[p], moved[n]] for a, p, n in found] == expected != []


@pytest.mark.parametrize(
    "name",
    [
        "semi_hard",
        "random_negatives",
        *(pytest.param(n, marks=[pytest.mark.slow, pytest.mark.lean]) for n in LISTING_PAIRS),
    ],
)
def test_a_bound_on_the_positives_changes_nothing_until_it_binds(name):
    every, most = listed(mine(name, *batch())), int(np.bincount(batch()[1]).max()) - 1
    arguments = KEY, batch()[0], *masks(*batch()[1:])
    bounded, fewer = (jax.jit(partial(MINERS[name], info=BatchInfo(bound, 6)))(*arguments) for bound in (most, 2))
    assert listed(bounded) == every
    assert (len(bounded.weight), len(fewer.weight)) == (N * most, N * 2)
    assert listed(fewer) == every[: len(listed(fewer))] != every


DRAWS = 40_000


def frequencies(miner, d_an):
    """How often each of the negatives at ``d_an`` is drawn, by as many equal anchors; candidate 2 is the positive."""
    c = len(d_an) + 1
    distances = np.float32(np.insert(d_an, 2, 0.7))
    distances, positives = (np.broadcast_to(x, (DRAWS, c)) for x in (distances, marked(2, c=c)))
    found = jax.jit(miner)(KEY, distances, positives, ~positives)
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
    assert_near(frequencies(partial(miners.distance_weighted, info=BatchInfo(1, n)), d_an), expected)


def test_random_negatives_are_uniform():
    miner = partial(miners.random_negatives, info=BatchInfo(1))
    assert_near(frequencies(miner, [0.1, 2.0, 0.7, 0.0, 0.5]), np.full(5, 0.2))


@pytest.mark.parametrize("name", DRAWN)
def test_permuting_the_candidates_permutes_the_distribution(name):
    miner = partial(miners.MINERS[name], info=BatchInfo(1, 6))
    d_an, order = np.array([1.3, 0.4, 0.6, 1.7, 0.9]), np.array([3, 0, 4, 2, 1])
    found, permuted = frequencies(miner, d_an), frequencies(miner, d_an[order])
    np.testing.assert_allclose(permuted, found[order], atol=5 * np.sqrt(0.5 / DRAWS))
    assert found.max() > found.min() + 0.05 or name == "random_negatives"


def test_distance_weighted_scales_every_anchor_by_itself():
    """At n = 256, log w is 184 at .5, 0 at 1.39, and 408 at 1.99, which is not admissible."""
    distances = [[0.6, 0.5, 1.99], [0.6, 1.39, 1.99], [0.6, 1.4, 1.99]]
    positives = np.repeat(marked(0, c=3), 3, axis=0)
    miner = jax.jit(partial(miners.distance_weighted, info=BatchInfo(1, 256)))
    found = miner(KEY, *padded(distances, positives, ~positives))
    assert listed(found) == [[0, 0, 1], [1, 0, 1]]  # the third anchor has no admissible negative


@pytest.mark.parametrize("n", [2, 2048])
def test_distance_weighted_is_finite_at_both_ends_of_the_sphere(n):
    # Anchor 0 has its negatives at the far end, anchor 1 at the near one.
    distances = [[0.7, 0.0, 2.0, 2.0000005, 1.9999999]] * 2
    positives = np.repeat(marked(0, c=5), 2, axis=0)
    negatives = np.concatenate([marked(2, 3, 4, c=5), marked(1, c=5)])
    miner = jax.jit(partial(miners.distance_weighted, info=BatchInfo(1, n), minimum=1e-6, maximum=3.0))
    with jax.debug_nans(True):
        found = miner(KEY, *padded(distances, positives, negatives))
    assert found.weight[:2].tolist() == [1, 1]
    assert int(found.negative[0]) in [2, 3, 4]


@pytest.mark.parametrize("name", DRAWN)
def test_draws_differ_from_key_to_key_from_anchor_to_anchor_and_from_pair_to_pair(name):
    distances = np.full((50, 103), 0.9, np.float32)
    positives = np.repeat(marked(0, 1, 2, c=103), 50, axis=0)
    miner = jax.jit(partial(miners.MINERS[name], info=BatchInfo(3, 6)))
    one, other = (miner(jax.random.key(k), distances, positives, ~positives) for k in (0, 1))
    by_slot = np.asarray(one.negative).reshape(3, 50)
    assert np.mean(np.asarray(one.negative) == np.asarray(other.negative)) < 0.1
    assert np.mean(by_slot[0] == by_slot[1]) < 0.2
    assert all(len(set(draws)) > 25 for draws in by_slot.tolist())


def test_rounding_never_draws_a_candidate_of_weight_zero(monkeypatch):
    """Sums over 1024 weights move by rounding also where a weight is 0: draw at just those places."""
    rng = np.random.default_rng(0)
    weights = (rng.random((40, 1024)) * (rng.random((40, 1024)) < 0.5)).astype(np.float32)
    sums = np.asarray(jnp.cumsum(jnp.asarray(weights), axis=1))
    places = np.argwhere((np.diff(sums) > 0) & (weights[:, 1:] == 0))
    assert len(places) > 20
    numbers = np.array([sums[row, place] / sums[row].max() for row, place in places[:20]], np.float32)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, key, dtype))
    picked, positives = jnp.asarray(weights[places[:20, 0]]), jnp.asarray(np.repeat(marked(0, c=1024), 20, axis=0))
    found = candidates.one_drawn_per_pair(jnp.asarray(numbers), picked, picked, positives, BatchInfo(1))
    assert (np.asarray(found.weight) * np.asarray(picked)[np.arange(20), found.negative] > 0).all()


@pytest.mark.parametrize("name", miners.MINERS)
@pytest.mark.parametrize(
    "how",
    ["halves", *(pytest.param(h, marks=[pytest.mark.slow, pytest.mark.lean]) for h in ("vmap", "pmap", "shard_map"))],
)
def test_splitting_the_anchors_changes_nothing(name, how):
    """Nor does it matter whether one key is given, or its folds for every anchor."""
    miner, (distances, labels, rows), count = compiled(name), batch(), 2 if how == "halves" else 4
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(24))
    whole = keys, jnp.asarray(distances), *map(jnp.asarray, masks(labels, rows))
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
@pytest.mark.slow
def test_mining_a_batch_of_b_never_holds_b_cubed(name):
    b = 64
    shapes = [jax.ShapeDtypeStruct((b, b), d) for d in (jnp.float32, bool, bool)]
    memory = compiled(name).lower(KEY, *shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * b**2 * 4  # measured: 2 to 5.5 arrays [b, b]
