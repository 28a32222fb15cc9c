"""What a head is, and the parts that heads share."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgis.learning.products import Precision

Variables = dict[str, Any]  # arrays by collection: "params" are trained, "constants" are not


class Head(NamedTuple):
    """An embedding network."""

    init: Callable[..., Variables]  # (key, shape of one image's features, start={}) -> variables
    # (variables, features [b, ...], dropout_keys [b] or None, *, precision) -> embeddings [b, d]; a head whose function
    # has no argument ``precision`` is trained in float32 alone.
    apply: Callable[..., Any]
    fit: Callable[[Float[np.ndarray, "m f"]], Variables]  # features -> what to begin with, without labels; {} if random


def dropout(x: Float[Array, "b d"], rate: float, keys: Array | None, layer: int) -> Float[Array, "b d"]:
    """Zeroes each entry with probability ``rate`` and divides the rest by 1 − rate.

    Args:
      x: the outputs of a layer.
      rate: from 0 to below 1.
      keys: one key per row, or None to drop nothing.
      layer: the number of the layer, so that layers draw apart.

    Returns:
      ``x`` with about ``rate`` of its entries zeroed.
    """
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def fit_nothing(features: Float[np.ndarray, "m f"]) -> Variables:
    """Of a head that begins at random."""
    return {}


def init_module(module: nn.Module, key: jax.Array, feature_shape: Sequence[int], start: Any = ()) -> Variables:
    """Variables for features of shape ``feature_shape`` (without rows); those of ``start`` replace random ones."""
    return {**module.init(key, jnp.zeros((1, *feature_shape), jnp.float32)), **dict(start)}


def apply_module(
    module: Any, variables: Variables, features: Array, dropout_keys: Array | None = None,
    *, precision: Precision = "float32",
) -> Array:  # fmt: skip
    """Embeds rows by a module that has the attribute ``precision``: of the factors of its products."""
    return module.clone(precision=precision).apply(variables, features, dropout_keys)


def shrunk_directions(
    features: Float[np.ndarray, "m f"], rank: int, strength: float
) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, "f k"], Float[np.ndarray, " k"]]:
    """What shrunk whitening does to features: their centre, leading directions, and the scale of each.

    Args:
      features: of at least one image.
      rank: how many directions, at most; those without variance do not exist.
      strength: a smaller one whitens more.

    Returns:
      (c, V, s): the mean, the eigenvectors of the covariance with the largest eigenvalues w, as columns, and
      s = (1 + w / (strength · w_max))^−½.
    """
    x = np.asarray(features, np.float64)
    center = x.mean(axis=0)
    x = x - center
    if len(x) < x.shape[1]:  # the same eigenvectors from the smaller of the two products
        values, left = np.linalg.eigh(x @ x.T / len(x))
        vectors = x.T @ left / np.sqrt(np.maximum(values, 1e-12) * len(x))
    else:
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
    kept = np.flatnonzero(values > 1e-9 * values[-1])[::-1][:rank]
    values, vectors = values[kept], vectors[:, kept]
    return center, vectors, (1 + values / (strength * values.max(initial=1e-12))) ** -0.5
