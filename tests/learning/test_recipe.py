"""From the parts of a strategy to trained parameters, by the names that a short script uses."""

from functools import partial

import jax
import numpy as np
import optax

from fgis.distances import DISTANCES
from fgis.features.store import load_features
from fgis.learning import heads, learned, losses, miners, objectives, optimizers, pair_losses, pools, recipe, samplers
from fgis.learning.recipe import Strategy, make_recipe, make_runs, trace_step
from fgis.learning.train import TrainingData, init_states, train
from fgis.ranges import hyperparameters
from fgis.retrieval.evaluate import evaluate, protocol
from tests.tiny import write_features

LABELS = np.repeat(np.arange(12), 4) * 1000  # labels may be any integers
RNG = np.random.default_rng(0)
FEATURES = np.abs(RNG.normal(size=(12, 6))[LABELS // 1000] + 0.8 * RNG.normal(size=(48, 6))).astype(np.float32)
EVERYTHING, MOST = np.arange(48), np.flatnonzero(LABELS // 1000 % 3 > 0)


def test_a_short_script_trains_a_head_and_evaluates_it(tmp_path):
    images = load_features(str(write_features(tmp_path / "features.h5")))
    features = heads.prepare(images.features, power=0.5, normalize=True)
    strategy = Strategy(
        head=heads.residual(rank=4),
        sample=partial(samplers.sample_pk, classes=6, per_class=4),
        objective=objectives.mined(
            miners.batch_hard, partial(losses.soft_margin, temperature=0.1), DISTANCES["cosine"]
        ),
        optimizer=optimizers.adam(learning_rate=1e-2),
    )
    data = TrainingData(features, images.labels)
    runs = make_runs(strategy, data, [(0, np.arange(len(images.labels)))])
    records = []
    state = train(
        make_recipe(strategy, feature_size=features.shape[1]), runs, data, steps=60, record_every=30,
        on_record=lambda step, state, metrics: records.append((step, metrics)),
    )  # fmt: skip
    params = jax.tree.map(lambda x: x[0], state.params)
    closed_set = protocol(images.labels, ("map@r",))
    frozen, trained = (
        evaluate(np.asarray(vectors), images.labels, closed_set, ("map@r",))["map@r"].mean()
        for vectors in (features, strategy.head.apply(params, features))
    )
    assert trained > frozen
    assert [step for step, _ in records] == [30, 60]
    assert records[-1][1]["loss"].mean() < records[0][1]["loss"].mean()
    assert {"variance", "effective_rank", "collapsed"} <= set(records[-1][1])


def test_an_optimiser_moves_parameters_and_what_the_loss_learns_but_no_constants():
    strategy = Strategy(
        head=heads.residual(rank=3, whiten=0.1),
        sample=partial(samplers.sample_pk, classes=6, per_class=4),
        objective=objectives.proxied(pair_losses.proxy_anchor, DISTANCES["cosine"]),
        optimizer=optimizers.adamw(weight_decay=0.5),
        learned=learned.class_proxies(),
    )
    data = TrainingData(heads.prepare(FEATURES), LABELS)
    made, runs = make_recipe(strategy, 6), make_runs(strategy, data, [(0, EVERYTHING), (0, MOST)])
    before = init_states(made, runs).params
    after = train(made, runs, data, steps=3, record_every=3).params
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert moved["params"] == {"down": {"kernel": True}, "up": {"kernel": True}}
    assert moved["constants"] == {"center": False}
    # The second run does not see a third of the classes: only proxies of classes it sees exist.
    seen = np.array([np.full(12, True), np.arange(12) % 3 > 0])
    np.testing.assert_array_equal((after["learned"]["proxies"] != 0).any(axis=2), seen)
    np.testing.assert_array_equal((before["learned"]["proxies"] != after["learned"]["proxies"]).any(axis=2), seen)


def test_runs_on_the_same_images_begin_with_the_same_fit_to_a_sample_of_them(monkeypatch):
    monkeypatch.setattr(recipe, "START_ROWS", 10)
    fitted, fetched = [], []

    def fetch(rows):
        fetched.append(rows)
        return FEATURES[rows]

    head = heads.residual(rank=2, whiten=0.1)
    strategy = Strategy(head._replace(fit=lambda x: fitted.append(x) or head.fit(x)))
    runs = make_runs(strategy, TrainingData(fetch, LABELS), [(5, EVERYTHING), (6, EVERYTHING[::-1]), (5, MOST)])
    expected = [np.sort(np.random.default_rng(5).permutation(rows)[:10]) for rows in (EVERYTHING, MOST)]
    assert [rows.tolist() for rows in fetched] == [rows.tolist() for rows in expected]
    assert len(fitted) == 2
    centers = runs.starts["head"]["constants"]["center"]
    assert (centers[0] == centers[1]).all()
    assert (centers[0] != centers[2]).any()
    assert runs.seeds.tolist() == [5, 6, 5]
    assert np.asarray(runs.starts["seen"]).sum(axis=1).tolist() == [12, 12, 8]
    assert runs.pools.counts.tolist() == [[4] * 12, [4] * 12, [4] * 8 + [0] * 4]


def test_a_step_can_be_traced_before_anything_is_compiled():
    sampler = samplers.SAMPLERS["published"]
    strategy = Strategy(
        heads.mlp(widths=(5, 3)),
        sample=partial(sampler.sample, batch=4),
        objective=objectives.given(losses.difference, DISTANCES["euclidean"]),
        pool=partial(sampler.pool, triplets=20),
        validation_rows=sampler.held_out,
        memory_size=16,
    )
    data = TrainingData(FEATURES, LABELS)
    made, runs = make_recipe(strategy, 6), make_runs(strategy, data, [(0, EVERYTHING), (1, MOST)])
    trace_step(made, runs, sampler.batch(batch=4).rows, 6)
    assert runs.pools.shape == (2, 20, 3)
    state = jax.eval_shape(made.init, 0, jax.tree.map(lambda x: x[0], runs.starts))
    assert (state.params["params"]["Dense_1"]["kernel"].shape, state.memory.embeddings.shape) == ((5, 3), (16, 3))
    assert made.validation is not None
    assert made.validation.rows(runs.pools[0], 0).shape == (15,)


def test_the_defaults_of_a_strategy_train_any_head():
    strategy = Strategy(heads.residual())
    runs = make_runs(strategy, TrainingData(FEATURES, LABELS), [(0, EVERYTHING)])
    trace_step(make_recipe(strategy, 6), runs, 256, 6)
    assert strategy.pool is pools.class_table


def test_optimisers_have_the_numbers_of_optax():
    ours = {"adam": optimizers.adam(), "adamw": optimizers.adamw(), "sgd": optimizers.sgd(momentum=0.9)}
    theirs = {"adam": optax.adam(3e-4), "adamw": optax.adamw(1e-4), "sgd": optax.sgd(0.1, momentum=0.9)}
    params, gradient = np.float32([1, 2, 3]), np.float32([0.1, -2, 0])
    for name, optimizer in ours.items():
        updates = [o.update(gradient, o.init(params), params)[0].tolist() for o in (optimizer, theirs[name])]
        assert updates[0] == updates[1], name
    assert {name: list(hyperparameters(one)) for name, one in optimizers.OPTIMIZERS.items()} == {
        "adam": ["learning_rate", "b1", "b2", "eps"],
        "adamw": ["learning_rate", "b1", "b2", "eps", "weight_decay"],
        "sgd": ["learning_rate", "momentum", "nesterov", "weight_decay"],
    }
