"""Embedding networks on frozen features: Flax modules behind ``init(key, x)`` and ``apply(params, x, dropout_keys)``.

Every head maps features [b, f] or spatial features [b, h, w, f] (averaged over h and w first) to embeddings [b, d].
Dropout takes one key per row, so that a row's mask depends on its place in the global batch and not on how the batch is
split over devices; without keys nothing is dropped.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgis.distances import l2_normalize, safe_sqrt


def prepare(
    features: Float[Array | np.ndarray, "n ..."], power: float = 1.0, normalize: bool = False
) -> Float[Array, "n f"]:
    """What both the heads and the frozen rows see: spatial average, signed power, then L2 normalisation.

    sign(x) |x|^power; power .5 on non-negative, pooled activations turns their Euclidean geometry into Hellinger's.
    """
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
    """Zeroes each entry with probability ``rate`` and divides the rest by 1 − rate; row i is drawn from ``keys[i]``."""
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


class EmbeddingHead(nn.Module):
    """The published network: ReLU layers, dropout after every layer but the last, and no normalisation.

    With ``final="normalize"`` the last layer is linear and the embedding has unit length.
    """

    widths: Sequence[int] = (512, 512, 256)
    dropouts: Sequence[float] = (0.5, 0.25)
    final: str = "relu"  # or "normalize"

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], dropout_keys: Array | None = None) -> Float[Array, "b d"]:
        """Embeds rows."""
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        # Keras' initialisation, which the published network was trained from.
        layers = [nn.Dense(width, kernel_init=nn.initializers.glorot_uniform()) for width in self.widths]
        for i, (layer, rate) in enumerate(zip(layers[:-1], self.dropouts, strict=True)):
            x = dropout(nn.relu(layer(x)), rate, dropout_keys, i)
        x = layers[-1](x)
        return nn.relu(x) if self.final == "relu" else l2_normalize(x)


class ResidualHead(nn.Module):
    """x + (x − c) A B − c with A [f, rank], B [rank, f] and a constant centre c: training begins next to the features.

    With ``whiten`` 0 it begins exactly at them: c = 0, A random, B = 0. Otherwise c, A and B begin as ``whitening``
    fits them, without labels, to the features that the run may see; c stays as it is, since training it costs
    transfer (GroceryStore's unseen classes lose half of their gain).
    """

    rank: int = 64
    whiten: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], dropout_keys: Array | None = None) -> Float[Array, "b f"]:
        """Embeds rows; ``dropout_keys`` is not used."""
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        x = x - jax.lax.stop_gradient(self.variable("constants", "center", jnp.zeros, x.shape[-1:]).value)
        down = nn.Dense(self.rank, use_bias=False, name="down")
        up = nn.Dense(x.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros, name="up")
        return x + up(down(x))


HEADS = {"mlp": EmbeddingHead, "residual": ResidualHead}


def whitening(features: Float[np.ndarray, "m f"], rank: int, strength: float) -> dict[str, Any]:
    """Shrunk whitening of the leading directions as variables of a ``ResidualHead``; labels are not looked at.

    x ↦ (x − c) + ((x − c) V) diag(s − 1) Vᵀ with s = (1 + w / (strength · w_max))^−½, where w and V are the ``rank``
    largest eigenvalues and eigenvectors of the features' covariance. A smaller ``strength`` whitens more. Directions
    that do not exist (fewer features or images than ``rank``) begin at random with no effect.
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
    noise = np.random.default_rng(0).normal(size=(x.shape[1], missing)) / np.sqrt(x.shape[1])
    down = np.concatenate([vectors, noise], axis=1)
    up = np.concatenate([(scale - 1)[:, None] * vectors.T, np.zeros((missing, x.shape[1]))])
    kernels = {"down": {"kernel": down.astype(np.float32)}, "up": {"kernel": up.astype(np.float32)}}
    return {"params": kernels, "constants": {"center": center.astype(np.float32)}}


def fit_start(head: nn.Module, features: Float[np.ndarray, "m f"]) -> dict[str, Any]:
    """The variables that ``head`` begins with, as far as they depend on the features it may see; {} if at random."""
    if isinstance(head, ResidualHead) and head.whiten > 0:
        return whitening(features, head.rank, head.whiten)
    return {}


def init_head(head: nn.Module, key: jax.Array, feature_shape: Sequence[int], start: Any = ()) -> Any:
    """Variables for features of shape ``feature_shape`` (without rows); those of ``start`` replace random ones."""
    return {**head.init(key, jnp.zeros((1, *feature_shape), jnp.float32)), **dict(start)}
