"""What is drawn, over many steps at once: each sampler is compiled for all the steps that a test looks at."""

import functools
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.learning import pools, samplers
from fgis.learning.pools import RunImages
from fgis.learning.samplers import SAMPLERS, BatchShape
from fgis.ranges import hyperparameters

LABELS = np.array([5, 5, 5, 2, 2, 9, 9, 9, 9, 2, 4, 4])  # classes 2, 4, 5, 9 of 3, 2, 3 and 4 images


def images(rows=None, coarse=None):
    return RunImages(LABELS, np.arange(12) if rows is None else np.array(rows, int), coarse)


def table(rows=None):
    return pools.class_table(images(rows))


def drawn(sample, pool, seed, steps):
    """Rows [steps, b]."""
    return np.asarray(jax.jit(jax.vmap(lambda step: sample(pool, seed, step)))(np.arange(steps)))


def test_class_table_lists_rows_class_by_class():
    found = table([9, 3, 0, 2, 11, 10])
    assert found.rows.tolist() == [3, 9, 10, 11, 0, 2] + 6 * [-1]
    assert found.starts.tolist() == [0, 2, 4, 0]
    assert found.counts.tolist() == [2, 2, 2, 0]
    assert found.slots.tolist() == [0, 1, 2, 3]  # the largest class has so many


def test_one_large_class_makes_no_table_larger():
    labels = np.r_[np.zeros(5000, int), np.arange(1, 5001)]
    assert sum(np.size(leaf) for leaf in pools.class_table(pools.RunImages(labels, np.arange(10000)))) < 26000


@pytest.mark.parametrize(
    ("classes", "per_class"),
    [(3, 2), (4, 4), *(pytest.param(*size, marks=pytest.mark.slow) for size in ((1, 2), (2, 2)))],
)
def test_pk_sees_every_class_each_epoch_and_distinct_images_of_each_while_it_has_any(classes, per_class):
    steps = -(-4 // classes)
    rows = drawn(partial(samplers.sample_pk, classes=classes, per_class=per_class), table(), 3, 3 * steps)
    for epoch in rows.reshape(3, -1, per_class):
        assert set(LABELS[epoch[:, 0]]) == {2, 4, 5, 9}
        assert (LABELS[epoch] == LABELS[epoch[:, :1]]).all()
        for own in epoch:
            assert len(set(own.tolist())) == min(per_class, (LABELS[own[0]] == LABELS).sum())


@pytest.mark.parametrize("sample", [samplers.sample_pk, samplers.sample_frequency])
def test_samplers_of_classes_pad_where_there_are_fewer_classes_than_p(sample):
    rows = drawn(partial(sample, classes=5, per_class=2), table([0, 1, 5, 6]), 0, 8)[7].reshape(5, 2)
    assert (rows[2:] == -1).all()
    assert set(LABELS[rows[:2, 0]]) == {5, 9}


@pytest.mark.parametrize("rows", [range(12), (0, 2, 3, 4, 6, 10, 11)])
def test_uniform_epochs_take_all_images_of_the_run_in_a_new_order(rows):
    steps = -(-len(rows) // 5)
    epochs = drawn(partial(samplers.sample_uniform, batch=5), table(rows), 3, 3 * steps).reshape(3, -1)
    for epoch in epochs:
        assert sorted(epoch[: len(rows)]) == list(rows)
        assert epoch[len(rows) :].tolist() == epoch[: 5 * steps - len(rows)].tolist()
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


def test_uniform_pads_where_there_are_fewer_images_than_a_batch():
    rows = drawn(partial(samplers.sample_uniform, batch=7), table([0, 4, 5, 6, 7]), 1, 10)[9]
    assert sorted(rows[:5]) == [0, 4, 5, 6, 7]
    assert rows[5:].tolist() == [-1, -1]


def test_balanced_draws_classes_alike_and_then_their_images():
    sample = jax.jit(partial(samplers.sample_balanced, seed=0, step=3, batch=40_000))
    rows = np.asarray(sample(table()))
    for row, label in enumerate(LABELS):
        assert (rows == row).mean() == pytest.approx(1 / 4 / (label == LABELS).sum(), abs=0.006)
    rows = np.asarray(sample(table([9, 3, 0, 2, 11])))  # labels 2 2 5 5 4
    found, counts = np.unique(rows, return_counts=True)
    assert found.tolist() == [0, 2, 3, 9, 11]
    np.testing.assert_allclose(counts / 40_000, [1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3], atol=0.01)


@functools.cache
def frequency_draws():
    """The labels of 20,000 steps of two classes, as a function of the power."""
    sample = inspect.unwrap(samplers.sample_frequency)  # whose power may then be data, for one program
    one = lambda step, power: sample(table(), 5, step, classes=2, per_class=1, power=power)
    return jax.jit(jax.vmap(one, in_axes=(0, None)))


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_frequency_draws_distinct_classes_by_a_power_of_their_images(power):
    labels = LABELS[np.asarray(frequency_draws()(np.arange(20_000), power))]
    weight = {2: 3.0**power, 4: 2.0**power, 5: 3.0**power, 9: 4.0**power}
    for one in weight:
        for other in weight:
            # one first, then the other among those that are left
            chance = weight[one] / sum(weight.values())
            chance *= weight[other] / (sum(weight.values()) - weight[one]) if other != one else 0
            assert (labels == [one, other]).all(axis=1).mean() == pytest.approx(chance, abs=0.01)


def test_frequency_takes_the_images_of_a_class_as_pk_does():
    steps = drawn(partial(samplers.sample_frequency, classes=4, per_class=5), table(), 0, 8000).reshape(8000, 4, 5)
    rows = steps[1]
    assert set(LABELS[rows[:, 0]]) == {2, 4, 5, 9}
    for own in rows:
        count = (LABELS[own[0]] == LABELS).sum()
        assert (LABELS[own] == LABELS[own[0]]).all()
        assert len(set(own[:count])) == min(count, 5)
        assert (own[count:] == own[: 5 - count]).all()
    # Each image of a class is as likely as any other.
    counts = np.bincount(steps[:, :, 0].ravel(), minlength=12) / 8000
    np.testing.assert_allclose(counts, [1 / (label == LABELS).sum() for label in LABELS], atol=0.03)


def triplets(seed=0, n=20, rows=None):
    return jnp.asarray(pools.draw_published_triplets(images(rows), seed, triplets=n))


SMALL = {
    "pk": dict(classes=2, per_class=2),
    "uniform": dict(batch=4),
    "balanced": dict(batch=4),
    "frequency": dict(classes=2, per_class=2),
    "published": dict(batch=4),
    "deep_ranking": dict(batch=4),
    "uniform_triplets": dict(batch=4),
    "scored_triplets": dict(batch=4),
}


@pytest.mark.parametrize("name", SMALL)
def test_samplers_are_functions_of_seed_and_step_and_draw_from_their_own_rows_alone(name):
    sampler, sample = SAMPLERS[name], partial(SAMPLERS[name].sample, **SMALL[name])
    allowed = [0, 2, 3, 4, 10, 11]
    if sampler.lists_triplets:
        run_pools = [triplets(rows=rows) for rows in (allowed, range(12))]
    else:
        run_pools = [sampler.pool(images(rows, LABELS // 5), 0) for rows in (allowed, range(12), ())]
    stacked, seeds, steps = jax.tree.map(lambda *x: jnp.stack(x), *run_pools), jnp.array([1, 2, 3]), jnp.arange(60)
    every = jax.jit(jax.vmap(lambda pool, seed: jax.vmap(lambda step: sample(pool, seed, step))(steps)))
    rows = np.asarray(every(stacked, seeds[: len(run_pools)]))
    assert set(np.unique(rows[0])) - {-1} <= set(allowed)
    if not sampler.lists_triplets:
        assert set(np.unique(rows[0])) == set(allowed)
        assert set(np.unique(rows[1])) == set(range(12))
        assert (rows[2] == -1).all()  # nothing to draw from
    again = np.asarray(every(stacked, seeds[: len(run_pools)] + 1))
    assert (rows[1, 7] != rows[1, 8]).any()
    assert (rows[1, 7] != again[1, 7]).any()
    assert (rows == every(stacked, seeds[: len(run_pools)])).all()
    if name in ("pk", "published"):  # and the same as that of a run alone
        assert (rows[1, 7] == jax.jit(sample)(run_pools[1], 2, 7)).all()
    assert rows.shape[-1] == sampler.batch(**SMALL[name]).rows


def test_triplet_samplers_draw_from_streams_of_their_own():
    one, other = (
        drawn(partial(SAMPLERS[name].sample, batch=4, **more), triplets(n=40), 1, 6)
        for name, more in (("published", {"held_out": 0.0}), ("deep_ranking", {}))
    )
    assert (one != other).any()


def test_published_triplets_take_first_last_and_first_images():
    first = {2: 3, 4: 10, 5: 0, 9: 5}
    last = {2: 9, 4: 11, 5: 2, 9: 8}
    rows = np.asarray(triplets(n=4000))
    for anchor, positive, negative in rows:
        assert anchor == first[LABELS[anchor]]
        assert positive == last[LABELS[anchor]]
        assert negative == first[LABELS[negative]]
    # Two entries of the label array without replacement: P(label) = images / 12, P(same) = sum m (m - 1) / (12 * 11).
    anchors = LABELS[rows[:, 0]]
    for label, count in ((2, 3), (4, 2), (5, 3), (9, 4)):
        assert abs((anchors == label).mean() - count / 12) < 0.03
    assert abs((anchors == LABELS[rows[:, 2]]).mean() - (6 + 2 + 6 + 12) / 132) < 0.03


def test_published_triplets_show_the_rows_of_their_run_alone_and_depend_on_the_seed():
    rows = triplets(rows=[2, 1, 7, 6, 5])
    assert set(np.unique(rows)) == {1, 2, 5, 7}  # row 6 is neither the first nor the last of its class
    assert (triplets(seed=0) == triplets(seed=0)).all()
    assert (triplets(seed=0) != triplets(seed=1)).any()
    assert (pools.draw_published_triplets(images(coarse=LABELS // 5), 0, triplets=20) == triplets()).all()


def test_published_epochs_use_each_training_triplet_once_and_never_the_held_out_ones():
    pool = triplets(n=10)
    validation = samplers.published_validation(pool, 4, held_out=0.25)
    assert validation.reshape(-1, 3).tolist() == pool[8:].tolist()
    for rows in drawn(partial(samplers.sample_published, batch=3), pool, 4, 6).reshape(2, 9, 3):
        assert (rows == -1).all(axis=1).sum() == 1  # 8 triplets in 3 batches of 3
        assert sorted(rows[rows[:, 0] >= 0].tolist()) == sorted(pool[:8].tolist())


def test_deep_ranking_epochs_use_each_triplet_once_in_a_new_order():
    pool = triplets(n=11)
    epochs = drawn(partial(samplers.sample_deep_ranking, batch=4), pool, 4, 6).reshape(2, 12, 3)
    for rows in epochs:
        assert rows[11].tolist() == [-1, -1, -1]
        assert sorted(rows[:11].tolist()) == sorted(pool.tolist())
    assert (epochs[0] != epochs[1]).any()


def functions_of(name):
    return [function for function in SAMPLERS[name] if callable(function)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_functions_of_a_sampler_agree_on_the_defaults_they_share(name):
    defaults: dict = {}
    for function in functions_of(name):
        assert inspect.signature(function).parameters.keys() - hyperparameters(function).keys() <= {
            "table", "drawn", "seed", "step", "images"
        }  # fmt: skip
        for key, parameter in hyperparameters(function).items():
            assert defaults.setdefault(key, parameter) == parameter, key
    assert set(defaults) >= set(SMALL[name])


def test_batches_have_the_size_that_is_said():
    assert SAMPLERS["pk"].batch(classes=6) == BatchShape(24, 4)
    assert SAMPLERS["uniform"].batch(batch=6) == BatchShape(6, None)
    assert SAMPLERS["deep_ranking"].batch(batch=6) == BatchShape(18, None)


@pytest.mark.parametrize(("memory_size", "most"), [(0, 3), (1, 7), (300, 15), (384, 15)])
def test_an_anchor_has_at_most_the_positives_of_the_batch_and_of_the_batches_in_memory(memory_size, most):
    assert samplers.most_positives(BatchShape(128, 4), memory_size) == most
    assert samplers.most_positives(BatchShape(128), memory_size) is None
    assert samplers.most_positives(BatchShape(8, 1)) == 1
