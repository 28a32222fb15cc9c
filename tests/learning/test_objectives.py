import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.base import Triplets
from fgis.distances import DISTANCES, l2_normalize
from fgis.learning import losses, miners, objectives, pair_losses
from tests.tiny import comparison

KEY = jax.random.key(0)


def batch(seed=0, n=14, classes=4, padding=2):
    rng = np.random.default_rng(seed)
    labels, rows = rng.integers(0, classes, n), np.arange(n)
    rows[n - padding :] = -1
    embeddings = jnp.asarray(rng.normal(size=(n, 5)), jnp.float32)
    return embeddings, miners.relations(*map(jnp.asarray, (labels, rows, labels, rows)))


def brute_force(embeddings, positives, negatives, loss, distance, keep=lambda d_ap, d_an: True):
    """Every triplet, one after the other."""
    distances = np.asarray(DISTANCES[distance].pairwise(embeddings, embeddings), np.float64)
    total = count = active = 0.0
    for a, p, n in itertools.product(range(len(embeddings)), repeat=3):
        if positives[a, p] and negatives[a, n] and keep(distances[a, p], distances[a, n]):
            value = float(loss(*(jnp.asarray([d], jnp.float32) for d in (distances[a, p], distances[a, n])))[0])
            total, count, active = total + value, count + 1, active + (value > 0)
    return total, count, active


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_batch_all_sums_over_every_triplet(distance):
    embeddings, (positives, negatives) = batch()
    loss = partial(losses.triplet_loss, margin=0.5)
    objective = objectives.summed(miners.all_negatives, loss, DISTANCES[distance])
    found = objective(comparison(embeddings, positives, negatives), {})
    np.testing.assert_allclose(found, brute_force(embeddings, positives, negatives, loss, distance), rtol=1e-5)


def test_all_semi_hard_sums_over_the_semi_hard_triplets_alone():
    embeddings, (positives, negatives) = batch(1)
    loss = partial(losses.triplet_loss, margin=0.6)
    objective = objectives.summed(partial(miners.all_semi_hard_negatives, margin=0.6), loss, DISTANCES["euclidean"])
    found = objective(comparison(embeddings, positives, negatives), {})
    expected = brute_force(embeddings, positives, negatives, loss, "euclidean", lambda p, n: p < n < p + 0.6)
    assert expected[1] > 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [partial(losses.triplet_loss, margin=0.5), losses.soft_margin], ids=["hinge", "soft"])
def test_the_gradient_of_a_summed_objective_is_that_of_the_listed_triplets(loss):
    embeddings, (positives, negatives) = batch(2)
    index = [t for t in itertools.product(range(14), repeat=3) if positives[t[0], t[1]] and negatives[t[0], t[2]]]
    a, p, n = map(jnp.asarray, zip(*index))

    def listed(x):
        d = DISTANCES["euclidean"]
        return loss(d.rowwise(x[a], x[p]), d.rowwise(x[a], x[n])).sum()

    objective = objectives.summed(miners.all_negatives, loss, DISTANCES["euclidean"])
    found = jax.grad(lambda x: objective(comparison(x, positives, negatives), {}).total)(embeddings)
    np.testing.assert_allclose(found, jax.grad(listed)(embeddings), atol=2e-4)


def listed_differently(key, distances, positives, negatives):
    """A miner whose anchors are traced and in no order: the farthest negatives, last anchor first."""
    last_first = jnp.arange(len(distances))[::-1]
    farthest = jnp.argmax(jnp.where(negatives, distances, -1), axis=1)
    return Triplets(last_first, jnp.argmax(positives, axis=1)[::-1], farthest[::-1], jnp.ones(len(distances)))


MINED = {"batch_hard": miners.batch_hard, "semi_hard": partial(miners.semi_hard, margin=2.0), "own": listed_differently}


@pytest.mark.parametrize("name", MINED)
def test_a_mined_objective_is_the_loss_of_the_mined_triplets_and_its_gradient(name):
    embeddings, (positives, negatives) = batch(3)
    distance, loss = DISTANCES["euclidean"], partial(losses.soft_margin, temperature=0.1)
    objective = objectives.mined(MINED[name], loss, distance)
    t = MINED[name](KEY, distance.pairwise(embeddings, embeddings), positives, negatives)

    def listed(x):
        d = distance.pairwise(x, x)
        return (t.weight * loss(d[t.anchor, t.positive], d[t.anchor, t.negative])).sum()

    sums = lambda x: objective(comparison(x, positives, negatives), {}).total
    np.testing.assert_allclose(sums(embeddings), listed(embeddings), rtol=1e-4)
    np.testing.assert_allclose(jax.grad(sums)(embeddings), jax.grad(listed)(embeddings), atol=2e-3)


EUCLIDEAN, COSINE, UNIT = (DISTANCES[name] for name in ("euclidean", "cosine", "unit_euclidean"))
LEARNED = {"margin": {"beta": jnp.float32(1.1)}, "proxied": {"proxies": jax.random.normal(KEY, (40, 1)).at[3].set(0)}}
ALL = {
    "given": objectives.given(losses.difference, EUCLIDEAN),
    **{name: objectives.mined(m, losses.soft_margin, EUCLIDEAN) for name, m in MINED.items()},
    **{
        name: objectives.summed(s, partial(losses.triplet_loss, margin=0.4), EUCLIDEAN)
        for name, s in miners.SELECTORS.items()
    },
    "margin": objectives.mined(partial(miners.distance_weighted, dimensions=5), losses.margin_loss, EUCLIDEAN, UNIT),
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


def learned(name, dimensions):
    """What the loss of an objective has learned; proxies as wide as the embeddings."""
    found = LEARNED.get(name.split(",")[0], {})
    return {
        k: jnp.broadcast_to(v, (40, dimensions)) * (1 + jnp.arange(dimensions)) if k == "proxies" else v
        for k, v in found.items()
    }


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("n", "d"), [(9, 5), (24, 16), (96, 64)])
def test_gradients_inside_a_compiled_vmap_are_those_outside(name, n, d):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, n, 6)), jnp.float32)
    params = jnp.asarray(rng.normal(size=(3, 6, d)), jnp.float32), jnp.zeros((3, d))
    labels, rows = jnp.asarray(rng.integers(0, n // 3, (3, n))), jnp.arange(n)

    def loss(params, x, labels):
        z = l2_normalize(x @ params[0] + params[1])
        masks = miners.relations(labels, rows, labels, rows)
        return losses.mean(ALL[name](comparison(z, *masks, labels=labels, rows=rows), learned(name, d)))

    together = jax.jit(jax.vmap(jax.grad(loss)))(params, x, labels)
    for r in range(3):
        alone = jax.grad(loss)(jax.tree.map(lambda p, r=r: p[r], params), x[r], labels[r])
        jax.tree.map(lambda a, b, r=r: np.testing.assert_allclose(a[r], b, atol=1e-5), together, alone)


def test_given_triplets_are_read_in_order_and_padding_does_not_count():
    x = jnp.array([[0.0], [1.0], [4.0], [0.0], [2.0], [3.0], [9.0], [9.0], [9.0]])
    rows = jnp.array([0, 1, 2, 3, 4, 5, -1, -1, -1])
    labels = jnp.array([0, 0, 1, 0, 0, 1, 0, 0, 0])
    masks = miners.relations(labels, rows, labels, rows)
    objective = objectives.given(losses.difference, DISTANCES["euclidean"])
    total, count, active = objective(comparison(x, *masks), {})
    assert (float(total), float(count), float(active)) == (1 - 4 + 2 - 3, 2, 0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("case", ["one class", "all padding", "duplicates", "zero vectors", "singletons", "bf16"])
def test_no_degenerate_batch_gives_nan(name, case):
    x = jax.random.normal(KEY, (9, 3))
    labels, rows = jnp.array([0, 0, 1] * 3), jnp.arange(9)
    if case == "one class":
        labels = jnp.zeros(9, int)
    elif case == "all padding":
        rows = jnp.full(9, -1)
    elif case == "duplicates":
        x = jnp.ones((9, 3))
    elif case == "zero vectors":
        x = jnp.zeros((9, 3))
    elif case == "bf16":
        x = x.astype(jnp.bfloat16)
    else:
        labels = jnp.arange(9)
    masks = miners.relations(labels, rows, labels, rows)
    seen = lambda x: comparison(x, *masks, opposites=masks[1] & (labels == 0), labels=labels, rows=rows)
    for reduction in losses.REDUCTIONS.values():
        value, gradients = jax.value_and_grad(lambda x, own: reduction(ALL[name](seen(x), own)), argnums=(0, 1))(
            x, learned(name, 3)
        )
        assert np.isfinite(value)
        assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("given", "own", "scheduled")])
def test_a_padded_row_changes_nothing_and_renaming_labels_neither(name):
    rng = np.random.default_rng(5)
    x, labels, rows = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32), jnp.arange(12) // 3, jnp.arange(12)

    def sums(x, labels, rows, shift=0):
        masks = miners.relations(labels, rows, labels, rows)
        own = {k: jnp.roll(v, shift, axis=0) if k == "proxies" else v for k, v in learned(name, 4).items()}
        seen = comparison(x, *masks, opposites=masks[1], labels=labels, rows=rows)
        return np.concatenate([np.ravel(value) for value in ALL[name](seen, own)])

    whole = sums(x, labels, rows)
    padded = [
        jnp.concatenate(pair) for pair in ((x, 7 * jnp.ones((2, 4))), (labels, labels[:2]), (rows, rows[:2] * 0 - 1))
    ]
    np.testing.assert_allclose(sums(*padded), whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sums(x, labels + 9, rows, shift=9), whole, rtol=1e-4, atol=1e-6)
    assert np.abs(whole).sum() > 0


def test_pairs_that_occur_in_mined_triplets_by_hand():
    x = jnp.array([[0.0], [1.0], [3.0], [7.0]])
    labels, rows = jnp.array([0, 0, 1, 1]), jnp.arange(4)
    loss = partial(pair_losses.contrastive, positive_margin=0.5, negative_margin=9.0)
    objective = objectives.paired(loss, EUCLIDEAN, miners.batch_hard)
    sums = objective(comparison(x, *miners.relations(labels, rows, labels, rows)), {})
    # Nearest negatives: 0 -> 3, 1 -> 3, 3 -> 1, 7 -> 1; each anchor has one positive.
    np.testing.assert_allclose(sums.total, [0.5 + 0.5 + 3.5 + 3.5, 6 + 7 + 7 + 3])
    np.testing.assert_allclose(sums.valid, [4, 4])


def test_the_learned_boundary_gets_the_gradient_of_the_listed_triplets():
    x, (positives, negatives) = batch(6)
    index = [t for t in itertools.product(range(14), repeat=3) if positives[t[0], t[1]] and negatives[t[0], t[2]]]
    a, p, n = map(jnp.asarray, zip(*index))
    d = EUCLIDEAN.pairwise(x, x)
    listed = lambda beta: losses.margin_loss(d[a, p], d[a, n], beta=beta).sum()
    objective = objectives.summed(miners.all_negatives, losses.margin_loss, EUCLIDEAN)
    summed = lambda beta: objective(comparison(x, positives, negatives), {"beta": beta}).total
    assert abs(float(jax.grad(listed)(jnp.float32(2.0)))) > 10
    np.testing.assert_allclose(jax.grad(summed)(jnp.float32(2.0)), jax.grad(listed)(jnp.float32(2.0)), rtol=1e-5)


def test_proxies_are_dealt_out_over_devices_and_zero_proxies_count_nowhere():
    x, labels, rows = jax.random.normal(KEY, (9, 3)), jnp.arange(9) % 4, jnp.arange(9)
    own = {"proxies": jax.random.normal(jax.random.key(1), (5, 3)).at[2].set(0)}
    seen = comparison(x, *miners.relations(labels, rows, labels, rows), labels=labels, rows=rows)
    whole = ALL["proxied"](seen, own)
    parts = [ALL["proxied"](seen._replace(share=(device, 3)), own) for device in range(3)]
    jax.tree.map(lambda w, *p: np.testing.assert_allclose(w, sum(p), rtol=1e-6), whole, *parts)
    assert whole.valid.tolist() == [3, 4]  # classes 0, 1 and 3 have images; class 4 has a proxy alone
    gradient = jax.grad(lambda own: ALL["proxied"](seen, own).total.sum())(own)["proxies"]
    assert not gradient[2].any()
    assert gradient[4].any()


def test_a_schedule_switches_at_its_step():
    x, masks = batch(7)
    first, second = (objectives.mined(MINED[name], losses.soft_margin, EUCLIDEAN) for name in ("batch_hard", "own"))
    both = jax.jit(objectives.scheduled(first, second, switch_steps=5))
    totals = [float(both(comparison(x, *masks)._replace(step=step), {}).total) for step in (0, 4, 5, 9)]
    expected = [float(o(comparison(x, *masks), {}).total) for o in (first, first, second, second)]
    np.testing.assert_allclose(totals, expected, rtol=1e-6)
    assert abs(expected[0] - expected[2]) > 0.1


def test_losses_by_hand():
    d_ap, d_an = jnp.array([0.5, 0.2]), jnp.array([0.6, 0.9])
    np.testing.assert_allclose(losses.triplet_loss(d_ap, d_an, margin=0.3), [0.2, 0.0], atol=1e-6)
    np.testing.assert_allclose(
        losses.soft_margin(d_ap, d_an, temperature=0.1), np.log1p(np.exp([-1.0, -7.0])), rtol=1e-5
    )
    np.testing.assert_allclose(losses.difference(d_ap, d_an), [-0.1, -0.7], atol=1e-6)


def test_reductions_by_hand():
    sums = losses.LossSum(jnp.float32(-6.0), jnp.float32(4.0), jnp.float32(2.0))
    assert float(losses.mean(sums)) == -1.5
    assert float(losses.mean_active(sums)) == -3
    assert float(losses.hinge_of_mean(sums, margin=2.0)) == 0.5
    assert float(losses.hinge_of_mean(sums, margin=1.0)) == 0
