"""Matrix products of heads with factors of 16 bits: what ``config.train.precision`` changes, and all that it changes.

Inputs and parameters are rounded where they enter a product, and sums are accumulated in float32; so are the products
of the backward pass. Parameters, activations, normalisation, losses, gradients and the optimiser stay in float32.
"""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Precision = Literal["float32", "bfloat16", "float16"]
BITS = {"bfloat16": (8, 7), "float16": (5, 10)}  # of exponent and mantissa
EXPONENT = 15  # float16 holds numbers below 2^16: the largest of a factor is brought to between 2^14 and 2^15


def rounding_dot(precision: Precision) -> Any:
    """What ``flax.linen.Dense`` takes as its ``dot_general``; None for float32, which is its own.

    Args:
      precision: of the factors.

    Returns:
      ``dot(x [..., f], w [f, d], dimensions, ...) -> [..., d]``, see ``round_and_multiply``.
    """
    if precision == "float32":
        return None

    def dot(x: Array, w: Array, dimensions: Any, *_: Any, **__: Any) -> Array:
        if dimensions != (((x.ndim - 1,), (0,)), ((), ())):
            raise ValueError(f"dimensions: {dimensions} found; only layers that multiply the last axis are rounded")
        return round_and_multiply(x, w, precision)

    return dot


def round_and_multiply(x: Float[Array, "... f"], w: Float[Array, "f d"], precision: Precision) -> Float[Array, "... d"]:
    """x w, of factors that are rounded to ``precision``, accumulated and returned in float32.

    Args:
      x: inputs.
      w: weights.
      precision: "float32" rounds nothing. Bfloat16 has the range of float32 and 8 bits; float16 has 11 bits, and its
        factors are multiplied by a power of two beforehand and the product divided by it, so that none overflows, and
        entries down to 1e-9 of the largest one count: the scaling of a loss, but for each product and by itself.

    Returns:
      The product. Its gradient is made of two such products, of the rounded gradient with the rounded w and x.
      Infinite or NaN where a factor is.

    >>> print(round_and_multiply(jnp.full((1, 4096), 1.001), jnp.ones((4096, 1)), "bfloat16"))
    [[4096.]]
    """
    if precision == "float32":
        return x @ w
    return _rounded(x.reshape(-1, x.shape[-1]), w, precision).reshape(*x.shape[:-1], w.shape[-1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rounded(x: Array, w: Array, precision: Precision) -> Array:
    return _multiply(x, w, precision)


def _forward(x: Array, w: Array, precision: Precision) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(x, w, precision), (x, w)


def _backward(precision: Precision, factors: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, w = factors
    return _multiply(cotangent, w.T, precision), _multiply(x.T, cotangent, precision)


_rounded.defvjp(_forward, _backward)


def _multiply(x: Float[Array, "a b"], y: Float[Array, "b c"], precision: Precision) -> Float[Array, "a c"]:
    (low_x, by_x), (low_y, by_y) = _round(x, precision), _round(y, precision)
    wide = jnp.result_type(x, y, jnp.float32)
    return jnp.matmul(low_x, low_y, precision="highest", preferred_element_type=wide) * by_x * by_y


def _round(x: Array, precision: Precision) -> tuple[Array, Any]:
    """The entries as they are rounded, and what the product is to be multiplied with."""
    by: Any = 1
    if precision == "float16":
        # A scale and its inverse are finite; numbers that 2^120 does not bring up are as good as zeros.
        exponent = jnp.clip(EXPONENT - jnp.frexp(jnp.max(jnp.abs(x), initial=0))[1], -120, 120)
        scale, by = (jnp.ldexp(jnp.ones((), x.dtype), sign * exponent) for sign in (1, -1))
        x = x * scale
    if jax.default_backend() == "cpu":  # the same numbers in float32, whose products are up to 50 times as fast there
        return jax.lax.reduce_precision(x, *BITS[precision]), by
    return x.astype(precision), by
