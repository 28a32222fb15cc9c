"""Embedding networks on frozen features: a ``Head`` is a record of functions, whatever is behind them.

Every head maps features [b, f] or spatial features [b, h, w, f] (averaged over h and w first) to embeddings [b, d].
Dropout takes one key per row, so that a row's mask depends on its place in the global batch and not on how the batch is
split over devices; without keys nothing is dropped.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgis.distances import l2_normalize, safe_sqrt
from fgis.ranges import Count, NonNegative, Positive, ShareBelowOne, require
from fgis.streams import stream_generator

Variables = dict[str, Any]  # arrays by collection: "params" are trained, "constants" are not


class Head(NamedTuple):
    """An embedding network."""

    init: Callable[..., Variables]  # (key, shape of one image's features, start={}) -> variables
    apply: Callable[..., Any]  # (variables, features [b, ...], dropout_keys [b] or None) -> embeddings [b, d]
    fit: Callable[[Float[np.ndarray, "m f"]], Variables]  # features -> what to begin with, without labels; {} if random


def prepare(
    features: Float[Array | np.ndarray, "n ..."], *, power: Positive = 1.0, normalize: bool = False
) -> Float[Array, "n f"]:
    """What both the heads and the frozen rows see: spatial average, sign(x) |x|^power, then L2 normalisation.

    Args:
      features: of any float type, [n, f] or [n, h, w, f].
      power: 0.5 on non-negative, pooled activations turns their Euclidean geometry into Hellinger's.
      normalize: whether each row is divided by its length; a zero row stays zero.

    Returns:
      Float32, on the device.

    Raises:
      ValueError: ``power`` is not above 0.

    >>> prepare(np.array([[4.0, -9.0]]), power=0.5).tolist()
    [[2.0, -3.0]]
    """
    require(prepare, power=power)
    if isinstance(features, np.ndarray):  # averaged where it lies: a hundredth of the bytes to move
        features = features.mean(axis=tuple(range(1, features.ndim - 1)), dtype=np.float32)
    return _prepare(features, power, normalize)


@partial(jax.jit, static_argnums=(1, 2))
def _prepare(features: Float[Array, "n ..."], power: float, normalize: bool) -> Float[Array, "n f"]:
    x = features.astype(jnp.float32).mean(axis=tuple(range(1, features.ndim - 1)))
    if power == 0.5:
        x = jnp.sign(x) * safe_sqrt(jnp.abs(x))
    elif power != 1:
        x = jnp.sign(x) * jnp.abs(x) ** power
    return l2_normalize(x) if normalize else x


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


class EmbeddingHead(nn.Module):
    """The published network: ReLU layers, dropout after every layer but the last, and no normalisation.

    Attributes:
      widths: of the layers; the last one is the size of the embedding.
      dropouts: rates after the first layers; those beyond the layers are ignored, those that are missing are 0.
      final: "relu", or "normalize": then the last layer is linear and the embedding has unit length.
    """

    widths: Sequence[int] = (512, 512, 256)
    dropouts: Sequence[float] = (0.5, 0.25)
    final: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], dropout_keys: Array | None = None) -> Float[Array, "b d"]:
        """Embeds rows."""
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        # Keras' initialisation, which the published network was trained from.
        layers = [nn.Dense(width, kernel_init=nn.initializers.glorot_uniform()) for width in self.widths]
        rates = (*self.dropouts, *[0.0] * len(layers))
        for i, (layer, rate) in enumerate(zip(layers[:-1], rates, strict=False)):
            x = dropout(nn.relu(layer(x)), rate, dropout_keys, i)
        x = layers[-1](x)
        return nn.relu(x) if self.final == "relu" else l2_normalize(x)


class ResidualHead(nn.Module):
    """x + (x − c) A B − c with A [f, rank], B [rank, f] and a constant centre c: training begins next to the features.

    By itself it begins exactly at them: c = 0, A random, B = 0. c is not trained: that costs transfer (GroceryStore's
    unseen classes lose half of their gain).

    Attributes:
      rank: columns of A.
    """

    rank: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], dropout_keys: Array | None = None) -> Float[Array, "b f"]:
        """Embeds rows; ``dropout_keys`` is not used."""
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        x = x - jax.lax.stop_gradient(self.variable("constants", "center", jnp.zeros, x.shape[-1:]).value)
        down = nn.Dense(self.rank, use_bias=False, name="down")
        up = nn.Dense(x.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros, name="up")
        return x + up(down(x))


def mlp(
    *,
    widths: tuple[Count, ...] = (512, 512, 256),
    dropouts: tuple[ShareBelowOne, ...] = (0.5, 0.25),
    final: Literal["relu", "normalize"] = "relu",
) -> Head:
    """An ``EmbeddingHead``: layers with ReLU and dropout between them; by default the published network.

    Args:
      widths: of the layers; the last one is the size of the embedding.
      dropouts: rates after the first layers. Fewer widths than by default need no other rates: those beyond the layers
        are ignored. Rates that are missing are 0.
      final: "relu", or "normalize": then the last layer is linear and the embedding has unit length.

    Returns:
      A head that begins at random.

    Raises:
      ValueError: ``widths`` is empty, or a value is out of range.
    """
    require(mlp, widths=widths, dropouts=dropouts, final=final)
    if not widths:
        raise ValueError("widths: () found; write the width of at least one layer")
    module = EmbeddingHead(tuple(widths), tuple(dropouts), final)
    return Head(partial(_init_module, module), module.apply, _fit_nothing)


def residual(*, rank: Count = 64, whiten: NonNegative = 0.0) -> Head:
    """A ``ResidualHead``: the features plus a product of two matrices, so that training begins next to the features.

    Args:
      rank: of the product.
      whiten: 0 begins exactly at the features; otherwise the head begins as ``whitening`` of this strength fits it,
        without labels, to the features that a run may see.

    Returns:
      A head whose embeddings are as wide as the features.

    Raises:
      ValueError: a value is out of range.
    """
    require(residual, rank=rank, whiten=whiten)
    module = ResidualHead(rank)
    fit = partial(whitening, rank=rank, strength=whiten) if whiten > 0 else _fit_nothing
    return Head(partial(_init_module, module), module.apply, fit)


def _fit_nothing(features: Float[np.ndarray, "m f"]) -> Variables:
    """Of a head that begins at random."""
    return {}


def _init_module(module: nn.Module, key: jax.Array, feature_shape: Sequence[int], start: Any = ()) -> Variables:
    """Variables for features of shape ``feature_shape`` (without rows); those of ``start`` replace random ones."""
    return {**module.init(key, jnp.zeros((1, *feature_shape), jnp.float32)), **dict(start)}


def whitening(features: Float[np.ndarray, "m f"], *, rank: Count, strength: Positive) -> Variables:
    """Shrunk whitening of the leading directions as variables of a ``ResidualHead``; labels are not looked at.

    x ↦ (x − c) + ((x − c) V) diag(s − 1) Vᵀ with s = (1 + w / (strength · w_max))^−½, where w and V are the ``rank``
    largest eigenvalues and eigenvectors of the features' covariance.

    Args:
      features: of at least one image.
      rank: how many directions are whitened.
      strength: a smaller one whitens more.

    Returns:
      Variables of a ``ResidualHead``. Directions that do not exist (fewer features or images than ``rank``) begin at
      random with no effect.
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
    scale = (1 + values / (strength * values.max(initial=1e-12))) ** -0.5
    missing = rank - len(kept)
    noise = stream_generator(0).normal(size=(x.shape[1], missing)) / np.sqrt(x.shape[1])
    down = np.concatenate([vectors, noise], axis=1)
    up = np.concatenate([(scale - 1)[:, None] * vectors.T, np.zeros((missing, x.shape[1]))])
    kernels = {"down": {"kernel": down.astype(np.float32)}, "up": {"kernel": up.astype(np.float32)}}
    return {"params": kernels, "constants": {"center": center.astype(np.float32)}}


HEADS: dict[str, Callable[..., Head]] = {"mlp": mlp, "residual": residual}
