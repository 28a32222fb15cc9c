from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgis.base import Batch
from fgis.distances import DISTANCES
from fgis.learning import losses, miners, objectives
from fgis.learning.memory import empty_memory, enqueue, recalled
from fgis.learning.step import init_state, make_loss, make_train_step

OBJECTIVE = objectives.mined(miners.batch_hard, losses.soft_margin, DISTANCES["euclidean"])
KEY = jax.random.key(0)


def batch(step, size=3):
    rows = jnp.arange(size) + 10 * step
    return rows[:, None] * jnp.ones((1, 2)), rows % 4, rows, rows % 2


def test_the_ring_holds_the_latest_batches_and_overwrites_the_oldest():
    memory = empty_memory(7, 2)
    assert memory.rows.tolist() == [-1] * 7
    seen = []
    for step in range(4):
        memory = enqueue(memory, jnp.int32(step), *batch(step))
        seen.append(memory.rows.tolist())
    assert seen[0] == [0, 1, 2, -1, -1, -1, -1]
    assert seen[2] == [21, 22, 2, 10, 11, 12, 20]
    assert sorted(memory.rows.tolist()) == sorted([12, 20, 21, 22, 30, 31, 32])
    np.testing.assert_array_equal(memory.embeddings[:, 0], memory.rows)
    np.testing.assert_array_equal(memory.labels, memory.rows % 4)
    np.testing.assert_array_equal(memory.coarse, memory.rows % 2)


@pytest.mark.parametrize("step", [0, 5, 100_000_000])
def test_a_batch_larger_than_the_memory_leaves_its_end(step):
    memory = enqueue(empty_memory(4, 2), jnp.int32(step), *batch(0, size=6))
    assert sorted(memory.rows.tolist()) == [2, 3, 4, 5]


def test_late_steps_continue_the_ring_without_overflow():
    memory = empty_memory(70_001, 1)
    for step in (2**30, 2**30 + 1):
        rows = jnp.arange(512, dtype=jnp.int32) + 512 * (step - 2**30)
        memory = enqueue(memory, jnp.int32(step), rows[:, None] * 1.0, rows, rows, rows)
    written = np.flatnonzero(np.asarray(memory.rows) >= 0)
    place = (2**30 * 512) % 70_001
    assert set(written) == {(place + i) % 70_001 for i in range(1024)}


def test_nothing_is_recalled_during_the_warm_up():
    memory = enqueue(empty_memory(4, 2), 0, *batch(0))
    assert recalled(memory, 9, warmup_steps=10).rows.tolist() == [-1] * 4
    assert recalled(memory, 10, warmup_steps=10).rows.tolist() == [0, 1, 2, -1]


def apply(params, x, keys):
    return x @ params


def data(step, n=8):
    rng = np.random.default_rng(step)
    rows = rng.permutation(40)[:n]
    return Batch(jnp.asarray(rng.normal(size=(n, 3)), jnp.float32), jnp.asarray(rows % 5), jnp.asarray(rows))


def trained(memory, steps, warmup_steps=0):
    optimizer = optax.sgd(0.05)
    step = jax.jit(make_train_step(apply, OBJECTIVE, losses.mean, optimizer, warmup_steps=warmup_steps))
    state = init_state(jnp.eye(3), optimizer, memory)
    for i in range(steps):
        state, metrics = step(state, data(i), KEY)
    return state, metrics


def test_a_step_compares_the_batch_with_the_memory_by_hand():
    state, _ = trained(empty_memory(16, 3), 3)
    params, old = state.params, state.memory
    new = data(3)
    embeddings = new.features @ params
    candidates = jnp.concatenate([embeddings, old.embeddings])
    labels, rows = jnp.concatenate([new.labels, old.labels]), jnp.concatenate([new.rows, old.rows])
    d = np.asarray(DISTANCES["euclidean"].pairwise(embeddings, candidates))
    values = []
    for i in range(8):
        positive = [d[i, j] for j in range(24) if labels[j] == new.labels[i] and 0 <= rows[j] != new.rows[i]]
        negative = [d[i, j] for j in range(24) if labels[j] != new.labels[i] and rows[j] >= 0]
        if positive:
            values.append(np.log1p(np.exp(max(positive) - min(negative))))
    loss, (sums, memory) = make_loss(apply, OBJECTIVE, losses.mean)(params, new, KEY, state.step, old)
    assert float(loss) == pytest.approx(np.mean(values), rel=1e-4)
    assert float(sums.valid) == len(values) > 4
    np.testing.assert_allclose(memory.embeddings[8:], embeddings, rtol=1e-6)  # step 3 writes the second half
    alone = make_loss(apply, OBJECTIVE, losses.mean)(params, new, KEY)[0]
    assert abs(float(alone) - float(loss)) > 1e-3


def test_a_warm_up_as_long_as_the_run_trains_as_without_memory():
    without, with_memory = trained((), 5)[0], trained(empty_memory(16, 3), 5, warmup_steps=5)[0]
    np.testing.assert_allclose(without.params, with_memory.params, atol=1e-7)
    used = trained(empty_memory(16, 3), 5, warmup_steps=2)[0]
    assert np.abs(used.params - without.params).max() > 1e-4


def test_the_memory_carries_no_gradient():
    state, _ = trained(empty_memory(16, 3), 3)
    loss = lambda memory: make_loss(apply, OBJECTIVE, losses.mean)(state.params, data(3), KEY, 3, memory)[0]
    whole = jax.grad(lambda e: loss(state.memory._replace(embeddings=e)))(state.memory.embeddings)
    assert np.isfinite(whole).all()
    enqueued = jax.grad(
        lambda params: make_loss(apply, OBJECTIVE, losses.mean)(params, data(3), KEY, 3, state.memory)[1][
            1
        ].embeddings.sum()
    )(state.params)
    np.testing.assert_array_equal(enqueued, 0)


def test_runs_trained_together_keep_memories_of_their_own():
    step = make_train_step(apply, OBJECTIVE, losses.mean, optax.sgd(0.05))
    states = [init_state(jnp.eye(3) * scale, optax.sgd(0.05), empty_memory(16, 3)) for scale in (1.0, 2.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
    for i in range(3):
        stacked, _ = jax.jit(jax.vmap(partial(step, batch=data(i), key=KEY)))(stacked)
        states = [step(state, data(i), KEY)[0] for state in states]
    for r in range(2):
        jax.tree.map(lambda a, b, r=r: np.testing.assert_allclose(a[r], b, atol=1e-5), stacked, states[r])
