"""One loop for many runs: three runs of a small head, whose programs are compiled once for all tests."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgis.distances import DISTANCES
from fgis.errors import UserError
from fgis.learning import heads, losses, miners, objectives, samplers
from fgis.learning.pools import RunImages, class_table
from fgis.learning.step import init_state, make_loss, make_train_step
from fgis.learning.train import Recipe, Runs, TrainingData, Validation, train

LABELS = np.repeat(np.arange(10), 3)
RNG = np.random.default_rng(0)
FEATURES = jnp.asarray(RNG.random((10, 7))[LABELS] + 0.3 * RNG.random((30, 7)), jnp.float32)
HEAD = heads.mlp(widths=(6, 5), dropouts=(0.2,), final="normalize")
OPTIMIZER = optax.sgd(0.05)  # Adam turns rounding into a sign, so equality is asked of plain gradients
OBJECTIVE = objectives.mined(miners.batch_hard, losses.soft_margin, DISTANCES["euclidean"])
TRACES: list[int] = []


def counted_step():
    step = make_train_step(HEAD.apply, OBJECTIVE, losses.mean, OPTIMIZER)

    def counted(state, batch, key):
        TRACES.append(1)
        return step(state, batch, key)

    return counted


RECIPE = Recipe(
    init=lambda seed, start: init_state(HEAD.init(jax.random.key(seed), (7,)), OPTIMIZER),
    sample=partial(samplers.sample_pk, classes=4, per_class=2),
    step=counted_step(),
    validation=Validation(
        rows=lambda table, seed: table.rows[table.starts[:3, None] + np.arange(2)].reshape(-1),
        loss=lambda params, batch: make_loss(HEAD.apply, OBJECTIVE, losses.mean)(params, batch, None)[0],
    ),
    together=False,
)
TABLES = [class_table(RunImages(LABELS, np.flatnonzero(r != LABELS % 5))) for r in range(3)]
RUNS = Runs(jnp.arange(3), jax.tree.map(lambda *x: jnp.stack(x), *TABLES))


def trained(steps=7, features=FEATURES, runs=RUNS, recipe=RECIPE, **more):
    return train(recipe, runs, TrainingData(features, LABELS), steps=steps, record_every=3, **more)


@pytest.fixture(scope="module")
def whole():
    """The undisturbed training that others are compared with."""
    return trained()


def same(one, two, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), one.params, two.params)


def test_runs_trained_together_equal_the_same_runs_one_after_the_other(whole):
    same(whole, trained(recipe=RECIPE._replace(together=True)), atol=1e-5)


@pytest.mark.slow
def test_runs_trained_together_equal_the_same_runs_alone(whole):
    for r in range(2):
        alone = trained(runs=jax.tree.map(lambda x, r=r: x[r : r + 1], RUNS))
        same(jax.tree.map(lambda x, r=r: x[r : r + 1], whole), alone, atol=1e-5)


def test_runs_differ_by_seed_and_by_what_they_may_see(whole):
    kernels = whole.params["params"]["Dense_0"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_streamed_features_give_the_resident_parameters(whole):
    fetched, before = [], len(TRACES)

    def fetch(rows):
        fetched.append(rows)
        return np.asarray(FEATURES)[rows]

    same(whole, trained(features=fetch), atol=1e-6)
    assert len(fetched) == 7 + 3  # a batch of all runs per step, and the validation rows at each record
    assert len(TRACES) == before + 1


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_continues_exactly_where_it_stopped(stop, whole):
    halfway = trained(steps=stop)
    same(whole, trained(state=halfway))


def test_chunks_of_any_length_share_one_compilation(whole):
    before = len(TRACES)
    trained(steps=11)
    trained(steps=2)
    assert len(TRACES) == before


def test_records_cover_every_step_once_and_do_not_disturb_training(whole):
    seen = []
    state = trained(on_record=lambda step, state, metrics: seen.append((step, metrics)))
    assert [step for step, _ in seen] == [3, 6, 7]
    assert [metrics["loss"].shape for _, metrics in seen] == [(3, 3), (3, 3), (1, 3)]
    assert all(metrics["validation_loss"].shape == (1, 3) for _, metrics in seen)
    assert np.isfinite([metrics["loss"].sum() for _, metrics in seen]).all()
    same(state, whole)
    assert state.step.tolist() == [7, 7, 7]


def test_a_training_that_diverged_says_so_before_anything_is_recorded():
    features, seen = FEATURES.at[0, 0].set(jnp.nan), []  # row 0 is of class 0, which run 0 may not see
    with pytest.raises(UserError) as error:
        trained(features=features, on_record=lambda *record: seen.append(record))
    line = "training diverged: by step 3, 2 of 3 runs have parameters that are NaN or infinite; lower the learning rate"
    assert str(error.value) == line
    assert seen == []
