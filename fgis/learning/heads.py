"""Embedding networks on frozen features: Flax modules behind ``init(key, x)`` and ``apply(params, x, dropout_keys)``.

Every head maps features [b, f] or spatial features [b, h, w, f] (averaged over h and w first) to embeddings [b, d].
Dropout takes one key per row, so that a row's mask depends on its place in the global batch and not on how the batch is
split over devices; without keys nothing is dropped.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgis.distances import l2_normalize, safe_sqrt


def prepare(features: Float[Array | np.ndarray, "n ..."], power: float = 1.0, normalize: bool = False) -> Float[Array, "n f"]:
    """What both the heads and the frozen rows see: spatial average, signed power, then L2 normalisation.

    sign(x) |x|^power; power .5 on non-negative, pooled activations turns their Euclidean geometry into Hellinger's.
    """
    x = jnp.asarray(features, jnp.float32)
    x = x.mean(axis=tuple(range(1, x.ndim - 1)))
    if power == 0.5:
        x = jnp.sign(x) * safe_sqrt(jnp.abs(x))
    elif power != 1:
        x = jnp.sign(x) * jnp.abs(x) ** power
    return l2_normalize(x) if normalize else x


def dropout(x: Float[Array, "b d"], rate: float, keys: Array | None, layer: int) -> Float[Array, "b d"]:
    """Zeroes each entry with probability ``rate`` and scales the rest by 1 / (1 − rate), row i drawn from ``keys[i]``."""
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
    """x + (x A) B with A [f, rank] and B [rank, f] = 0 at the start: training begins exactly at the frozen features."""

    rank: int = 64

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], dropout_keys: Array | None = None) -> Float[Array, "b f"]:
        """Embeds rows; ``dropout_keys`` is not used."""
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        down = nn.Dense(self.rank, use_bias=False, name="down")
        up = nn.Dense(x.shape[-1], use_bias=False, kernel_init=nn.initializers.zeros, name="up")
        return x + up(down(x))


HEADS = {"mlp": EmbeddingHead, "residual": ResidualHead}


def init_head(head: nn.Module, key: jax.Array, feature_shape: Sequence[int]) -> Any:
    """Parameters for features of shape ``feature_shape`` (without the row axis)."""
    return head.init(key, jnp.zeros((1, *feature_shape), jnp.float32))
