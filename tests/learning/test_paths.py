"""Deep Ranking and VisNet: shapes and parameter counts of the papers, and the forward pass in plain NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.learning import heads
from fgis.learning.paths import CellConvolution, PathsHead, ShallowPath, max_over_places, shift_copies, soft_normalize


def row_size(deep, pixels):
    return deep + sum(3 * side**2 for side in pixels)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("side", "after"), [(57, 15), (29, 8), (56, 14), (28, 7)])
def test_shallow_path_has_the_published_shapes(side, after):
    """8 × 8 / 4 SAME gives 15² of 57² and 8² of 29²; both end in 4 × 4 × 96."""
    path = ShallowPath()
    x = jnp.zeros((1, side, side, 3))
    out, seen = jax.eval_shape(
        lambda: path.init_with_output(
            jax.random.key(0), x, capture_intermediates=True, mutable=["intermediates", "params"]
        )
    )
    assert seen["intermediates"]["conv"]["__call__"][0].shape == (1, after, after, 96)
    assert out.shape == (1, 4 * 4 * 96)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(seen["params"])) == 8 * 8 * 3 * 96 + 96 == 18_528


def test_deep_ranking_has_the_published_parameters():
    """4,096 deep and 2 × 1,536 shallow numbers into 4,096: besides the deep network, 29.4 million."""
    head = heads.deep_ranking()
    made = jax.eval_shape(lambda: head.init(jax.random.key(0), (row_size(4096, (57, 29)),)))
    shapes = {name: layer["kernel"].shape for name, layer in made["params"].items() if name == "embedding"}
    assert shapes == {"embedding": (4096 + 3072, 4096)}
    total = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(made))
    assert total == 2 * 18_528 + (4096 + 3072) * 4096 + 4096
    single = heads.deep_ranking(pixels=())
    assert count(single.init(jax.random.key(0), (10,))) == 10 * 4096 + 4096


def numpy_path(image, kernel, bias):
    """The convolution by its sum and the maxima by their definition, with TensorFlow's SAME padding."""

    def padded(x, window, stride, fill):
        size = len(x)
        out = -(-size // stride)
        total = max((out - 1) * stride + window - size, 0)
        before = total // 2
        return np.pad(x, ((before, total - before),) * 2 + ((0, 0),), constant_values=fill), out

    x, out = padded(image, 8, 4, 0)
    y = np.array([
        [np.einsum("ijc,ijco->o", x[4 * r : 4 * r + 8, 4 * c : 4 * c + 8], kernel) + bias for c in range(out)]
        for r in range(out)
    ])  # fmt: skip
    y = np.maximum(y, 0)
    stride = -(-out // 4)
    z, places = padded(y, 2 * stride - 1, stride, -np.inf)
    window = 2 * stride - 1
    cells = [[z[stride * r : stride * r + window, stride * c : stride * c + window].max(axis=(0, 1))
              for c in range(places)] for r in range(places)]  # fmt: skip
    return np.array(cells).ravel()


@pytest.mark.parametrize("side", [15, 8, 14, 7, 3])
def test_maxima_and_their_gradient_are_those_of_flax(side):
    """Of numbers that all differ, so that no maximum is shared."""
    y = jnp.asarray(np.random.default_rng(side).permutation(2 * side**2 * 3).reshape(2, side, side, 3), jnp.float32)
    stride = -(-side // 4)
    pool = lambda y: nn.max_pool(y, (2 * stride - 1,) * 2, (stride,) * 2, padding="SAME")
    np.testing.assert_array_equal(max_over_places(y), pool(y))
    weights = jnp.arange(pool(y).size, dtype=jnp.float32).reshape(pool(y).shape)
    found, expected = (jax.grad(lambda y, f=f: (f(y) * weights).sum())(y) for f in (max_over_places, pool))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("soft", [False, True])
def test_forward_pass_in_numpy(soft):
    rng = np.random.default_rng(0)
    pixels, deep = (29, 13), 6
    module = PathsHead(pixels, width=5, soft=soft)
    x = jnp.asarray(rng.random((2, row_size(deep, pixels))), jnp.float32)
    params = module.init(jax.random.key(1), x)
    norm = (lambda v: v / np.sqrt(1 + (v**2).sum())) if soft else (lambda v: v / np.linalg.norm(v))
    for row, found in zip(np.asarray(x), module.apply(params, x)):
        place, shallow = deep, []
        for side in pixels:
            conv = jax.tree.map(np.asarray, params["params"][f"path_{side}"]["conv"])
            image = 2 * row[place : place + 3 * side**2].reshape(side, side, 3) - 1
            shallow.append(numpy_path(image, conv["kernel"], conv["bias"]))
            place += 3 * side**2
        joined = np.concatenate([norm(row[:deep]), norm(np.concatenate(shallow))])
        last = jax.tree.map(np.asarray, params["params"]["embedding"])
        np.testing.assert_allclose(found, norm(joined @ last["kernel"] + last["bias"]), atol=2e-5)


def test_soft_normalisation_stays_inside_the_ball():
    np.testing.assert_allclose(soft_normalize(jnp.array([[3.0, 0.0]])), [[3 / np.sqrt(10), 0]], rtol=1e-6)
    assert np.linalg.norm(soft_normalize(jnp.full((1, 9), 10.0))) < 1
    grad = jax.grad(lambda x: soft_normalize(x).sum())(jnp.zeros((1, 4)))
    np.testing.assert_allclose(grad, 1)


def test_copies_shift_by_whole_pixels_and_repeat_their_edges():
    image = np.arange(25.0).reshape(5, 5)
    x = jnp.asarray(np.repeat(image[None, ..., None], 3, axis=-1)).repeat(200, axis=0)
    keys = jax.random.split(jax.random.key(0), 200)
    found = np.asarray(shift_copies(x, keys, 1, 0))[..., 0]
    padded = np.pad(image, 1, mode="edge")
    possible = {padded[r : r + 5, c : c + 5].tobytes() for r in range(3) for c in range(3)}
    assert {one.astype(float).tobytes() for one in found} == possible
    other = np.asarray(shift_copies(x, keys, 1, 1))[..., 0]
    assert (found != other).any()
    np.testing.assert_array_equal(shift_copies(x, keys, 0, 0), x)


def test_training_is_random_by_row_and_searching_is_not():
    head = heads.deep_ranking(pixels=(13,), width=8)
    x = jnp.asarray(np.random.default_rng(0).random((3, row_size(4, (13,)))), jnp.float32)
    params = head.init(jax.random.key(0), x.shape[1:])
    keys = jax.random.split(jax.random.key(1), 3)
    plain, dropped = head.apply(params, x), head.apply(params, x, keys)
    assert not np.allclose(plain, dropped, atol=1e-3)
    np.testing.assert_allclose(head.apply(params, x[1:2], keys[1:2])[0], dropped[1], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("make", [heads.deep_ranking, heads.visnet])
def test_what_cannot_be_is_refused(make):
    with pytest.raises(ValueError, match="keep: 0 found; nothing would be left"):
        make(pixels=(), keep=0.0)
    with pytest.raises(ValueError, match="width: 0 found"):
        make(width=0)
    assert make(pixels=()).init(jax.random.key(0), (7,))["params"]["embedding"]["kernel"].shape == (7, 4096)


@pytest.mark.parametrize("side", [57, 56, 29, 28, 13, 8, 5])
def test_cells_are_the_convolution(side):
    """Against Flax's own convolution with the same variables, with its gradient."""
    x = jnp.asarray(np.random.default_rng(side).random((2, side, side, 3)), jnp.float32)
    own, other = CellConvolution(), nn.Conv(96, (8, 8), 4, padding="SAME")
    params = other.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, own.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(own.apply(params, x), other.apply(params, x), atol=1e-5)
    gradient = lambda module: jax.grad(lambda p: jnp.mean(module.apply(p, x) ** 2))(params)
    for found, wanted in zip(jax.tree.leaves(gradient(own)), jax.tree.leaves(gradient(other)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(("make", "width"), [(heads.deep_ranking, 9), (heads.deep_ranking, 4), (heads.visnet, 4)])
def test_a_whitened_start_is_the_whitening_of_the_deep_features_alone(make, width):
    """By the covariance in plain NumPy; the copies count for nothing, and embeddings keep the lengths of the head."""
    x = np.random.default_rng(0).random((20, row_size(6, (13,)))).astype(np.float32)
    head = make(pixels=(13,), width=width, whiten=0.5)
    made = head.init(jax.random.key(0), (x.shape[1],), head.fit(x))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, head.init(jax.random.key(0), (x.shape[1],)))
    norm = (lambda v: v / np.sqrt(1 + (v**2).sum(1, keepdims=True))) if make is heads.visnet else (
        lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
    )  # fmt: skip
    deep = norm(x[:, :6].astype(float))
    deep -= deep.mean(axis=0)
    values, vectors = np.linalg.eigh(deep.T @ deep / 20)
    values, vectors = values[::-1][:width], vectors[:, ::-1][:, :width]
    wanted = norm(deep @ vectors / np.sqrt(1 + values / (0.5 * values[0])))
    found = np.asarray(head.apply(made, jnp.asarray(x)))
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-5)
