import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.learning import heads
from fgis.ranges import hyperparameters

KEYS = jax.random.split(jax.random.key(1), 6)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.random((6, 10), np.float32))


def started(head, size=10, start=()):
    return jax.jit(lambda key: head.init(key, (size,), start))(jax.random.key(0))


def test_the_published_head_has_the_published_layers():
    head = heads.mlp()
    shapes = jax.tree.map(lambda x: x.shape, jax.eval_shape(lambda: head.init(KEYS[0], (512,), {})))["params"]
    assert [shapes[f"Dense_{i}"]["kernel"] for i in range(3)] == [(512, 512), (512, 512), (512, 256)]


def test_the_published_head_by_hand():
    head = heads.EmbeddingHead(widths=(2, 1), dropouts=(0.0,))
    params = {"params": {
        "Dense_0": {"kernel": jnp.array([[1.0, -1.0], [2.0, 1.0]]), "bias": jnp.array([0.5, 0.0])},
        "Dense_1": {"kernel": jnp.array([[2.0], [3.0]]), "bias": jnp.array([-1.0])},
    }}  # fmt: skip
    assert head.apply(params, jnp.array([[1.0, 1.0], [0.0, -1.0]])).tolist() == [[6.0], [0.0]]


def test_spatial_features_are_averaged_first():
    head, x = heads.mlp(widths=(4, 3), dropouts=(0.0,)), jnp.asarray(RNG.random((6, 3, 5, 10), np.float32))
    apply, params = jax.jit(head.apply), started(head)
    np.testing.assert_allclose(apply(params, x), apply(params, x.mean(axis=(1, 2))), rtol=1e-5)


def test_a_normalised_head_ends_linear_and_on_the_unit_sphere():
    head = heads.mlp(widths=(8, 5), dropouts=(0.5,), final="normalize")
    z = jax.jit(head.apply)(started(head), X)
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 1, rtol=1e-5)
    assert (z < 0).any()


@pytest.mark.parametrize(
    ("widths", "dropouts", "used"),
    [((8, 5), (0.5, 0.25), (0.5,)), ((8, 6, 5), (0.5,), (0.5, 0.0)), ((8, 5), (), (0.0,)), ((5,), (0.5, 0.25), ())],
)
def test_rates_beyond_the_layers_are_ignored_and_missing_ones_are_0(widths, dropouts, used):
    found, expected = (heads.mlp(widths=widths, dropouts=rates) for rates in (dropouts, used))

    def outputs(key):
        params = found.init(key, (10,))
        return found.apply(params, X, KEYS), expected.apply(params, X, KEYS), found.apply(params, X)

    z, by_used, undropped = map(np.asarray, jax.jit(outputs)(jax.random.key(0)))
    np.testing.assert_array_equal(z, by_used)
    assert (z != undropped).any() == any(used)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"widths": ()}, "widths: () found; write the width of at least one layer"),
        ({"widths": (8, 0)}, "widths: 0 found; write a whole number"),
        ({"dropouts": (0.5, 1.0)}, "dropouts: 1.0 found; write a number from 0 to below 1"),
    ],
)
def test_layers_that_make_no_network_are_refused(options, line):
    with pytest.raises(ValueError) as error:
        heads.mlp(**options)
    assert str(error.value).startswith(line)


def test_a_residual_head_refuses_ranks_and_strengths_that_make_no_sense():
    with pytest.raises(ValueError, match="rank: 0 found; write a whole number"):
        heads.residual(rank=0)
    with pytest.raises(ValueError, match=r"whiten: -1\.0 found; write a number of at least 0"):
        heads.residual(whiten=-1.0)


def test_hyperparameters_of_heads_are_read_off_their_factories():
    assert {name: set(hyperparameters(head)) for name, head in heads.HEADS.items()} == {
        "mlp": {"widths", "dropouts", "final"},
        "residual": {"rank", "whiten"},
        "deep_ranking": {"pixels", "width", "keep", "shift", "whiten"},
        "visnet": {"pixels", "width", "keep", "shift", "whiten"},
    }


def test_dropout_drops_at_its_rate_keeps_the_mean_and_is_off_without_keys():
    x = jnp.ones((400, 50))
    keys = jax.random.split(jax.random.key(3), 400)
    dropped, other = (np.asarray(jax.jit(heads.dropout, static_argnums=(1, 3))(x, 0.25, keys, i)) for i in (0, 1))
    assert set(np.unique(dropped).tolist()) == {0.0, np.float32(1 / 0.75).item()}
    assert abs(float(dropped.mean()) - 1) < 0.02
    assert (heads.dropout(x, 0.25, None, 0) == x).all()
    assert (other != dropped).any()


def test_a_row_drops_the_same_units_wherever_the_batch_is_split():
    head = heads.mlp(widths=(8, 5), dropouts=(0.5,))
    params, apply = started(head), jax.jit(head.apply)
    np.testing.assert_allclose(apply(params, X, KEYS)[4:], apply(params, X[4:], KEYS[4:]), rtol=1e-6)


def test_prepare_takes_signed_powers_and_normalises():
    x = np.array([[4.0, -9.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    np.testing.assert_allclose(heads.prepare(x, power=0.5), [[2, -3, 0], [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(heads.prepare(x, power=2.0), [[16, -81, 0], [0, 0, 0]], rtol=1e-6)
    unit = heads.prepare(x, power=0.5, normalize=True)
    np.testing.assert_allclose(unit, [[2 / 13**0.5, -3 / 13**0.5, 0], [0, 0, 0]], rtol=1e-6)
    assert heads.prepare(jnp.ones((6, 2, 3, 10), jnp.float16)).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"power: 0\.0 found; write a number above 0"):
        heads.prepare(x, power=0.0)


def wide_features(m, f=7):
    """Features that vary ten times more along one direction than along any other."""
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(m, f)) * np.r_[10.0, np.ones(f - 1)] @ np.linalg.qr(rng.normal(size=(f, f)))[0] + 3
    ).astype(np.float32)


@pytest.mark.parametrize("m", [5, 60])  # fewer images than features, and more
def test_a_whitened_head_starts_at_the_shrunk_whitening_of_its_features(m):
    x = wide_features(m)
    head = heads.residual(rank=7, whiten=0.1)
    found = np.asarray(jax.jit(head.apply)(started(head, 7, head.fit(x)), x))
    centred = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / m)
    shrink = vectors @ np.diag((1 + np.maximum(values, 0) / (0.1 * values.max())) ** -0.5) @ vectors.T
    np.testing.assert_allclose(found, centred @ shrink, atol=2e-4)
    spread = found.std(axis=0)
    assert spread.max() / spread.min() < (x.std(axis=0).max() / x.std(axis=0).min())


def test_a_head_of_lower_rank_whitens_the_widest_directions_alone():
    x = wide_features(60)
    head = heads.residual(rank=1, whiten=0.1)
    found = np.asarray(jax.jit(head.apply)(started(head, 7, head.fit(x)), x))
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    along, across = vectors[:, -1], vectors[:, :-1]
    np.testing.assert_allclose(found @ across, (x - x.mean(axis=0)) @ across, atol=1e-3)
    np.testing.assert_allclose(np.var(found @ along), values[-1] / (1 + 1 / 0.1), rtol=1e-3)


def test_a_residual_head_without_whitening_starts_at_the_features():
    head = heads.residual(rank=3)
    assert head.fit(np.ones((4, 10), np.float32)) == {}
    assert (jax.jit(head.apply)(started(head), X) == X).all()


def test_constants_are_not_trained():
    head, x = heads.residual(rank=2, whiten=0.1), wide_features(9)
    variables = started(head, 7, head.fit(x))
    gradient = jax.jit(jax.grad(lambda v: (head.apply(v, jnp.asarray(x)) ** 3).sum()))(variables)
    assert (gradient["constants"]["center"] == 0).all()
    assert (gradient["params"]["up"]["kernel"] != 0).any()
