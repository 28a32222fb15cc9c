"""Losses over pairs by hand, and against their formulas in NumPy's float64.

All batches have 7 anchors and 12 candidates, so that each loss is compiled once for each choice of its numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgis.distances import DISTANCES
from fgis.learning import losses, miners, pair_losses

A, C = 7, 12
LOG = np.log
LOSSES = {**pair_losses.PAIR_LOSSES, **pair_losses.PROXY_LOSSES, **pair_losses.GRADED_LOSSES}
TWICE = {**dict.fromkeys(LOSSES, ()), "multi_similarity, without mining": (("epsilon", None),)}
every_loss = pytest.mark.parametrize("name", TWICE)


@functools.cache
def compiled(name, **numbers):
    """(distances, positives, negatives, opposites) -> the sums, and the gradient of a total that tells kinds apart."""
    numbers = dict(TWICE.get(name, ())) | numbers
    loss, graded = LOSSES[name.split(",")[0]], name in pair_losses.GRADED_LOSSES
    weights = jnp.array([1.0, 3.0, 7.0])

    def total(d, p, n, o):
        found = loss(d, p, n, *([o] if graded else []), **numbers)
        return jnp.sum(found.total * weights[: found.total.size].reshape(found.total.shape)), found

    gradient = jax.jit(jax.grad(total, has_aux=True))
    return lambda *arguments: gradient(*arguments)[::-1]


def tables(distances, relations):
    """Distances and masks from rows of numbers and rows of letters: p positive, n negative, o opposite, . neither."""
    letters = np.full((A, C), ".")
    letters[: len(relations), : len(relations[0])] = [list(row) for row in relations]
    d = np.zeros((A, C), np.float32)
    d[: len(relations), : len(relations[0])] = distances
    return d, letters == "p", (letters == "n") | (letters == "o"), letters == "o"


def check(found, total, valid, active, rtol=1e-5):
    np.testing.assert_allclose(found.total, total, rtol=rtol, atol=1e-6)
    np.testing.assert_array_equal(found.valid, valid)
    np.testing.assert_array_equal(found.active, active)


def test_contrastive_by_hand():
    batch = tables([[0.3, 0.1, 0.2, 0.9], [0.7, 0.4, 0.1, 0.6], [0.5, 0.5, 0.5, 0.5]], ["pp.n", "nnnp", "...."])
    found, _ = compiled("contrastive", positive_margin=0.2)(*batch)
    check(found, [0.1 + 0.4, 0.1 + 0.4], [3, 4], [2, 2])
    # Positives and negatives are averaged by themselves.
    assert float(losses.mean_active(found)) == pytest.approx(0.5 / 2 + 0.5 / 2)
    assert float(losses.mean(found)) == pytest.approx(0.5 / 3 + 0.5 / 4)


# e^(−d/T) is 1/2, 1/4, 1/8, 1/8; the last column is nobody. The second anchor lacks negatives, the third positives.
POWERS = tables(
    0.5 * LOG([[2, 4, 8, 8, 1], [2, 4, 8, 8, 1], [2, 4, 8, 8, 1], [8, 2, 4, 4, 1]]),
    ["ppnn.", "pp...", "..nn.", "npnn."],
)


def test_nt_xent_by_hand():
    # (1/2) / (1/2 + 1/4), (1/4) / (1/4 + 1/4), and of the last anchor (1/2) / (1/2 + 1/8 + 1/4 + 1/4)
    check(compiled("nt_xent", temperature=0.5)(*POWERS)[0], LOG(1.5) + LOG(2) + LOG(2.25), 3, 3)


def test_sup_con_by_hand():
    # All of the first anchor sum to 1, those of the last to 9/8.
    found, _ = compiled("sup_con", temperature=0.5)(*POWERS)
    check(found, (LOG(2) + LOG(4)) / 2 + LOG(9 / 8 * 2), 2, 2)


def test_multi_similarity_by_hand():
    # S − threshold is log 2, log 3, log 5, log 7
    batch = tables(0.75 - LOG([[2, 3, 5, 7], [3, 5, 7, 2], [7, 5, 3, 2]]), ["ppnn", "nn..", "...."])
    found, _ = compiled("multi_similarity", negative_scale=3.0, threshold=0.25, epsilon=None)(*batch)
    first = LOG(1 + 1 / 4 + 1 / 9) / 2 + LOG(1 + 5**3 + 7**3) / 3
    check(found, first + LOG(1 + 3**3 + 5**3) / 3, 2, 2)


def test_multi_similarity_keeps_the_pairs_that_compete():
    # Positives farther than .625 − epsilon and negatives nearer than .75 + epsilon; .375 and 1 tie and are dropped.
    batch = tables([[0.125, 0.375, 0.5, 0.75, 0.625, 0.9375, 1.0]], ["ppppnnn"])
    found, gradient = compiled("multi_similarity", negative_scale=3.0, epsilon=0.25)(*batch)
    check(found, LOG(1 + 1 + np.exp(0.5)) / 2 + LOG(1 + np.exp(-0.375) + np.exp(-3 * 0.4375)) / 3, 1, 1)
    assert (np.asarray(gradient[0, :7]) != 0).tolist() == [False, False, True, True, True, True, False]


def test_multi_similarity_selects_nothing_where_a_side_is_empty_and_everything_without_an_epsilon():
    batch = tables([[0.1, 0.5], [0.1, 0.5]], ["pp", "nn"])
    check(compiled("multi_similarity")(*batch)[0], 0, 2, 0)
    alone = LOG(1 + np.exp(-0.8) + 1) / 2 + LOG(1 + np.exp(20) + 1) / 50
    check(compiled("multi_similarity, without mining")(*batch)[0], alone, 2, 2)
    check(compiled("multi_similarity", epsilon=float("inf"))(*batch)[0], alone, 2, 2)


def test_smooth_ap_by_hand():
    # sigmoid((d_i − d_j)/T) is k_i / (k_i + k_j); the second anchor is the first with its candidates reversed.
    k = [[1, 3, 2, 9], [9, 2, 3, 1], [1, 2, 3, 9]]
    found, _ = compiled("smooth_ap", temperature=0.1)(*tables(0.1 * LOG(k), ["ppn.", ".npp", "pp.."]))
    nearest = (1 / 3) / (1 + 1 / 4 + 1 / 3)
    farther = (3 / 5) / (1 + 3 / 4 + 3 / 5)
    check(found, 2 * (nearest + farther) / 2, 2, 2)


def test_smooth_ap_is_average_precision_when_it_is_cold():
    # positive, negative, positive, negative, positive: 1 − (1 + 2/3 + 3/5)/3; a tie counts as half a rank.
    batch = tables([[0.5, 0.1, 0.9, 0.3, 0.7], [0.4, 0.4, 0.9, 0.9, 0.9]], ["pppnn", "pn..."])
    check(compiled("smooth_ap", temperature=1e-3)(*batch)[0], 1 - (1 + 2 / 3 + 3 / 5) / 3 + (1 - 1 / 1.5), 2, 2)


def test_the_gradient_of_smooth_ap_is_that_of_its_formula():
    d, p, n, o = example(5)

    def by_formula(d):
        nearer = jax.nn.sigmoid((d[:, :, None] - d[:, None, :]) / 0.1)  # of [anchor, positive, other]
        others = p[:, None, :] & ~np.eye(d.shape[1], dtype=bool)
        among = 1 + jnp.sum(nearer * others, axis=2)
        precision = among / (among + jnp.sum(nearer * n[:, None, :], axis=2))
        average = jnp.sum(precision * p, axis=1) / jnp.maximum(p.sum(axis=1), 1)
        return jnp.sum(jnp.where(p.any(axis=1) & n.any(axis=1), 1 - average, 0))

    found, gradient = compiled("smooth_ap", temperature=0.1)(d, p, n, o)
    expected, expected_gradient = jax.jit(jax.value_and_grad(by_formula))(d)
    assert float(found.total) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.slow
def test_smooth_ap_needs_no_more_memory_than_the_distances():
    def temporary_bytes(c):
        d, masks = jnp.zeros((32, c)), [jnp.zeros((32, c), bool)] * 2
        gradient = jax.grad(lambda d, p, n: pair_losses.smooth_ap(d, p, n).total)
        return jax.jit(gradient).lower(d, *masks).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(512) < 2.5 * temporary_bytes(256)  # it would be 4 if it grew with the square
    assert temporary_bytes(512) < 12 * 32 * 512 * 4


def test_proxy_anchor_by_hand():
    # S is log 2, log 3, log 5 and e^margin is 2: positives add 2/k, negatives 2k. The second class is absent.
    batch = tables(1 - LOG([[2, 3, 5], [3, 5, 2], [5, 3, 2]]), ["ppn", "nnn", "..."])
    found, _ = compiled("proxy_anchor", margin=float(LOG(2)), scale=1.0)(*batch)
    check(found, [LOG(1 + 1 + 2 / 3), LOG(1 + 10) + LOG(1 + 6 + 10 + 4)], [1, 2], [1, 2])
    sharp, _ = compiled("proxy_anchor", margin=float(LOG(2)), scale=2.0)(*batch)
    check(sharp, [LOG(1 + 1 + 4 / 9), LOG(1 + 100) + LOG(1 + 36 + 100 + 16)], [1, 2], [1, 2])


def test_opposites_by_hand():
    batch = tables([[0.25, 0.125, 0.5, 0.0], [0.75, 0.5, 0.25, 1.0]], ["pnon", "opo."])
    found, gradient = compiled("opposites", margin=0.375, opposite_margin=0.625)(*batch)
    check(found, [0.25 + 0.5, 0.25 + 0.375, 0.125 + 0.375], [2, 2, 3], [2, 2, 2])
    np.testing.assert_allclose(gradient[:2, :4], [[1, -3, -7, -3], [0, 1, -7, 0]])  # the kinds weigh 1, 3 and 7


def test_an_opposite_is_a_negative_or_nothing():
    d, p, n, _ = tables([[0.25, 0.125, 0.5]], ["pn."])
    found, _ = compiled("opposites", margin=0.375, opposite_margin=0.625)(d, p, n, np.ones_like(p))
    check(found, [0.25, 0, 0.5], [1, 0, 1], [1, 0, 1])


@pytest.mark.parametrize("opposite_margin", [0.3, 0.2])
def test_opposites_that_need_not_be_farther_are_refused(opposite_margin):
    with pytest.raises(ValueError, match=r"^opposite_margin: 0\.[23] found with margin=0\.3; write") as error:
        pair_losses.opposites(*map(jnp.asarray, POWERS), margin=0.3, opposite_margin=opposite_margin)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "argument"),
    [("nt_xent", "temperature"), ("sup_con", "temperature"), ("smooth_ap", "temperature"),
     ("multi_similarity", "positive_scale"), ("proxy_anchor", "scale")],
)  # fmt: skip
def test_numbers_that_divide_by_nothing_are_refused(name, argument):
    with pytest.raises(ValueError, match=f"{argument}: 0.0 found; write a number above 0"):
        LOSSES[name](*map(jnp.asarray, POWERS[:3]), **{argument: 0.0})


def example(seed=0):
    """Random distances; classes of different sizes, one a singleton; one padded anchor and two padded candidates."""
    labels = np.array([0, 1, 1, 2, 0, 0, 3, 1, 0, 1, 2, 2])
    return drawn_batch(seed, labels, np.where(np.isin(np.arange(C), [2, 9]), -1, np.arange(C)))


def drawn_batch(seed, labels, rows):
    """The first A of C rows against all of them; opposites are some of the negatives."""
    valid, same = (rows >= 0)[:A, None] & (rows >= 0), labels[:A, None] == labels
    p, n = valid & same & (rows[:A, None] != rows), valid & ~same
    o = n & ((labels[:A, None] + labels[None, :]) % 3 == 0)
    return np.random.default_rng(seed).uniform(0, 1.2, (A, C)).astype(np.float32), p, n, o


def same(found, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)


@every_loss
def test_sums_over_anchors_add_up(name):
    d, *masks = example()
    whole, gradient = compiled(name)(d, *masks)
    first = np.arange(A)[:, None] < 3
    parts = [compiled(name)(d, *(m & own for m in masks)) for own in (first, ~first)]
    same(jax.tree.map(np.add, parts[0][0], parts[1][0]), whole)
    same(np.where(first, parts[0][1], parts[1][1]), gradient)
    assert np.all(np.asarray(whole.total) > 0)
    assert whole.total.shape == whole.valid.shape == whole.active.shape


@every_loss
def test_the_order_of_candidates_does_not_matter(name):
    d, *masks = example(1)
    order = np.random.default_rng(0).permutation(C)
    whole, gradient = compiled(name)(d, *masks)
    shuffled, shuffled_gradient = compiled(name)(d[:, order], *(m[:, order] for m in masks))
    same(shuffled, whole)
    same(shuffled_gradient, gradient[:, order])


@every_loss
def test_a_candidate_in_neither_mask_changes_nothing(name):
    d, *masks = example(2)
    unread = ~(masks[0] | masks[1])
    assert unread[:, 2].all()
    whole, gradient = compiled(name)(np.where(unread, np.float32(0.5), d), *masks)
    for distance in np.float32([-5, np.inf, np.nan]):
        other, other_gradient = compiled(name)(np.where(unread, distance, d), *masks)
        same(other, whole, rtol=0, atol=0)
        same(other_gradient, gradient, rtol=0, atol=0)
    assert not np.asarray(gradient)[unread].any()


@pytest.mark.slow
@every_loss
def test_gradients_inside_a_compiled_vmap_are_those_outside(name):
    d = np.stack([example(seed)[0] for seed in range(3)])
    masks = [np.stack([m, m[::-1], np.zeros_like(m)]) for m in example()[1:]]
    together = jax.jit(jax.vmap(compiled(name)))(d, *masks)
    for r in range(3):
        same(jax.tree.map(lambda x: x[r], together), compiled(name)(d[r], *(m[r] for m in masks)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.lean
@every_loss
def test_bfloat16_distances_are_summed_in_float32_and_stay_finite(name):
    d, *masks = example(3)
    for size in (1, 1e-6, 1e4):
        rounded = jnp.asarray(d * size).astype(jnp.bfloat16)
        found, gradient = compiled(name)(rounded, *masks)
        expected, expected_gradient = compiled(name)(rounded.astype(jnp.float32), *masks)
        same(found, expected)
        assert {x.dtype for x in found} == {jnp.dtype("float32")}
        np.testing.assert_allclose(np.asarray(gradient, np.float32), expected_gradient, rtol=0.01, atol=1e-5)
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


@every_loss
def test_no_nan_on_the_way_for_rows_without_positives_or_negatives_and_distances_of_any_size(name):
    d, *masks = example(4)
    with jax.debug_nans(True):
        for size in np.float32([1, 1e-6, 1e4]):
            found, gradient = compiled(name)(d * size, *masks)
            assert all(np.isfinite(x).all() for x in (*found, gradient))


def formula(name, d, p, n, o):
    """(total, number of terms) of each kind in float64, anchor by anchor."""
    kinds: dict = {}

    def add(kind, value, terms=1):
        total, count = kinds.get(kind, (0.0, 0))
        kinds[kind] = total + value, count + terms

    for a in range(A):
        s, mine, others = 1 - np.float64(d[a]), p[a], n[a]
        da, some = 1 - s, mine.any() and others.any()
        if name == "contrastive":
            add(0, da[mine].sum(), mine.sum())
            add(1, np.maximum(0, 0.5 - da[others]).sum(), others.sum())
        elif name == "opposites":
            plain, far = others & ~o[a], others & o[a]
            add(0, da[mine].sum(), mine.sum())
            add(1, np.maximum(0, 0.3 - da[plain]).sum(), plain.sum())
            add(2, np.maximum(0, 0.6 - da[far]).sum(), far.sum())
        elif name == "nt_xent":
            e = np.exp(-da / 0.1)
            add(0, *((-LOG(e[mine] / (e[mine] + e[others].sum()))).sum(), mine.sum()) if some else (0, 0))
        elif name == "sup_con":
            e = np.exp(-da / 0.1)
            add(0, *(-LOG(e[mine] / e[mine | others].sum()).mean(), 1) if some else (0, 0))
        elif name.startswith("multi_similarity"):
            pulled, pushed = mine, others
            if "," not in name:
                pulled = mine & (da + 0.1 > da[others].min(initial=np.inf))
                pushed = others & (da - 0.1 < da[mine].max(initial=-np.inf))
            value = (
                LOG(1 + np.exp(-2 * (s[pulled] - 0.5)).sum()) / 2 + LOG(1 + np.exp(50 * (s[pushed] - 0.5)).sum()) / 50
            )
            add(0, value, int(mine.any() or others.any()))
        elif name == "smooth_ap":
            nearer = 1 / (1 + np.exp(-np.clip((da[:, None] - da) / 0.01, -700, 700)))
            np.fill_diagonal(nearer, 0)
            among, above = 1 + nearer[:, mine].sum(axis=1), nearer[:, others].sum(axis=1)
            add(0, *(1 - (among / (among + above))[mine].mean(), 1) if some else (0, 0))
        else:
            add(0, LOG(1 + np.exp(-32 * (s[mine] - 0.1)).sum()), int(mine.any()))
            add(1, LOG(1 + np.exp(32 * (s[others] + 0.1)).sum()), int(mine.any() or others.any()))
    return np.array([kinds[kind] for kind in sorted(kinds)]).T


@given(st.integers(0, 2**32 - 1), st.integers(1, C), st.integers(0, C))
@settings(max_examples=20, derandomize=True, deadline=None)
def test_any_batch_gives_the_sums_of_the_formula_and_finite_gradients(seed, classes, padding):
    rng = np.random.default_rng(seed)
    rows = np.arange(C)
    rows[rng.permutation(C)[:padding]] = -1
    batch = drawn_batch(seed, rng.integers(0, classes, C), rows)
    for name in TWICE:
        found, gradient = compiled(name)(*batch)
        total, count = formula(name, *batch)
        np.testing.assert_allclose(np.ravel(found.total), total, rtol=2e-4, atol=1e-4, err_msg=name)
        np.testing.assert_array_equal(np.ravel(found.valid), count, err_msg=name)
        assert np.isfinite(gradient).all()
        assert (np.asarray(found.total) >= 0).all()
        assert not np.ravel(found.total)[count == 0].any()


NEED_BOTH = {"nt_xent", "sup_con", "multi_similarity", "smooth_ap"}  # nothing to do without positives or negatives


@functools.cache
def reduced(name, distance):
    """Sums, and the value and gradient of every reduction of them; compiled once for all batches of a size."""
    loss, numbers = LOSSES[name.split(",")[0]], dict(TWICE[name])

    def sums(x, labels, rows):
        p, n = miners.relations(labels, rows, labels, rows)
        more = [n & (labels == 1)] if name in pair_losses.GRADED_LOSSES else []
        return loss(DISTANCES[distance].pairwise(x, x), p, n, *more, **numbers)

    def everything(*batch):
        reductions = losses.REDUCTIONS.values()
        return sums(*batch), [jax.value_and_grad(lambda *batch: r(sums(*batch)))(*batch) for r in reductions]

    return jax.jit(everything)


@pytest.mark.slow
@pytest.mark.lean
@every_loss
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("case", ["one class", "all padding", "duplicates", "zero vectors", "singletons", "one row"])
def test_no_degenerate_batch_gives_nan(name, distance, case):
    x = jax.random.normal(jax.random.key(0), (9, 3))
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
    assert all(function.__name__ == name for name, function in LOSSES.items())
