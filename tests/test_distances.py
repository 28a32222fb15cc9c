import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from fgis.distances import DISTANCES, l2_normalize, pairwise_distances

A = jnp.array([[3.0, 4.0, 0.0], [1.0, 0.0, 2.0]])
C = jnp.array([[0.0, 0.0, 1.0], [3.0, 4.0, 0.0], [2.0, 2.0, 0.0]])

# By hand. chi2: A0 -> (3/7, 4/7, 0), A1 -> (1/3, 0, 2/3), C0 = (0, 0, 1), C2 -> (1/2, 1/2, 0).
EXPECTED = {
    "euclidean": [[26**0.5, 0, 5**0.5], [2**0.5, 24**0.5, 3.0]],
    "unit_euclidean": [  # the root of twice the cosine distance
        [2**0.5, 0, (2 - 14 / (5 * 2**0.5)) ** 0.5],
        [(2 - 4 / 5**0.5) ** 0.5, (2 - 6 / (5 * 5**0.5)) ** 0.5, (2 - 2 / 10**0.5) ** 0.5],
    ],
    "squared_euclidean": [[26, 0, 5], [2, 24, 9]],
    "inner_product": [[0, -25, -14], [-2, -3, -2]],
    "manhattan": [[8, 0, 3], [2, 8, 5]],
    "cosine": [[1, 0, 1 - 7 / (5 * 2**0.5)], [1 - 2 / 5**0.5, 1 - 3 / (5 * 5**0.5), 1 - 1 / 10**0.5]],
    "chi2": [
        [1, 0, 0.5 * ((1 / 14) ** 2 / (13 / 14) + (1 / 14) ** 2 / (15 / 14))],
        [
            0.5 * (1 / 3 + (1 / 3) ** 2 / (5 / 3)),
            0.5 * ((2 / 21) ** 2 / (16 / 21) + 4 / 7 + 2 / 3),
            0.5 * ((1 / 6) ** 2 / (5 / 6) + 1 / 2 + 2 / 3),
        ],
    ],
}


def test_every_distance_has_hand_derived_values():
    assert set(EXPECTED) == set(DISTANCES)


@pytest.mark.parametrize("name", DISTANCES)
def test_pairwise_agrees_with_hand_arithmetic(name):
    np.testing.assert_allclose(pairwise_distances(A, C, name), EXPECTED[name], atol=2e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_rowwise_agrees_with_pairwise(name):
    x = jax.random.normal(jax.random.key(0), (7, 5))
    y = jax.random.normal(jax.random.key(1), (7, 5)) + 0.5
    x, y = jnp.abs(x), jnp.abs(y)
    np.testing.assert_allclose(DISTANCES[name].rowwise(x, y), jnp.diagonal(pairwise_distances(x, y, name)), atol=1e-5)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("form", ["pairwise", "rowwise"])
def test_gradients_are_finite_at_zero_and_equal_vectors(name, form):
    x = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    y = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    total = lambda x, y: getattr(DISTANCES[name], form)(x, y).sum()
    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(x, y)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", [name for name, one in DISTANCES.items() if one.between_units])
def test_distances_between_units_are_the_same_with_the_same_gradients(name):
    a, c = jax.random.normal(jax.random.key(0), (2, 5, 3)) * 7
    a, distance = a.at[0].set(0), DISTANCES[name]
    for form in ("pairwise", "rowwise"):
        of_vectors, of_units = getattr(distance, form), getattr(distance.between_units, form)
        plain = lambda a, c, of_vectors=of_vectors: of_vectors(a, c)
        normalised = lambda a, c, of_units=of_units: of_units(l2_normalize(a), l2_normalize(c))
        np.testing.assert_allclose(plain(a, c), normalised(a, c), atol=1e-6)
        found, wanted = (jax.grad(lambda *x, f=f: jnp.sum(f(*x) ** 3), (0, 1))(a, c) for f in (normalised, plain))
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_zero_vector_is_at_cosine_distance_one():
    assert pairwise_distances(jnp.zeros((1, 3)), A, "cosine").tolist() == [[1.0, 1.0]]


def test_l2_normalize_keeps_zero_and_scales_the_rest():
    np.testing.assert_allclose(l2_normalize(jnp.array([[0.0, 0.0], [3.0, 4.0]])), [[0, 0], [0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("name", ["manhattan", "chi2"])
def test_distances_without_a_gram_expansion_never_hold_a_by_c_by_d(name):
    x = jnp.ones((64, 48))
    function = jax.jit(jax.grad(lambda x: DISTANCES[name].pairwise(x, 2 * x).sum()))
    memory = function.lower(x).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * 64 * 48 * 4 / 4


def test_the_ranking_product_is_computed_in_float32_from_bfloat16():
    x = jax.random.normal(jax.random.key(0), (4, 300)).astype(jnp.bfloat16)
    assert pairwise_distances(x, x, "euclidean").dtype == jnp.float32


def test_euclidean_gradients_ignore_differences_of_rounding_alone():
    a = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    c = np.nextafter(a, np.float32(10) * np.sign(np.random.default_rng(1).normal(size=a.shape)).astype(np.float32))
    assert (a != c).all()
    distance = DISTANCES["euclidean"].rowwise
    assert (jax.grad(lambda a: distance(a, jnp.asarray(c)).sum())(jnp.asarray(a)) == 0).all()
    near = jax.grad(lambda a: distance(a, jnp.asarray(c + 1e-4)).sum())(jnp.asarray(a))
    np.testing.assert_allclose(jnp.linalg.norm(near, axis=1), 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A, C, "euclidian"), "distance: 'euclidian' found; did you mean 'euclidean'?"),
        ((A[0], C), r"a: shape \(3,\) found; write a matrix"),
        ((A, C[0]), r"c: shape \(3,\) found; write a matrix"),
        ((A, C[:, :2]), "c: vectors of 2 numbers found; those of a have 3"),
    ],
)
def test_an_argument_that_has_no_distances_is_named(arguments, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user, for whom no shapes are checked
    with pytest.raises(ValueError, match=f"^{message}"):
        pairwise_distances(*arguments)
