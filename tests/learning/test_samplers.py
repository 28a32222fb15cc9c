from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.learning import samplers

LABELS = np.array([5, 5, 5, 2, 2, 9, 9, 9, 9, 2, 4, 4])  # classes 2, 4, 5, 9 of 3, 2, 3 and 4 images


def table(rows=None):
    return samplers.class_table(LABELS, np.arange(12) if rows is None else rows)


def test_class_table_lists_rows_by_class_padded():
    found = table(np.array([9, 3, 0, 2, 11, 10]))
    assert found.rows.tolist() == [[3, 9, -1, -1], [10, 11, -1, -1], [0, 2, -1, -1], [-1, -1, -1, -1]]
    assert found.counts.tolist() == [2, 2, 2, 0]


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_pk_sees_every_class_each_epoch_and_k_images_of_each(classes):
    sample = partial(samplers.sample_pk, table(), 3, classes=classes, per_class=2)
    epoch_steps = -(-4 // classes)
    for epoch in range(3):
        rows = np.concatenate([sample(epoch * epoch_steps + step) for step in range(epoch_steps)]).reshape(-1, 2)
        assert set(LABELS[rows[:, 0]]) == {2, 4, 5, 9}
        assert (LABELS[rows[:, 0]] == LABELS[rows[:, 1]]).all()
        assert (rows[:, 0] != rows[:, 1]).all()


def test_pk_repeats_images_only_where_a_class_is_smaller_than_k():
    rows = samplers.sample_pk(table(), 0, 0, classes=4, per_class=4).reshape(4, 4)
    for own in np.asarray(rows):
        assert len(set(own.tolist())) == min(4, (LABELS[own[0]] == LABELS).sum())


def test_pk_pads_where_there_are_fewer_classes_than_p():
    rows = np.asarray(samplers.sample_pk(table(np.array([0, 1, 5, 6])), 0, 7, classes=3, per_class=2)).reshape(3, 2)
    assert rows[2].tolist() == [-1, -1]
    assert set(LABELS[rows[:2, 0]]) == {5, 9}


def test_pk_draws_from_the_rows_of_its_run_alone():
    allowed = np.array([0, 2, 3, 4, 10, 11])
    tables = jax.tree.map(lambda *x: jnp.stack(x), table(allowed), table())
    rows = jax.vmap(lambda t: jnp.stack([samplers.sample_pk(t, 1, step, 2, 2) for step in range(20)]))(tables)
    assert set(np.unique(rows[0])) == set(allowed.tolist())
    assert set(np.unique(rows[1])) == set(range(12))


def test_uniform_epochs_walk_all_images_of_the_run_in_a_new_order():
    for rows in (np.arange(12), np.array([0, 2, 3, 4, 6, 10, 11])):
        steps = -(-len(rows) // 5)
        epochs = [
            np.concatenate([samplers.sample_uniform(table(rows), 3, epoch * steps + s, batch=5) for s in range(steps)])
            for epoch in range(3)
        ]
        for epoch in epochs:
            assert sorted(epoch[: len(rows)]) == rows.tolist()
            assert epoch[len(rows) :].tolist() == epoch[: 5 * steps - len(rows)].tolist()
        assert (epochs[0] != epochs[1]).any()
        assert (epochs[1] != epochs[2]).any()


def test_uniform_pads_where_there_are_fewer_images_than_a_batch():
    rows = np.asarray(samplers.sample_uniform(table(np.array([0, 4, 5, 6, 7])), 1, 9, batch=7))
    assert sorted(rows[:5]) == [0, 4, 5, 6, 7]
    assert rows[5:].tolist() == [-1, -1]


def test_balanced_draws_classes_alike_and_then_their_images():
    rows = np.asarray(samplers.sample_balanced(table(), 0, 3, batch=40_000))
    for row, label in enumerate(LABELS):
        assert (rows == row).mean() == pytest.approx(1 / 4 / (label == LABELS).sum(), abs=0.006)
    rows = np.asarray(
        samplers.sample_balanced(table(np.array([9, 3, 0, 2, 11])), 0, 3, batch=20_000)
    )  # labels 2 2 5 5 4
    found, counts = np.unique(rows, return_counts=True)
    assert found.tolist() == [0, 2, 3, 9, 11]
    np.testing.assert_allclose(counts / 20_000, [1 / 6, 1 / 6, 1 / 6, 1 / 6, 1 / 3], atol=0.012)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_frequency_draws_distinct_classes_by_a_power_of_their_images(power):
    sample = partial(samplers.sample_frequency, table(), 5, classes=2, per_class=1, power=power)
    drawn = LABELS[np.asarray(jax.vmap(sample)(jnp.arange(20_000)))]
    weight = {2: 3.0**power, 4: 2.0**power, 5: 3.0**power, 9: 4.0**power}
    for one in weight:
        for other in weight:
            # one first, then the other among those that are left
            chance = weight[one] / sum(weight.values())
            chance *= weight[other] / (sum(weight.values()) - weight[one]) if other != one else 0
            assert (drawn == [one, other]).all(axis=1).mean() == pytest.approx(chance, abs=0.01)


def test_frequency_takes_the_images_of_a_class_as_pk_does():
    rows = np.asarray(samplers.sample_frequency(table(), 0, 1, classes=4, per_class=5)).reshape(4, 5)
    assert set(LABELS[rows[:, 0]]) == {2, 4, 5, 9}
    for own in rows:
        images = (LABELS[own[0]] == LABELS).sum()
        assert (LABELS[own] == LABELS[own[0]]).all()
        assert len(set(own[:images])) == min(images, 5)
        assert (own[images:] == own[: 5 - images]).all()
    # Each image of a class is as likely as any other.
    drawn = jax.vmap(lambda step: samplers.sample_frequency(table(), 0, step, classes=4, per_class=1))(jnp.arange(8000))
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=12) / 8000
    np.testing.assert_allclose(counts, [1 / (label == LABELS).sum() for label in LABELS], atol=0.03)


def test_frequency_pads_where_there_are_fewer_classes_than_p():
    rows = np.asarray(samplers.sample_frequency(table(np.array([0, 1, 5, 6])), 0, 7, 5, 2)).reshape(5, 2)
    assert (rows[2:] == -1).all()
    assert set(LABELS[rows[:2, 0]]) == {5, 9}


TABLE_SAMPLERS = {
    "pk": dict(classes=2, per_class=2),
    "uniform": dict(batch=4),
    "balanced": dict(batch=4),
    "frequency": dict(classes=2, per_class=2),
}


@pytest.mark.parametrize("name", TABLE_SAMPLERS)
def test_runs_can_be_stacked_and_draw_from_their_own_rows_alone(name):
    allowed = np.array([0, 2, 3, 4, 10, 11])
    pools = [samplers.POOLS[name](LABELS, rows, 0, LABELS // 5) for rows in (allowed, np.arange(12), np.arange(0))]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *pools)
    sample = partial(samplers.SAMPLERS[name], **TABLE_SAMPLERS[name])
    steps = jnp.arange(60)
    every = jax.jit(jax.vmap(lambda pool, seed: jax.vmap(lambda step: sample(pool, seed, step))(steps)))
    rows = np.asarray(every(stacked, jnp.array([1, 2, 3])))
    assert set(np.unique(rows[0])) == set(allowed.tolist())
    assert set(np.unique(rows[1])) == set(range(12))
    assert (rows[2] == -1).all()  # nothing to draw from
    assert (rows[1, 7] == sample(pools[1], 2, 7)).all()


def triplets(seed=0, n=20, rows=None):
    return jnp.asarray(samplers.draw_published_triplets(LABELS, np.arange(12) if rows is None else rows, seed, n))


def test_samplers_are_functions_of_seed_and_step():
    pk = partial(samplers.sample_pk, table(), classes=2, per_class=2)
    published = partial(samplers.sample_published, triplets(), batch=4)
    uniform = partial(samplers.sample_uniform, table(), batch=4)
    balanced = partial(samplers.sample_balanced, table(), batch=4)
    frequency = partial(samplers.sample_frequency, table(), classes=2, per_class=2)
    for sample in (pk, published, uniform, balanced, frequency):
        one = sample(1, 5)
        assert (one == jax.jit(sample)(1, 5)).all()
        assert (one != sample(1, 6)).any()
        assert (one != sample(2, 5)).any()


def test_published_triplets_take_first_last_and_first_images():
    first = {2: 3, 4: 10, 5: 0, 9: 5}
    last = {2: 9, 4: 11, 5: 2, 9: 8}
    drawn = np.asarray(triplets(n=4000))
    for anchor, positive, negative in drawn:
        assert anchor == first[LABELS[anchor]]
        assert positive == last[LABELS[anchor]]
        assert negative == first[LABELS[negative]]
    # Two entries of the label array without replacement: P(label) = images / 12, P(same) = sum m (m - 1) / (12 * 11).
    anchors = LABELS[drawn[:, 0]]
    for label, images in ((2, 3), (4, 2), (5, 3), (9, 4)):
        assert abs((anchors == label).mean() - images / 12) < 0.03
    assert abs((anchors == LABELS[drawn[:, 2]]).mean() - (6 + 2 + 6 + 12) / 132) < 0.03


def test_the_published_pool_takes_coarse_labels_and_ignores_them():
    pool = partial(samplers.POOLS["published"], triplets=20)
    assert (pool(LABELS, np.arange(12), 0, LABELS // 5) == triplets()).all()
    assert (pool(LABELS, np.arange(12), 0, None) == triplets()).all()


def test_published_triplets_show_the_rows_of_their_run_alone_and_depend_on_the_seed():
    allowed = np.array([2, 1, 7, 6, 5])
    assert set(np.unique(triplets(rows=allowed))) == {
        1,
        2,
        5,
        7,
    }  # row 6 is neither the first nor the last of its class
    assert (triplets(seed=0) == triplets(seed=0)).all()
    assert (triplets(seed=0) != triplets(seed=1)).any()


def test_published_epochs_use_each_training_triplet_once_and_never_the_held_out_ones():
    drawn = triplets(n=10)
    validation = samplers.published_validation(drawn, 4, held_out=0.25)
    assert validation.reshape(-1, 3).tolist() == drawn[8:].tolist()
    for epoch in range(2):
        steps = [samplers.sample_published(drawn, 4, epoch * 3 + step, batch=3) for step in range(3)]
        rows = np.concatenate(steps).reshape(-1, 3)
        assert (rows == -1).all(axis=1).sum() == 1  # 8 triplets in 3 batches of 3
        assert sorted(rows[rows[:, 0] >= 0].tolist()) == sorted(drawn[:8].tolist())
