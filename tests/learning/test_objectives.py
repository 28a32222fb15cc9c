"""Objectives against every triplet one after the other, and what must not change them.

Embeddings are [12, 4] wherever they can be, so that each objective is compiled once.
"""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.base import BatchInfo, Triplets
from fgis.distances import DISTANCES, l2_normalize
from fgis.learning import losses, miners, objectives, pair_losses
from tests.tiny import comparison

KEY = jax.random.key(0)
N, D = 12, 4
EUCLIDEAN, COSINE, UNIT = (DISTANCES[name] for name in ("euclidean", "cosine", "unit_euclidean"))


def listed_differently(key, distances, positives, negatives, info):
    """A miner whose anchors are traced and in no order: the farthest negatives, last anchor first."""
    last_first = jnp.arange(len(distances))[::-1]
    farthest = jnp.argmax(jnp.where(negatives, distances, -1), axis=1)
    return Triplets(last_first, jnp.argmax(positives, axis=1)[::-1], farthest[::-1], jnp.ones(len(distances)))


MINED = {"batch_hard": miners.batch_hard, "semi_hard": partial(miners.semi_hard, margin=2.0), "own": listed_differently}
ALL = {
    "given": objectives.given(losses.difference, EUCLIDEAN),
    **{name: objectives.mined(m, losses.soft_margin, EUCLIDEAN) for name, m in MINED.items()},
    **{
        name: objectives.summed(s, partial(losses.triplet_loss, margin=0.4), EUCLIDEAN)
        for name, s in miners.SELECTORS.items()
    },
    "margin": objectives.mined(miners.distance_weighted, losses.margin_loss, EUCLIDEAN, mined_on=UNIT),
    "margin, summed": objectives.summed(miners.all_negatives, losses.margin_loss, EUCLIDEAN),
    **{name: objectives.paired(loss, COSINE) for name, loss in pair_losses.PAIR_LOSSES.items()},
    "opposites": objectives.paired(pair_losses.opposites, COSINE, graded=True),
    "mined pairs": objectives.paired(pair_losses.contrastive, COSINE, miners.hard_negatives),
    "proxied": objectives.proxied(pair_losses.proxy_anchor, COSINE),
    "scheduled": objectives.scheduled(
        objectives.mined(miners.random_negatives, losses.soft_margin, COSINE),
        objectives.paired(pair_losses.sup_con, COSINE),
        switch_steps=1,
    ),
}
PROXIES = np.random.default_rng(1).normal(size=(40, 1)).astype(np.float32)
PROXIES[3] = 0


def learned(name, dimensions=D):
    """What the loss of an objective has learned; proxies as wide as the embeddings."""
    if name == "proxied":
        return {"proxies": jnp.asarray(PROXIES * (1 + np.arange(dimensions, dtype=np.float32)))}
    return {"beta": jnp.float32(1.1)} if name.startswith("margin") else {}


def sums(name, x, labels, rows, own):
    positives, negatives = miners.relations(labels, rows, labels, rows)
    seen = comparison(x, positives, negatives, opposites=negatives & (labels % 2 == 0), labels=labels, rows=rows)
    return ALL[name](seen, own)


def everything(name, x, labels, rows, own):
    """The sums, and the value and gradients of every reduction of them."""
    return sums(name, x, labels, rows, own), [
        jax.value_and_grad(lambda x, own: reduction(sums(name, x, labels, rows, own)), argnums=(0, 1))(x, own)
        for reduction in losses.REDUCTIONS.values()
    ]


compiled = functools.cache(lambda name: jax.jit(partial(everything, name)))
X = np.random.default_rng(5).normal(size=(N, D)).astype(np.float32)
LABELS, ROWS = np.arange(N) // 3, np.arange(N)
every_objective = pytest.mark.parametrize("name", ALL)


def batch(seed=0, classes=4, padding=2):
    rng = np.random.default_rng(seed)
    rows = np.arange(N)
    rows[N - padding :] = -1
    return rng.normal(size=(N, D)).astype(np.float32), rng.integers(0, classes, N), rows


def triplets_of(labels, rows):
    """Every valid triplet, [t] each."""
    positives, negatives = map(np.asarray, miners.relations(*map(jnp.asarray, (labels, rows, labels, rows))))
    index = [t for t in itertools.product(range(N), repeat=3) if positives[t[0], t[1]] and negatives[t[0], t[2]]]
    return np.transpose(index)


def float64_distances(x, distance):
    x = np.float64(x)
    if distance == "cosine":
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        return 1 - unit @ unit.T
    return np.linalg.norm(x[:, None] - x, axis=2)


@pytest.mark.parametrize(
    ("kind", "distance"),
    [
        ("all", "cosine"),
        ("semi_hard", "euclidean"),
        pytest.param("all", "euclidean", marks=pytest.mark.slow),
    ],
)
def test_a_summed_objective_is_every_triplet_of_its_kind_and_their_gradients(kind, distance):
    x, labels, rows = batch(2)
    a, p, n = triplets_of(labels, rows)
    selector = {"all": miners.all_negatives, "semi_hard": partial(miners.all_semi_hard_negatives, margin=0.5)}[kind]
    objective = objectives.summed(selector, partial(losses.triplet_loss, margin=0.5), DISTANCES[distance])
    d = float64_distances(x, distance)
    kept = (d[a, n] > d[a, p]) & (d[a, n] < d[a, p] + 0.5) if kind == "semi_hard" else np.full(len(a), True)
    a, p, n = a[kept], p[kept], n[kept]

    def listed(x):
        d_ap, d_an = (DISTANCES[distance].rowwise(x[a], x[other]) for other in (p, n))
        return losses.triplet_loss(d_ap, d_an, margin=0.5).sum()

    def total(x):
        masks = miners.relations(*map(jnp.asarray, (labels, rows, labels, rows)))
        found = objective(comparison(x, *masks), {})
        return found.total, found

    (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(x)
    hinges = np.maximum(0, 0.5 + d[a, p] - d[a, n])
    assert len(a) > 3
    np.testing.assert_allclose(found, [hinges.sum(), len(a), (hinges > 0).sum()], rtol=1e-5)
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(listed))(x), atol=2e-4)


@pytest.mark.parametrize("name", MINED)
def test_a_mined_objective_is_the_loss_of_the_mined_triplets_and_its_gradient(name):
    x, labels, rows = X, LABELS, ROWS

    def listed(x):
        masks = miners.relations(*map(jnp.asarray, (labels, rows, labels, rows)))
        d = EUCLIDEAN.pairwise(x, x)
        t = MINED[name](KEY, jax.lax.stop_gradient(d), *masks, BatchInfo())
        losses_of_triplets = losses.soft_margin(d[t.anchor, t.positive], d[t.anchor, t.negative])
        return (t.weight * losses_of_triplets).sum() / t.weight.sum()

    value, gradient = jax.jit(jax.value_and_grad(listed))(x)
    _, ((found, (found_gradient, _)), *_) = compiled(name)(x, labels, rows, {})
    np.testing.assert_allclose(found, value, rtol=1e-4)
    np.testing.assert_allclose(found_gradient, gradient, atol=2e-3)


# Larger batches are other programs, for which the compiler fuses other things.
SMALL = ("semi_hard", "batch_all", "smooth_ap")


@pytest.mark.parametrize(
    ("name", "n", "d"),
    [
        *((name, N, D) for name in SMALL),
        *(pytest.param(name, *size, marks=pytest.mark.slow) for name in ALL for size in ((9, 5), (96, 64))),
    ],
)
def test_gradients_inside_a_compiled_vmap_are_those_outside(name, n, d):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, n, 6)).astype(np.float32)
    params = rng.normal(size=(3, 6, d)).astype(np.float32), np.zeros((3, d), np.float32)
    labels, rows = rng.integers(0, n // 3, (3, n)), jnp.arange(n)

    def loss(params, x, labels):
        z = l2_normalize(x @ params[0] + params[1])
        return losses.mean(sums(name, z, labels, rows, learned(name, d)))

    together = jax.jit(jax.vmap(jax.grad(loss)))(params, x, labels)
    alone = jax.jit(jax.grad(loss))
    for r in range(3):
        one = alone(jax.tree.map(lambda p, r=r: p[r], params), x[r], labels[r])
        jax.tree.map(lambda a, b, r=r: np.testing.assert_allclose(a[r], b, atol=1e-5), together, one)


def test_given_triplets_are_read_in_order_and_padding_does_not_count():
    x = np.zeros((N, D), np.float32)
    x[:, 0] = [0, 1, 4, 0, 2, 3, 9, 9, 9, 5, 6, 7]
    rows = np.array([0, 1, 2, 3, 4, 5, -1, -1, -1, 6, 7, -1])
    labels = np.array([0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1])
    (total, count, active), _ = compiled("given")(x, labels, rows, {})
    assert (float(total), float(count), float(active)) == (1 - 4 + 2 - 3, 2, 0)


CASES = {
    "one class": (X, LABELS * 0, ROWS),
    "all padding": (X, LABELS, ROWS * 0 - 1),
    "duplicates": (X * 0 + 1, LABELS, ROWS),
    "zero vectors": (X * 0, LABELS, ROWS),
    "singletons": (X, ROWS, ROWS),
}


@every_objective
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=[pytest.mark.slow, pytest.mark.lean])])
def test_no_degenerate_batch_gives_nan(name, dtype):
    for case, (x, labels, rows) in CASES.items():
        _, reduced = compiled(name)(jnp.asarray(x, dtype), labels, rows, learned(name))
        for leaf in jax.tree.leaves(reduced):
            assert np.isfinite(np.asarray(leaf, np.float32)).all(), case


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("given", "own", "scheduled")])
def test_padding_counts_nowhere_and_renaming_labels_changes_nothing(name):
    """Padding is found at the end of the batch, or among other rows and far away."""
    labels, rows, own = LABELS.copy(), ROWS.copy(), learned(name)
    rows[10:] = -1
    whole = np.concatenate([np.ravel(value) for value in compiled(name)(X, labels, rows, own)[0]])
    # What a miner draws depends on the place of the anchor: there the padding stays where it is.
    order = ROWS if name == "margin" else np.insert(np.arange(10), [3, 7], [10, 11])
    far = np.where(rows[:, None] < 0, 7 * X, X)
    relabelled = np.where(rows < 0, 0, labels)
    for moved in (
        (far[order], relabelled[order], rows[order], own),
        (X, labels + 8, rows, {k: np.roll(v, 8, axis=0) if k == "proxies" else v for k, v in own.items()}),
    ):
        found = np.concatenate([np.ravel(value) for value in compiled(name)(*moved)[0]])
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-6)
    assert np.abs(whole).sum() > 0


def test_pairs_that_occur_in_mined_triplets_by_hand():
    x = np.zeros((4, 1), np.float32) + np.float32([[0], [1], [3], [7]])
    labels, rows = jnp.array([0, 0, 1, 1]), jnp.arange(4)
    loss = partial(pair_losses.contrastive, positive_margin=0.5, negative_margin=9.0)
    objective = objectives.paired(loss, EUCLIDEAN, miners.batch_hard)
    sums = jax.jit(lambda x: objective(comparison(x, *miners.relations(labels, rows, labels, rows)), {}))(x)
    # Nearest negatives: 0 -> 3, 1 -> 3, 3 -> 1, 7 -> 1; each anchor has one positive.
    np.testing.assert_allclose(sums.total, [0.5 + 0.5 + 3.5 + 3.5, 6 + 7 + 7 + 3])
    np.testing.assert_allclose(sums.valid, [4, 4])


def test_the_learned_boundary_gets_the_gradient_of_the_listed_triplets():
    x, labels, rows = batch(6)
    a, p, n = triplets_of(labels, rows)
    d = float64_distances(x, "euclidean")
    beta = 2.0
    expected = (-1.0 * (0.2 + d[a, p] > beta) + 1.0 * (0.2 + beta > d[a, n])).sum()
    (_, valid, _), ((_, (_, gradient)), *_) = compiled("margin, summed")(x, labels, rows, {"beta": np.float32(beta)})
    assert abs(expected) > 10
    np.testing.assert_allclose(gradient["beta"] * valid, expected, rtol=1e-5)


def test_proxies_are_shared_out_over_devices_and_zero_proxies_count_nowhere():
    labels, own = np.arange(N) % 4, {"proxies": np.random.default_rng(1).normal(size=(5, D)).astype(np.float32)}
    own["proxies"][2] = 0
    positives, negatives = miners.relations(*map(jnp.asarray, (labels, ROWS, labels, ROWS)))

    def total(own, device, devices):
        seen = comparison(X, positives, negatives, labels=labels, rows=ROWS)._replace(share=(device, devices))
        found = ALL["proxied"](seen, own)
        return found.total.sum(), found

    gradient_and_sums = jax.jit(jax.grad(total, has_aux=True))
    gradient, whole = gradient_and_sums(own, 0, 1)
    parts = [gradient_and_sums(own, device, 3)[1] for device in range(3)]
    jax.tree.map(lambda w, *p: np.testing.assert_allclose(w, sum(p), rtol=1e-6), whole, *parts)
    assert whole.valid.tolist() == [3, 4]  # classes 0, 1 and 3 have images; class 4 has a proxy alone
    assert not gradient["proxies"][2].any()
    assert gradient["proxies"][4].any()


def test_a_schedule_switches_at_its_step():
    positives, negatives = miners.relations(*map(jnp.asarray, (LABELS, ROWS, LABELS, ROWS)))
    first, second = (objectives.mined(MINED[name], losses.soft_margin, EUCLIDEAN) for name in ("batch_hard", "own"))
    total = lambda objective: jax.jit(
        lambda step: objective(comparison(X, positives, negatives)._replace(step=step), {}).total
    )
    both = total(objectives.scheduled(first, second, switch_steps=5))
    expected = [float(total(o)(0)) for o in (first, first, second, second)]
    np.testing.assert_allclose([float(both(step)) for step in (0, 4, 5, 9)], expected, rtol=1e-6)
    assert abs(expected[0] - expected[2]) > 0.1


def test_a_schedule_in_a_table_of_miners_is_a_record_of_names():
    assert objectives.schedule(second="batch_all", switch_steps=7) == ("semi_hard", "batch_all", 7)


def test_miners_are_told_what_is_known_of_the_batch():
    told = []

    def miner(key, distances, positives, negatives, info):
        told.append(info)
        return miners.batch_hard(key, distances, positives, negatives)

    for info in (BatchInfo(), BatchInfo(3), BatchInfo(3, 9)):
        objective = objectives.mined(miner, losses.soft_margin, EUCLIDEAN, info)
        relations = miners.relations(*map(jnp.asarray, (LABELS, ROWS, LABELS, ROWS)))
        jax.eval_shape(lambda x: objective(comparison(x, *relations), {}), X)
    assert told == [(None, D), (3, D), (3, 9)]
