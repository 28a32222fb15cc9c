"""Convolutions for CPUs: depthwise ones as shifted multiply-adds, 1x1 ones as matrix products.

XLA's CPU backend runs a depthwise convolution 15-40 times slower than the kh*kw multiply-adds it consists of, and a 1x1
convolution up to three times slower than the matrix product it is. ``lower_convolutions`` rewrites both in any function
(here: networks built by Keras, whose code is not ours to change). On accelerators convolutions are best left alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jaxtyping import Array, Float

# Primitives that only call a function, and the parameter that holds it: inlined, since they may contain convolutions.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def lower_convolutions(function: Callable) -> Callable:
    """Rewrite the float32 NHWC depthwise and 1x1 convolutions of a function for a CPU.

    The function is traced and its equations are evaluated again; every equation that is no such convolution is kept as
    it is. Derivatives pass through, but custom derivative rules are lost with the calls that hold them: use it for
    inference.

    Args:
      function: any function of arrays and trees of arrays that ``jax.jit`` can trace.

    Returns:
      A function with the same arguments and results, up to the order of summation.
    """

    def lowered(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), outputs)

    return lowered


def depthwise(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw 1 c"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "b oh ow c"]:
    """Depthwise convolution, sum over kernel positions: out[y, x, c] = sum_ij in[y*sh+i, x*sw+j, c] * kernel[i, j, c].

    Args:
      x: images.
      kernel: one filter per channel.
      strides: (down, right), in pixels.
      padding: ((top, bottom), (left, right)), in pixels; negative amounts crop, as they do in ``lax``.

    Returns:
      [b, oh, ow, c] with oh = (h + top + bottom - kh) // sh + 1, and ow accordingly.
    """
    (kh, kw), (sh, sw) = kernel.shape[:2], strides
    edges = ((0, 0, 0), (*padding[0], 0), (*padding[1], 0), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    b, h, w, c = x.shape
    oh, ow = (h - kh) // sh + 1, (w - kw) // sw + 1
    total = jnp.zeros((b, oh, ow, c), x.dtype)
    for i in range(kh):
        for j in range(kw):
            limit = (b, i + (oh - 1) * sh + 1, j + (ow - 1) * sw + 1, c)
            part = lax.slice(x, (0, i, j, 0), limit, (1, sh, sw, 1))
            weight = lax.slice(kernel, (i, j, 0, 0), (i + 1, j + 1, 1, c))
            # Written with lax: with NumPy's operators tracing a network takes three times as long.
            total = lax.add(total, lax.mul(part, lax.broadcast_in_dim(weight, part.shape, (0, 1, 2, 3))))
    return total


def pointwise(x: Float[Array, "b h w c"], kernel: Float[Array, "1 1 c d"], precision: Any) -> Float[Array, "b h w d"]:
    """1x1 convolution with stride 1 as one matrix product over all pixels."""
    return jnp.matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0], precision=precision).reshape(*x.shape[:-1], -1)


def _convolve(eqn: core.JaxprEqn, x: Array, kernel: Array) -> Array:
    """One convolution: by the cheaper form where it applies, else as it was."""
    p: Any = eqn.params
    out: Any = eqn.outvars[0].aval
    spec = p["dimension_numbers"]
    nhwc = (spec.lhs_spec, spec.rhs_spec, spec.out_spec) == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    dilated = any(d != 1 for d in (*p["lhs_dilation"], *p["rhs_dilation"]))
    floats = x.dtype == kernel.dtype == out.dtype == jnp.float32
    if nhwc and floats and not dilated and p["batch_group_count"] == 1 and out.size:
        groups, strides, padding = p["feature_group_count"], p["window_strides"], p["padding"]
        if groups == x.shape[3] == kernel.shape[3] and groups > 1:
            return depthwise(x, kernel, strides, padding)
        whole = all(s == 1 for s in strides) and all(e == 0 for edges in padding for e in edges)
        if groups == 1 and kernel.shape[:2] == (1, 1) and whole:
            return pointwise(x, kernel, p["precision"])
    return eqn.primitive.bind(x, kernel, **p)


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The equations that an output or an effect depends on: Keras also draws initial weights, which nothing reads."""
    live = {atom for atom in jaxpr.outvars if not isinstance(atom, core.Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or live.intersection(eqn.outvars):
            live.update(atom for atom in eqn.invars if not isinstance(atom, core.Literal))
            kept.append(eqn)
    return kept[::-1]


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate the needed equations of a jaxpr one by one, inlining calls and replacing convolutions."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in _needed(jaxpr):
        inputs = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name == "conv_general_dilated":
            outputs = [_convolve(eqn, *inputs)]
        elif name in CALLS and CALLS[name] in eqn.params:
            called = eqn.params[CALLS[name]]
            outputs = _evaluate(getattr(called, "jaxpr", called), getattr(called, "consts", ()), inputs)
        else:
            outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            outputs = outputs if eqn.primitive.multiple_results else [outputs]
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]
