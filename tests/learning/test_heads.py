import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.learning import heads

KEYS = jax.random.split(jax.random.key(1), 6)


def features(n=6, shape=(10,)):
    return jnp.abs(jax.random.normal(jax.random.key(0), (n, *shape)))


def test_the_published_head_has_the_published_layers():
    params = heads.init_head(heads.EmbeddingHead(), jax.random.key(0), (512,))
    shapes = jax.tree.map(lambda x: x.shape, params)["params"]
    assert [shapes[f"Dense_{i}"]["kernel"] for i in range(3)] == [(512, 512), (512, 512), (512, 256)]


def test_the_published_head_by_hand():
    head = heads.EmbeddingHead(widths=(2, 1), dropouts=(0.0,))
    params = {"params": {
        "Dense_0": {"kernel": jnp.array([[1.0, -1.0], [2.0, 1.0]]), "bias": jnp.array([0.5, 0.0])},
        "Dense_1": {"kernel": jnp.array([[2.0], [3.0]]), "bias": jnp.array([-1.0])},
    }}  # fmt: skip
    assert head.apply(params, jnp.array([[1.0, 1.0], [0.0, -1.0]])).tolist() == [[6.0], [0.0]]


def test_spatial_features_are_averaged_first():
    head = heads.EmbeddingHead(widths=(4, 3), dropouts=(0.0,))
    x = features(shape=(3, 5, 10))
    params = heads.init_head(head, jax.random.key(0), (3, 5, 10))
    np.testing.assert_allclose(head.apply(params, x), head.apply(params, x.mean(axis=(1, 2))), rtol=1e-5)


def test_a_normalised_head_ends_linear_and_on_the_unit_sphere():
    head = heads.EmbeddingHead(widths=(8, 5), dropouts=(0.5,), final="normalize")
    z = head.apply(heads.init_head(head, jax.random.key(0), (10,)), features())
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 1, rtol=1e-5)
    assert (z < 0).any()


def test_dropout_drops_at_its_rate_keeps_the_mean_and_is_off_without_keys():
    x = jnp.ones((400, 50))
    keys = jax.random.split(jax.random.key(3), 400)
    dropped = heads.dropout(x, 0.25, keys, layer=0)
    assert set(np.unique(dropped).tolist()) == {0.0, np.float32(1 / 0.75).item()}
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert (heads.dropout(x, 0.25, None, layer=0) == x).all()
    assert (heads.dropout(x, 0.25, keys, layer=1) != dropped).any()


def test_a_row_drops_the_same_units_wherever_the_batch_is_split():
    head = heads.EmbeddingHead(widths=(8, 5), dropouts=(0.5,))
    params = heads.init_head(head, jax.random.key(0), (10,))
    whole = head.apply(params, features(), KEYS)
    np.testing.assert_allclose(whole[4:], head.apply(params, features()[4:], KEYS[4:]), rtol=1e-6)


def test_prepare_takes_signed_powers_and_normalises():
    x = jnp.array([[4.0, -9.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(heads.prepare(x, 0.5), [[2, -3, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(heads.prepare(x, 2.0), [[16, -81, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(heads.prepare(x, 0.5, True), [[2 / 13**0.5, -3 / 13**0.5, 0], [0, 0, 0]], rtol=1e-6)
    assert heads.prepare(features(shape=(2, 3, 10)).astype(jnp.float16)).dtype == jnp.float32


def wide_features(m, f=7):
    """Features that vary ten times more along one direction than along any other."""
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(m, f)) * np.r_[10.0, np.ones(f - 1)] @ np.linalg.qr(rng.normal(size=(f, f)))[0] + 3
    ).astype(np.float32)


@pytest.mark.parametrize("m", [5, 60])  # fewer images than features, and more
def test_a_whitened_head_starts_at_the_shrunk_whitening_of_its_features(m):
    x = wide_features(m)
    head = heads.ResidualHead(rank=7, whiten=0.1)
    found = head.apply(heads.init_head(head, jax.random.key(0), (7,), heads.fit_start(head, x)), jnp.asarray(x))
    centred = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / m)
    shrink = vectors @ np.diag((1 + np.maximum(values, 0) / (0.1 * values.max())) ** -0.5) @ vectors.T
    np.testing.assert_allclose(found, centred @ shrink, atol=2e-4)
    spread = np.asarray(found).std(axis=0)
    assert spread.max() / spread.min() < (x.std(axis=0).max() / x.std(axis=0).min())


def test_a_head_of_lower_rank_whitens_the_widest_directions_alone():
    x = wide_features(60)
    head = heads.ResidualHead(rank=1, whiten=0.1)
    found = head.apply(heads.init_head(head, jax.random.key(0), (7,), heads.fit_start(head, x)), jnp.asarray(x))
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    along, across = vectors[:, -1], vectors[:, :-1]
    np.testing.assert_allclose(found @ across, (x - x.mean(axis=0)) @ across, atol=1e-3)
    np.testing.assert_allclose(np.var(found @ along), values[-1] / (1 + 1 / 0.1), rtol=1e-3)


def test_a_residual_head_without_whitening_starts_at_the_features():
    head = heads.ResidualHead(rank=3)
    assert heads.fit_start(head, np.ones((4, 10))) == {}
    x = features()
    assert (head.apply(heads.init_head(head, jax.random.key(0), (10,)), x) == x).all()


def test_constants_are_not_trained():
    head, x = heads.ResidualHead(rank=2, whiten=0.1), wide_features(9)
    variables = heads.init_head(head, jax.random.key(0), (7,), heads.fit_start(head, x))
    gradient = jax.grad(lambda v: (head.apply(v, jnp.asarray(x)) ** 3).sum())(variables)
    assert (gradient["constants"]["center"] == 0).all()
    assert (gradient["params"]["up"]["kernel"] != 0).any()
