"""Rewritten convolutions against hand-worked sums and XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fgis.features.backbones import BACKBONES, keras_applications, load_backbone
from fgis.features.lowering import depthwise, lower_convolutions

pytestmark = pytest.mark.slow

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def primitives(function, *args):
    """Names of all primitives, calls included."""

    def names(jaxpr):
        for eqn in jaxpr.eqns:
            yield eqn.primitive.name
            for value in eqn.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from names(inner)

    return list(names(jax.make_jaxpr(function)(*args).jaxpr))


def test_depthwise_by_hand():
    # One channel holds 1..6 as 2x3, the other ten times that; each has its own 1x2 kernel; a zero column on the right.
    x = jnp.stack([jnp.arange(1.0, 7).reshape(2, 3), 10 * jnp.arange(1.0, 7).reshape(2, 3)], -1)[None]
    kernel = jnp.array([[[1.0, 0.0]], [[2.0, -1.0]]]).reshape(1, 2, 1, 2)
    y = depthwise(x, kernel, (1, 1), ((0, 0), (0, 1)))
    # first channel: x + 2 * right neighbour; second: -(right neighbour)
    assert y[0, ..., 0].tolist() == [[5, 8, 3], [14, 17, 6]]
    assert y[0, ..., 1].tolist() == [[-20, -30, 0], [-50, -60, 0]]


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3)), ((-1, 0), (0, -1))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("kernel", [(3, 3), (7, 7), (2, 5)])
def test_depthwise_equals_xla(kernel, strides, padding):
    x, w = normal(0, (2, 11, 14, 5)), normal(1, (*kernel, 1, 5))

    def conv(x, w):
        return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC, feature_group_count=5)

    lowered = lower_convolutions(conv)
    assert "conv_general_dilated" not in primitives(lowered, x, w)
    np.testing.assert_allclose(jax.jit(lowered)(x, w), conv(x, w), atol=2e-5)


def test_pointwise_equals_xla_inside_calls():
    x, w, v = normal(0, (2, 5, 7, 6)), normal(1, (1, 1, 6, 4)), normal(2, (3, 3, 1, 4))

    @jax.jit
    def block(x, w):
        return jax.nn.relu(lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC))

    def network(x, w, v):
        y = block(x, w)
        return {
            "y": y,
            "z": lax.conv_general_dilated(y, v, (2, 2), "SAME", dimension_numbers=NHWC, feature_group_count=4),
        }

    lowered = lower_convolutions(network)
    assert "conv_general_dilated" not in primitives(lowered, x, w, v)
    expected = network(x, w, v)
    for key, value in lowered(x, w, v).items():
        np.testing.assert_allclose(value, expected[key], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "x", "w"),
    [
        (dict(window_strides=(2, 2), padding="VALID"), (1, 6, 6, 4), (1, 1, 4, 3)),  # 1x1, strided
        (dict(window_strides=(1, 1), padding=((1, 0), (0, 0))), (1, 6, 6, 4), (1, 1, 4, 3)),  # 1x1, padded
        (dict(window_strides=(1, 1), padding="SAME"), (1, 6, 6, 4), (3, 3, 4, 3)),  # dense
        (dict(window_strides=(1, 1), padding="SAME", feature_group_count=2), (1, 6, 6, 4), (3, 3, 2, 4)),  # grouped
        (
            dict(window_strides=(1, 1), padding="SAME", feature_group_count=4),
            (1, 6, 6, 4),
            (3, 3, 1, 8),
        ),  # multiplier 2
        (
            dict(window_strides=(1, 1), padding="SAME", feature_group_count=4, rhs_dilation=(2, 2)),
            (1, 9, 9, 4),
            (3, 3, 1, 4),
        ),
    ],
)
def test_other_convolutions_are_kept(options, x, w):
    x, w = normal(0, x), normal(1, w)

    def conv(x, w):
        return lax.conv_general_dilated(x, w, dimension_numbers=NHWC, **options)

    assert "conv_general_dilated" in primitives(lower_convolutions(conv), x, w)
    np.testing.assert_array_equal(lower_convolutions(conv)(x, w), conv(x, w))


def test_loops_and_unused_equations():
    def function(x):
        jax.random.normal(jax.random.key(0), (3,))  # drawn and dropped, as Keras does
        return lax.fori_loop(0, 3, lambda i, y: y * 2 + i, x)

    assert lower_convolutions(function)(jnp.array([1, 2])).tolist() == [8 + 4, 16 + 4]  # 8x + (0*4 + 1*2 + 2)
    assert not [name for name in primitives(lower_convolutions(function), jnp.array([1, 2])) if "random" in name]


def test_whole_network_equals_xla():
    apply, params, _ = load_backbone("mobilenet_v2", "none")
    images = np.random.default_rng(3).integers(0, 256, (1, 75, 61, 3)).astype(np.uint8)
    expected = jax.jit(apply)(params, images)
    assert expected.shape == (1, 3, 2, 1280)
    assert float(jnp.abs(expected).max()) > 0.01  # the comparison would be empty otherwise
    np.testing.assert_allclose(jax.jit(lower_convolutions(apply))(params, images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "left"), [("mobilenet_v2", 1), ("xception", 6), ("convnext_tiny", 4), ("vgg16", 13)])
def test_what_is_left_to_xla(name, left):
    """Only the stem, the downsampling and the dense convolutions stay convolutions."""
    model = keras_applications.build_model(BACKBONES[name], (96, 96))
    params = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in model.weights]
    images = jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32)
    lowered = lower_convolutions(
        lambda params, images: keras_applications.apply_network(BACKBONES[name], params, images)
    )
    assert primitives(lowered, params, images).count("conv_general_dilated") == left
