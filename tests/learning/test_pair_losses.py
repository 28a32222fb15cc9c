import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.distances import DISTANCES
from fgis.errors import UserError
from fgis.learning import losses, miners, pair_losses

KEY = jax.random.key(0)
LOG = np.log


def tables(distances, relations):
    """Distances and masks from rows of numbers and rows of letters: p positive, n negative, o opposite, . neither."""
    letters = np.array([list(row) for row in relations])
    is_negative = jnp.asarray((letters == "n") | (letters == "o"))
    masks = jnp.asarray(letters == "p"), is_negative, jnp.asarray(letters == "o")
    return jnp.asarray(distances, jnp.float32), *masks


def check(found, total, valid, active, rtol=1e-5):
    np.testing.assert_allclose(found.total, total, rtol=rtol, atol=1e-6)
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.active, active)


def test_contrastive_by_hand():
    d, p, n, _ = tables([[0.3, 0.1, 0.2, 0.9], [0.7, 0.4, 0.1, 0.6], [0.5, 0.5, 0.5, 0.5]], ["pp.n", "nnnp", "...."])
    found = pair_losses.contrastive(d, p, n, positive_margin=0.2, negative_margin=0.5)
    check(found, [0.1 + 0.4, 0.1 + 0.4], [3, 4], [2, 2])


def test_contrastive_averages_positives_and_negatives_by_themselves():
    d, p, n, _ = tables([[0.3, 0.1, 0.2, 0.9], [0.7, 0.4, 0.1, 0.6]], ["pp.n", "nnnp"])
    found = pair_losses.contrastive(d, p, n, positive_margin=0.2, negative_margin=0.5)
    assert float(losses.mean_active(found)) == pytest.approx(0.5 / 2 + 0.5 / 2)
    assert float(losses.mean(found)) == pytest.approx(0.5 / 3 + 0.5 / 4)


# e^(−d/T) is 1/2, 1/4, 1/8, 1/8; the last column is nobody. The second anchor lacks negatives, the third positives.
POWERS = tables(
    0.5 * LOG([[2, 4, 8, 8, 1], [2, 4, 8, 8, 1], [2, 4, 8, 8, 1], [8, 2, 4, 4, 1]]),
    ["ppnn.", "pp...", "..nn.", "npnn."],
)


def test_nt_xent_by_hand():
    d, p, n, _ = POWERS
    # (1/2) / (1/2 + 1/4), (1/4) / (1/4 + 1/4), and of the last anchor (1/2) / (1/2 + 1/8 + 1/4 + 1/4)
    check(pair_losses.nt_xent(d, p, n, temperature=0.5), LOG(1.5) + LOG(2) + LOG(2.25), 3, 3)


def test_sup_con_by_hand():
    d, p, n, _ = POWERS
    # All of the first anchor sum to 1, those of the last to 9/8.
    check(pair_losses.sup_con(d, p, n, temperature=0.5), (LOG(2) + LOG(4)) / 2 + LOG(9 / 8 * 2), 2, 2)


def test_multi_similarity_by_hand():
    # S − threshold is log 2, log 3, log 5, log 7
    d, p, n, _ = tables(0.75 - LOG([[2, 3, 5, 7], [3, 5, 7, 2], [7, 5, 3, 2]]), ["ppnn", "nn..", "...."])
    found = pair_losses.multi_similarity(d, p, n, 2.0, 3.0, threshold=0.25, epsilon=None)
    first = LOG(1 + 1 / 4 + 1 / 9) / 2 + LOG(1 + 5**3 + 7**3) / 3
    check(found, first + LOG(1 + 3**3 + 5**3) / 3, 2, 2)


def test_multi_similarity_keeps_the_pairs_that_compete():
    # Positives farther than .625 − epsilon and negatives nearer than .75 + epsilon; .375 and 1 tie and are dropped.
    d, p, n, _ = tables([[0.125, 0.375, 0.5, 0.75, 0.625, 0.9375, 1.0]], ["ppppnnn"])
    found = pair_losses.multi_similarity(d, p, n, 2.0, 3.0, threshold=0.5, epsilon=0.25)
    check(found, LOG(1 + 1 + np.exp(0.5)) / 2 + LOG(1 + np.exp(-0.375) + np.exp(-3 * 0.4375)) / 3, 1, 1)
    gradient = jax.grad(lambda d: pair_losses.multi_similarity(d, p, n, epsilon=0.25).total)(d)
    assert (np.asarray(gradient[0]) != 0).tolist() == [False, False, True, True, True, True, False]


def test_multi_similarity_selects_nothing_where_a_side_is_empty_and_everything_without_an_epsilon():
    d, p, n, _ = tables([[0.1, 0.5], [0.1, 0.5]], ["pp", "nn"])
    check(pair_losses.multi_similarity(d, p, n, epsilon=0.1), 0, 2, 0)
    alone = LOG(1 + np.exp(-0.8) + 1) / 2 + LOG(1 + np.exp(20) + 1) / 50
    for epsilon in (None, float("inf")):
        check(pair_losses.multi_similarity(d, p, n, epsilon=epsilon), alone, 2, 2)


def test_smooth_ap_by_hand():
    # sigmoid((d_i − d_j)/T) is k_i / (k_i + k_j); the second anchor is the first with its candidates reversed.
    k = [[1, 3, 2, 9], [9, 2, 3, 1], [1, 2, 3, 9]]
    d, p, n, _ = tables(0.1 * LOG(k), ["ppn.", ".npp", "pp.."])
    nearest = (1 / 3) / (1 + 1 / 4 + 1 / 3)
    farther = (3 / 5) / (1 + 3 / 4 + 3 / 5)
    check(pair_losses.smooth_ap(d, p, n, temperature=0.1), 2 * (nearest + farther) / 2, 2, 2)


def test_smooth_ap_is_average_precision_when_it_is_cold():
    # positive, negative, positive, negative, positive: 1 − (1 + 2/3 + 3/5)/3; a tie counts as half a rank.
    d, p, n, _ = tables([[0.5, 0.1, 0.9, 0.3, 0.7], [0.4, 0.4, 0.9, 0.9, 0.9]], ["pppnn", "pn..."])
    found = pair_losses.smooth_ap(d, p, n, temperature=1e-3)
    check(found, 1 - (1 + 2 / 3 + 3 / 5) / 3 + (1 - 1 / 1.5), 2, 2)


def test_the_gradient_of_smooth_ap_is_that_of_its_formula():
    d, p, n, _ = example(5)

    def by_formula(d):
        nearer = jax.nn.sigmoid((d[:, :, None] - d[:, None, :]) / 0.1)  # of [anchor, positive, other]
        others = p[:, None, :] & ~jnp.eye(d.shape[1], dtype=bool)
        among = 1 + jnp.sum(nearer * others, axis=2)
        precision = among / (among + jnp.sum(nearer * n[:, None, :], axis=2))
        average = jnp.sum(precision * p, axis=1) / jnp.maximum(p.sum(axis=1), 1)
        return jnp.sum(jnp.where(p.any(axis=1) & n.any(axis=1), 1 - average, 0))

    value, gradient = jax.value_and_grad(lambda d: pair_losses.smooth_ap(d, p, n, 0.1).total)(d)
    expected, expected_gradient = jax.value_and_grad(by_formula)(d)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


def test_smooth_ap_needs_no_more_memory_than_the_distances():
    def temporary_bytes(c):
        d, masks = jnp.zeros((32, c)), [jnp.zeros((32, c), bool)] * 2
        gradient = jax.grad(lambda d, p, n: pair_losses.smooth_ap(d, p, n).total)
        return jax.jit(gradient).lower(d, *masks).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(512) < 2.5 * temporary_bytes(256)  # it would be 4 if it grew with the square
    assert temporary_bytes(512) < 12 * 32 * 512 * 4


def test_proxy_anchor_by_hand():
    # S is log 2, log 3, log 5 and e^margin is 2: positives add 2/k, negatives 2k. The second class is absent.
    d, p, n, _ = tables(1 - LOG([[2, 3, 5], [3, 5, 2], [5, 3, 2]]), ["ppn", "nnn", "..."])
    found = pair_losses.proxy_anchor(d, p, n, margin=float(LOG(2)), scale=1.0)
    check(found, [LOG(1 + 1 + 2 / 3), LOG(1 + 10) + LOG(1 + 6 + 10 + 4)], [1, 2], [1, 2])
    sharp = pair_losses.proxy_anchor(d, p, n, margin=float(LOG(2)), scale=2.0)
    check(sharp, [LOG(1 + 1 + 4 / 9), LOG(1 + 100) + LOG(1 + 36 + 100 + 16)], [1, 2], [1, 2])


def test_opposites_by_hand():
    d, p, n, o = tables([[0.25, 0.125, 0.5, 0.0], [0.75, 0.5, 0.25, 1.0]], ["pnon", "opo."])
    found = pair_losses.opposites(d, p, n, o, margin=0.375, opposite_margin=0.625)
    check(found, [0.25 + 0.5, 0.25 + 0.375, 0.125 + 0.375], [2, 2, 3], [2, 2, 2])
    gradient = jax.grad(lambda d: pair_losses.opposites(d, p, n, o, 0.375, 0.625).total @ jnp.array([1.0, 10, 100]))(d)
    np.testing.assert_allclose(gradient, [[1, -10, -100, -10], [0, 1, -100, 0]])


def test_an_opposite_is_a_negative_or_nothing():
    d, p, n, _ = tables([[0.25, 0.125, 0.5]], ["pn."])
    everything = jnp.ones_like(p)
    check(pair_losses.opposites(d, p, n, everything, 0.25, 0.5), [0.25, 0, 0.375], [1, 0, 1], [1, 0, 1])


@pytest.mark.parametrize("opposite_margin", [0.3, 0.2])
def test_opposites_that_need_not_be_farther_are_refused(opposite_margin):
    with pytest.raises(UserError, match=r"^config\.loss\.opposites\.opposite_margin: 0\.[23] .*0\.3.*") as error:
        pair_losses.opposites(*POWERS, margin=0.3, opposite_margin=opposite_margin)
    assert "\n" not in str(error.value)


def ungraded(loss, **numbers):
    return lambda d, p, n, o: loss(d, p, n, **numbers)


ALL = {
    **{name: ungraded(loss) for name, loss in {**pair_losses.PAIR_LOSSES, **pair_losses.PROXY_LOSSES}.items()},
    "multi_similarity without mining": ungraded(pair_losses.multi_similarity, epsilon=None),
    **pair_losses.GRADED_LOSSES,
}
every_loss = pytest.mark.parametrize("name", ALL)


def example(seed=0, a=7, c=12):
    """Random distances; classes of different sizes, one a singleton; one padded anchor and two padded candidates."""
    rng = np.random.default_rng(seed)
    labels = np.array([0, 1, 1, 2, 0, 0, 3, 1, 0, 1, 2, 2])[:c]
    rows = np.where(np.isin(np.arange(c), [2, 9]), -1, np.arange(c))
    p, n = miners.relations(*map(jnp.asarray, (labels[:a], rows[:a], labels, rows)))
    o = n & jnp.asarray((labels[:a, None] + labels[None, :]) % 3 == 0)
    return jnp.asarray(rng.uniform(0, 1.2, (a, c)), jnp.float32), p, n, o


def value_and_gradient(loss, d, *masks):
    """The sums, and the gradient of a total that tells the kinds apart."""
    weights = jnp.array([1.0, 3.0, 7.0])

    def total(d):
        found = loss(d, *masks)
        return jnp.sum(found.total * weights[: found.total.size].reshape(found.total.shape)), found

    gradient, found = jax.grad(total, has_aux=True)(d)
    return found, gradient


def same(found, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)


@every_loss
def test_sums_over_anchors_add_up(name):
    d, *masks = example()
    whole, gradient = value_and_gradient(ALL[name], d, *masks)
    parts = [value_and_gradient(ALL[name], d[part], *(m[part] for m in masks)) for part in (slice(3), slice(3, None))]
    same(jax.tree.map(jnp.add, parts[0][0], parts[1][0]), whole)
    same(jnp.concatenate([parts[0][1], parts[1][1]]), gradient)
    assert np.all(np.asarray(whole.total) > 0)
    assert whole.total.shape == whole.valid.shape == whole.active.shape


@every_loss
def test_the_order_of_candidates_does_not_matter(name):
    d, *masks = example(1)
    order = np.random.default_rng(0).permutation(d.shape[1])
    whole, gradient = value_and_gradient(ALL[name], d, *masks)
    shuffled, shuffled_gradient = value_and_gradient(ALL[name], d[:, order], *(m[:, order] for m in masks))
    same(shuffled, whole)
    same(shuffled_gradient, gradient[:, order])


@every_loss
@pytest.mark.parametrize("distance", [-5.0, np.inf, np.nan])
def test_a_candidate_in_neither_mask_changes_nothing(name, distance):
    d, *masks = example(2)
    unread = ~(masks[0] | masks[1])
    assert unread[:, 2].all()
    whole, gradient = value_and_gradient(ALL[name], jnp.where(unread, 0.5, d), *masks)
    other, other_gradient = value_and_gradient(ALL[name], jnp.where(unread, distance, d), *masks)
    same(other, whole, rtol=0, atol=0)
    same(other_gradient, gradient, rtol=0, atol=0)
    assert not np.asarray(gradient)[np.asarray(unread)].any()


@every_loss
def test_gradients_inside_a_compiled_vmap_are_those_outside(name):
    d = jnp.stack([example(seed)[0] for seed in range(3)])
    masks = [jnp.stack([m, m[::-1], jnp.zeros_like(m)]) for m in example()[1:]]
    together = jax.jit(jax.vmap(functools.partial(value_and_gradient, ALL[name])))(d, *masks)
    for r in range(3):
        same(
            jax.tree.map(lambda x: x[r], together),
            value_and_gradient(ALL[name], d[r], *(m[r] for m in masks)),
            atol=1e-5,
        )


@every_loss
def test_bfloat16_distances_are_summed_in_float32(name):
    d, *masks = example(3)
    rounded = d.astype(jnp.bfloat16)
    found, gradient = value_and_gradient(ALL[name], rounded, *masks)
    expected, expected_gradient = value_and_gradient(ALL[name], rounded.astype(jnp.float32), *masks)
    same(found, expected)
    assert {x.dtype for x in found} == {jnp.dtype("float32")}
    np.testing.assert_allclose(np.asarray(gradient, np.float32), expected_gradient, rtol=0.01, atol=1e-5)


@every_loss
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_distances_of_any_size_stay_finite(name, dtype, size):
    d, *masks = example(4)
    found, gradient = value_and_gradient(ALL[name], (d * size).astype(dtype), *masks)
    for x in (*found, gradient):
        assert np.isfinite(np.asarray(x, np.float32)).all()


@every_loss
def test_rows_without_positives_or_negatives_pass_no_nan_on_the_way(name):
    d, *masks = example()
    with jax.debug_nans(True):
        value_and_gradient(ALL[name], d, *masks)


NEED_BOTH = {"nt_xent", "sup_con", "multi_similarity", "smooth_ap"}  # nothing to do without positives or negatives


@functools.cache
def reduced(name, distance):
    """Sums, and the value and gradient of every reduction of them; compiled once for all batches of a size."""

    def sums(x, labels, rows):
        p, n = miners.relations(labels, rows, labels, rows)
        return ALL[name](DISTANCES[distance].pairwise(x, x), p, n, n & (labels == 1))

    def everything(*batch):
        reductions = losses.REDUCTIONS.values()
        return sums(*batch), [jax.value_and_grad(lambda *batch: r(sums(*batch)))(*batch) for r in reductions]

    return jax.jit(everything)


@pytest.mark.slow
@every_loss
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("case", ["one class", "all padding", "duplicates", "zero vectors", "singletons", "one row"])
def test_no_degenerate_batch_gives_nan(name, distance, case):
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
    elif case == "singletons":
        labels = jnp.arange(9)
    else:
        x, labels, rows = x[:1], labels[:1], rows[:1]
    sums, values_and_gradients = reduced(name, distance)(x, labels, rows)
    for value, gradient in values_and_gradients:
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        if case in ("all padding", "one row"):
            assert float(value) == 0
            assert not gradient.any()
    assert not np.asarray(sums.total)[np.asarray(sums.valid) == 0].any()
    if case in ("one class", "singletons") and name in NEED_BOTH:
        assert float(sums.total) == 0


def test_every_table_names_its_functions():
    for table in (pair_losses.PAIR_LOSSES, pair_losses.PROXY_LOSSES, pair_losses.GRADED_LOSSES):
        assert all(function.__name__ == name for name, function in table.items())
