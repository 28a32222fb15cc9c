import functools

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
    rows = np.arange(size, dtype=np.int32) + 10 * step
    return rows[:, None] * np.ones((1, 2), np.float32), rows % 4, rows, rows % 2


def apply(params, x, keys):
    return x @ params


ENQUEUE = jax.jit(enqueue)
LOSS = jax.jit(make_loss(apply, OBJECTIVE, losses.mean))


def test_the_ring_holds_the_latest_batches_and_overwrites_the_oldest():
    memory = empty_memory(7, 2)
    assert memory.rows.tolist() == [-1] * 7
    seen = []
    for step in range(4):
        memory = ENQUEUE(memory, jnp.int32(step), *batch(step))
        seen.append(memory.rows.tolist())
    assert seen[0] == [0, 1, 2, -1, -1, -1, -1]
    assert seen[2] == [21, 22, 2, 10, 11, 12, 20]
    assert sorted(memory.rows.tolist()) == sorted([12, 20, 21, 22, 30, 31, 32])
    np.testing.assert_array_equal(memory.embeddings[:, 0], memory.rows)
    np.testing.assert_array_equal(memory.labels, memory.rows % 4)
    np.testing.assert_array_equal(memory.coarse, memory.rows % 2)


@pytest.mark.parametrize("step", [0, 5, 100_000_000])
def test_a_batch_larger_than_the_memory_leaves_its_end(step):
    memory = ENQUEUE(empty_memory(4, 2), jnp.int32(step), *batch(0, size=6))
    assert sorted(memory.rows.tolist()) == [2, 3, 4, 5]


def test_late_steps_continue_the_ring_without_overflow():
    memory = empty_memory(70_001, 1)
    for step in (2**30, 2**30 + 1):
        rows = np.arange(512, dtype=np.int32) + 512 * (step - 2**30)
        memory = ENQUEUE(memory, jnp.int32(step), np.float32(rows[:, None]), rows, rows, rows)
    written = np.flatnonzero(np.asarray(memory.rows) >= 0)
    place = (2**30 * 512) % 70_001
    assert set(written) == {(place + i) % 70_001 for i in range(1024)}


def test_nothing_is_recalled_during_the_warm_up():
    memory = ENQUEUE(empty_memory(4, 2), 0, *batch(0))
    assert recalled(memory, 9, warmup_steps=10).rows.tolist() == [-1] * 4
    assert recalled(memory, 10, warmup_steps=10).rows.tolist() == [0, 1, 2, -1]


def data(step, n=8):
    rng = np.random.default_rng(step)
    rows = rng.permutation(40)[:n]
    return Batch(jnp.asarray(rng.normal(size=(n, 3)), jnp.float32), jnp.asarray(rows % 5), jnp.asarray(rows))


OPTIMIZER = optax.sgd(0.05)
steps = functools.cache(
    lambda warmup_steps: jax.jit(make_train_step(apply, OBJECTIVE, losses.mean, OPTIMIZER, warmup_steps=warmup_steps))
)


def trained(memory, count, warmup_steps=0, start=1.0):
    state = init_state(jnp.eye(3) * start, OPTIMIZER, memory)
    for i in range(count):
        state, _ = steps(warmup_steps)(state, data(i), KEY)
    return state


def test_a_step_compares_the_batch_with_the_memory_by_hand():
    state = trained(empty_memory(16, 3), 3)
    params, old = np.asarray(state.params), state.memory
    new = data(3)
    embeddings = np.asarray(new.features) @ params
    candidates = np.float64(np.concatenate([embeddings, old.embeddings]))
    labels, rows = np.concatenate([new.labels, old.labels]), np.concatenate([new.rows, old.rows])
    d = np.linalg.norm(np.float64(embeddings)[:, None] - candidates, axis=2)
    values = []
    for i in range(8):
        positive = [d[i, j] for j in range(24) if labels[j] == new.labels[i] and 0 <= rows[j] != new.rows[i]]
        negative = [d[i, j] for j in range(24) if labels[j] != new.labels[i] and rows[j] >= 0]
        if positive:
            values.append(np.log1p(np.exp(max(positive) - min(negative))))
    loss, (sums, memory) = LOSS(params, new, KEY, state.step, old)
    assert float(loss) == pytest.approx(np.mean(values), rel=1e-4)
    assert float(sums.valid) == len(values) > 4
    np.testing.assert_allclose(memory.embeddings[8:], embeddings, rtol=1e-6)  # step 3 writes the second half
    alone = LOSS(params, new, KEY, state.step, old._replace(rows=jnp.full(16, -1)))[0]
    assert abs(float(alone) - float(loss)) > 1e-3


def test_a_warm_up_as_long_as_the_run_trains_as_without_memory():
    without, with_memory = trained((), 5), trained(empty_memory(16, 3), 5, warmup_steps=5)
    np.testing.assert_allclose(without.params, with_memory.params, atol=1e-7)
    used = trained(empty_memory(16, 3), 5)
    assert np.abs(used.params - without.params).max() > 1e-4


def test_the_memory_carries_no_gradient():
    state = trained(empty_memory(16, 3), 3)

    def loss_and_enqueued(params, embeddings):
        memory = state.memory._replace(embeddings=embeddings)
        value, (_, after) = make_loss(apply, OBJECTIVE, losses.mean)(params, data(3), KEY, state.step, memory)
        return value, after.embeddings.sum()

    jacobian = jax.jit(jax.jacrev(loss_and_enqueued, argnums=(0, 1)))
    (_, of_memory), (enqueued, _) = jacobian(state.params, state.memory.embeddings)
    assert np.isfinite(of_memory).all()
    np.testing.assert_array_equal(enqueued, 0)


def test_runs_trained_together_keep_memories_of_their_own():
    stacked = jax.tree.map(
        lambda *x: jnp.stack(x),
        *(init_state(jnp.eye(3) * scale, OPTIMIZER, empty_memory(16, 3)) for scale in (1.0, 2.0)),
    )
    together = jax.jit(jax.vmap(steps(0), in_axes=(0, None, None)))
    for i in range(3):
        stacked, _ = together(stacked, data(i), KEY)
    for r in range(2):
        alone = trained(empty_memory(16, 3), 3, start=1.0 + r)
        jax.tree.map(lambda a, b, r=r: np.testing.assert_allclose(a[r], b, atol=1e-5), stacked, alone)
