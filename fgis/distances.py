"""Distances between embeddings, safe under gradients.

Every distance comes in two forms that agree: ``pairwise`` [a, d], [c, d] -> [a, c] for mining and ranking, and
``rowwise`` [t, d], [t, d] -> [t] for the pairs that were chosen. Both are differentiable everywhere, also at zero
vectors and at equal vectors, where they return a zero gradient instead of NaN. NaN in a vector gives NaN. Vectors may
be of any floating type; distances are float32, or float64 between vectors of float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgis.ranges import nearest


class Distance(NamedTuple):
    """The two forms of one distance."""

    pairwise: Callable[[Array, Array], Array]  # [a, d], [c, d] -> [a, c]
    rowwise: Callable[[Array, Array], Array]  # [t, d], [t, d] -> [t]
    # Of a distance that normalises its vectors: what it is between vectors that ``l2_normalize`` returned.
    between_units: "Distance | None" = None


def wide_type(*arrays: Array) -> Any:
    """The type that sums over ``arrays`` are accumulated in: float32, or float64 where one of them is of that.

    >>> wide_type(jnp.zeros(1, jnp.bfloat16))
    dtype('float32')
    """
    return jnp.result_type(*arrays, jnp.float32)


@jax.custom_jvp
def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root of max(x, 0), whose gradient is 0, not infinite, where x <= 0.

    Args:
      x: numbers of any shape.

    Returns:
      √max(x, 0) in the shape of ``x``.

    >>> print(safe_sqrt(jnp.array([4.0, 0.0, -1.0])), jax.grad(safe_sqrt)(jnp.zeros(())))
    [2. 0. 0.] 0.0
    """
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
    # From the root alone: a backward pass need not keep x as well.
    (square_root,) = map(safe_sqrt, primals)
    positive = square_root > 0
    return square_root, jnp.where(positive, 0.5 / jnp.where(positive, square_root, 1), 0) * tangents[0]


def l2_normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """x / ‖x‖ along the last axis; a zero vector stays zero, with a zero gradient.

    Args:
      x: vectors [..., d].

    Returns:
      Unit vectors [..., d].

    >>> print(l2_normalize(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
    [[0.6 0.8]
     [0.  0. ]]
    """
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _dot(a: Float[Array, "a d"], c: Float[Array, "c d"]) -> Float[Array, "a c"]:
    # A product that decides a ranking runs at the highest precision and accumulates in float32.
    return jnp.einsum("ad,cd->ac", a, c, precision="highest", preferred_element_type=wide_type(a, c))


def squared_pairwise(a: Float[Array, "a d"], c: Float[Array, "c d"]) -> Float[Array, "a c"]:
    """Σ (a − c)² by the Gram expansion ‖a‖² + ‖c‖² − 2 a·c, clamped at 0 where rounding makes it negative."""
    return jnp.maximum(_gram_expansion(a, c), 0)


def _gram_expansion(a: Float[Array, "a d"], c: Float[Array, "c d"]) -> Float[Array, "a c"]:
    squares_a, squares_c = (jnp.sum(x.astype(wide_type(x)) ** 2, axis=-1) for x in (a, c))
    return squares_a[:, None] + squares_c[None, :] - 2 * _dot(a, c)


def squared_rowwise(a: Float[Array, "t d"], c: Float[Array, "t d"]) -> Float[Array, " t"]:
    """Σ (a − c)², row by row."""
    return jnp.sum((a - c).astype(wide_type(a, c)) ** 2, axis=-1)


def euclidean_pairwise(a: Float[Array, "a d"], c: Float[Array, "c d"]) -> Float[Array, "a c"]:
    """√Σ (a − c)²; 0 with a zero gradient between equal vectors."""
    return safe_sqrt(_gram_expansion(a, c))


def euclidean_rowwise(a: Float[Array, "t d"], c: Float[Array, "t d"]) -> Float[Array, " t"]:
    """√Σ (a − c)², row by row; 0 with a zero gradient between vectors that are equal up to rounding.

    A compiler may compute the same embedding twice and round it differently. The distance of such a pair is tiny, but
    its gradient is a unit vector whose direction is that of the rounding error: noise as strong as any signal.
    """
    square = squared_rowwise(a, c)
    wide = wide_type(a, c)
    rounding = (4 * jnp.finfo(wide).eps) ** 2 * (
        jnp.sum(a * a, axis=-1, dtype=wide) + jnp.sum(c * c, axis=-1, dtype=wide)
    )
    return safe_sqrt(jnp.where(square > rounding, square, 0.0))


def unit_euclidean_pairwise(a: Float[Array, "a d"], c: Float[Array, "c d"]) -> Float[Array, "a c"]:
    """‖a/‖a‖ − c/‖c‖‖ = √(2 − 2 cos), in [0, 2]: the distance that margins of the literature are given in."""
    return euclidean_pairwise(l2_normalize(a), l2_normalize(c))


def unit_euclidean_rowwise(a: Float[Array, "t d"], c: Float[Array, "t d"]) -> Float[Array, " t"]:
    """‖a/‖a‖ − c/‖c‖‖, row by row."""
    return euclidean_rowwise(l2_normalize(a), l2_normalize(c))


def cosine_pairwise(a: Float[Array, "a d"], c: Float[Array, "c d"]) -> Float[Array, "a c"]:
    """1 − cos(a, c), in [0, 2]; a zero vector is at distance 1 from everything."""
    return 1 + inner_product_pairwise(l2_normalize(a), l2_normalize(c))


def cosine_rowwise(a: Float[Array, "t d"], c: Float[Array, "t d"]) -> Float[Array, " t"]:
    """1 − cos(a, c), row by row."""
    return 1 + inner_product_rowwise(l2_normalize(a), l2_normalize(c))


def inner_product_pairwise(a: Float[Array, "a d"], c: Float[Array, "c d"]) -> Float[Array, "a c"]:
    """−a·c: the larger the product, the nearer; not bounded below."""
    return -_dot(a, c)


def inner_product_rowwise(a: Float[Array, "t d"], c: Float[Array, "t d"]) -> Float[Array, " t"]:
    """−a·c, row by row."""
    return -jnp.sum(a * c, axis=-1, dtype=wide_type(a, c))


def manhattan_rowwise(a: Float[Array, "t d"], c: Float[Array, "t d"]) -> Float[Array, " t"]:
    """Σ |a − c|, row by row."""
    return jnp.sum(jnp.abs(a - c), axis=-1, dtype=wide_type(a, c))


def chi2_rowwise(a: Float[Array, "t d"], c: Float[Array, "t d"]) -> Float[Array, " t"]:
    """½ Σ (a − c)² / (a + c), of histograms: negative entries count as 0 and each vector is divided by its sum.

    Lies in [0, 1]. Empty bins and empty histograms contribute 0.
    """
    a, c = _l1_normalize(jnp.maximum(a, 0)), _l1_normalize(jnp.maximum(c, 0))
    total = a + c
    return 0.5 * jnp.sum((a - c) ** 2 / jnp.where(total > 0, total, 1.0), axis=-1, dtype=wide_type(a, c))


def _l1_normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    total = jnp.sum(x, axis=-1, keepdims=True)
    return x / jnp.where(total > 0, total, 1.0)


def _one_anchor_at_a_time(rowwise: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """The pairwise form of a distance that has no Gram expansion, in O(c d) memory: also under gradients, by remat."""

    def pairwise(a: Float[Array, "a d"], c: Float[Array, "c d"]) -> Float[Array, "a c"]:
        one = jax.checkpoint(lambda anchor: rowwise(jnp.broadcast_to(anchor, c.shape), c))
        return jax.lax.map(one, a)

    return pairwise


_EUCLIDEAN = Distance(euclidean_pairwise, euclidean_rowwise)
_COSINE_OF_UNITS = Distance(lambda a, c: 1 + inner_product_pairwise(a, c), lambda a, c: 1 + inner_product_rowwise(a, c))
# Every distance by name. One that search is to know as well needs a line in ``fgis.retrieval.measures``, too.
DISTANCES: dict[str, Distance] = {
    "euclidean": _EUCLIDEAN,
    "unit_euclidean": Distance(unit_euclidean_pairwise, unit_euclidean_rowwise, _EUCLIDEAN),
    "squared_euclidean": Distance(squared_pairwise, squared_rowwise),
    "inner_product": Distance(inner_product_pairwise, inner_product_rowwise),
    "manhattan": Distance(_one_anchor_at_a_time(manhattan_rowwise), manhattan_rowwise),
    "cosine": Distance(cosine_pairwise, cosine_rowwise, _COSINE_OF_UNITS),
    "chi2": Distance(_one_anchor_at_a_time(chi2_rowwise), chi2_rowwise),
}


def find_distance(name: str) -> Distance:
    """The distance of a name.

    Args:
      name: a key of ``DISTANCES``.

    Returns:
      Its two forms.

    Raises:
      ValueError: no distance has this name.

    >>> find_distance("euclidian")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: distance: 'euclidian' found; did you mean 'euclidean'? known: chi2, cosine, euclidean, ...
    """
    if name not in DISTANCES:
        raise ValueError(f"distance: {name!r} found; {nearest(str(name), DISTANCES)}")
    return DISTANCES[name]


def pairwise_distances(
    a: Float[Array | np.ndarray, "a d"], c: Float[Array | np.ndarray, "c d"], distance: str = "euclidean"
) -> Float[Array, "a c"]:
    """Distances from every row of ``a`` to every row of ``c``.

    Args:
      a: vectors [a, d].
      c: vectors [c, d].
      distance: a key of ``DISTANCES``.

    Returns:
      Distances [a, c], float32; NaN where a vector holds NaN.

    Raises:
      ValueError: an unknown distance, or vectors that are not two matrices of the same number of columns.

    >>> print(pairwise_distances(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 0.0]])))
    [[5. 0.]]
    """
    pairwise = find_distance(distance).pairwise
    a, c = jnp.asarray(a), jnp.asarray(c)
    for name, vectors in (("a", a), ("c", c)):
        if vectors.ndim != 2:
            raise ValueError(f"{name}: shape {vectors.shape} found; write a matrix with one vector per row")
    if a.shape[1] != c.shape[1]:
        raise ValueError(f"c: vectors of {c.shape[1]} numbers found; those of a have {a.shape[1]}")
    return pairwise(a, c)
