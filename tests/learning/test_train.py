from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgis.distances import DISTANCES
from fgis.learning import heads, losses, miners, objectives, samplers
from fgis.learning.step import init_state, make_loss, make_train_step
from fgis.learning.train import Recipe, Runs, Validation, train

LABELS = np.repeat(np.arange(10), 3)
RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.random((10, 7))[LABELS] + 0.3 * RNG.random((30, 7)), jnp.float32)
HEAD = heads.EmbeddingHead(widths=(6, 5), dropouts=(0.2,), final="normalize")
OPTIMIZER = optax.sgd(0.05)  # Adam turns rounding into a sign, so equality is asked of plain gradients


def recipe(step_wrapper=lambda step: step):
    objective = objectives.mined(miners.batch_hard, losses.soft_margin, DISTANCES["euclidean"])
    return Recipe(
        init=lambda seed, start: init_state(heads.init_head(HEAD, jax.random.key(seed), (7,)), OPTIMIZER),
        sample=partial(samplers.sample_pk, classes=4, per_class=2),
        step=step_wrapper(make_train_step(HEAD.apply, objective, losses.mean, OPTIMIZER)),
        validation=Validation(
            rows=lambda table, seed: table.rows[:3, :2].reshape(-1),
            loss=lambda params, batch: make_loss(HEAD.apply, objective, losses.mean)(params, batch, None)[0],
        ),
    )


def runs(count=3):
    tables = [samplers.class_table(LABELS, np.flatnonzero(r != LABELS % 5)) for r in range(count)]
    return Runs(jnp.arange(count), jax.tree.map(lambda *x: jnp.stack(x), *tables))


def trained(together=True, steps=7, record_every=3, features=FEATURES, runs=runs(), recipe=recipe(), **more):
    return train(recipe, runs, features, LABELS, steps=steps, record_every=record_every, together=together, **more)


@pytest.fixture(scope="module")
def whole():
    """The undisturbed training that others are compared with."""
    return trained()


def same(one, two, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), one.params, two.params)


def test_runs_trained_together_equal_the_same_runs_one_by_one(whole):
    for r in range(2):
        alone = trained(runs=jax.tree.map(lambda x, r=r: x[r : r + 1], runs()))
        same(jax.tree.map(lambda x, r=r: x[r : r + 1], whole), alone, atol=1e-5)
    same(whole, trained(together=False), atol=1e-5)


def test_runs_differ_by_seed_and_by_what_they_may_see(whole):
    kernels = whole.params["params"]["Dense_0"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_streamed_features_give_the_resident_parameters(whole):
    fetched = []

    def fetch(rows):
        fetched.append(rows)
        return np.asarray(FEATURES)[rows]

    same(whole, trained(features=fetch), atol=1e-6)
    assert len(fetched) == 7 + 3  # a batch of all runs per step, and the validation rows at each record


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_continues_exactly_where_it_stopped(stop, whole):
    halfway = trained(steps=stop)
    same(whole, trained(state=halfway))


def test_records_cover_every_step_once_and_do_not_disturb_training(whole):
    seen = []
    state = trained(on_record=lambda step, state, metrics: seen.append((step, metrics)))
    assert [step for step, _ in seen] == [3, 6, 7]
    assert [metrics["loss"].shape for _, metrics in seen] == [(3, 3), (3, 3), (1, 3)]
    assert all(metrics["validation_loss"].shape == (1, 3) for _, metrics in seen)
    assert np.isfinite([metrics["loss"].sum() for _, metrics in seen]).all()
    same(state, whole)
    assert state.step.tolist() == [7, 7, 7]


@pytest.mark.parametrize("streamed", [False, True])
def test_the_step_is_traced_once_per_run_of_the_program(streamed):
    traces = []

    def counting(step):
        def counted(state, batch, key):
            traces.append(1)
            return step(state, batch, key)

        return counted

    features = (lambda rows: np.asarray(FEATURES)[rows]) if streamed else FEATURES
    trained(features=features, recipe=recipe(counting), steps=11)
    # A resident chunk is traced for the shape of its log and for the program itself; neither happens again.
    assert len(traces) == (1 if streamed else 2)


def test_training_learns_to_separate_the_classes():
    head, optimizer = heads.ResidualHead(rank=4), optax.adam(3e-2)
    loss = partial(losses.soft_margin, temperature=0.1)
    objective = objectives.mined(miners.batch_hard, loss, DISTANCES["cosine"])
    learns = Recipe(
        init=lambda seed, start: init_state(heads.init_head(head, jax.random.key(seed), (7,)), optimizer),
        sample=partial(samplers.sample_pk, classes=10, per_class=2),
        step=make_train_step(head.apply, objective, losses.mean, optimizer),
    )
    seen = []
    trained(
        recipe=learns,
        steps=90,
        record_every=30,
        on_record=lambda step, state, metrics: seen.append(metrics["loss"].mean()),
    )
    assert seen[-1] < 0.5 * seen[0]
