"""Embedding networks on frozen features: a ``Head`` is a record of functions, whatever is behind them.

Every head maps features [b, f] or spatial features [b, h, w, f] (averaged over h and w first) to embeddings [b, d].
Dropout takes one key per row, so that a row's mask depends on its place in the global batch and not on how the batch is
split over devices; without keys nothing is dropped.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import sqrt
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgis.distances import l2_normalize, safe_sqrt
from fgis.learning.head import Head, Variables, apply_module, dropout, fit_nothing, init_module, shrunk_directions
from fgis.learning.paths import deep_ranking, visnet
from fgis.learning.products import Precision, rounding_dot
from fgis.ranges import Count, NonNegative, Positive, ShareBelowOne, Whole, require
from fgis.streams import stream_generator


def prepare(
    features: Float[Array | np.ndarray, "n ..."],
    *,
    power: Positive = 1.0,
    normalize: bool = False,
    tail: Whole = 0,
    widths: tuple[Count, ...] = (),
    weights: tuple[Positive, ...] = (),
) -> Float[Array, "n f"]:
    """What both the heads and the frozen rows see: spatial average, sign(x) |x|^power, then L2 normalisation.

    Args:
      features: of any float type, [n, f] or [n, h, w, f].
      power: 0.5 on non-negative, pooled activations turns their Euclidean geometry into Hellinger's.
      normalize: whether each row is divided by its length; a zero row stays zero.
      tail: numbers at the end of each row that are left as they are: copies of pixels.
      widths: of the parts of each row, where it joins the features of several networks: every part is prepared by
        itself and multiplied by √(wᵢ / Σ w), so that the cosine of two rows is the weighted mean of the cosines of
        their parts. (): one part.
      weights: w, of as many parts; () for equal ones.

    Returns:
      Float32, on the device.

    Raises:
      ValueError: a number is not above 0, or there are weights for another number of parts.

    >>> prepare(np.array([[4.0, -9.0]]), power=0.5).tolist()
    [[2.0, -3.0]]
    """
    require(prepare, power=power, widths=widths, weights=weights)
    if len(weights) not in (0, max(1, len(widths))):
        raise ValueError(f"weights: {len(weights)} numbers for {max(1, len(widths))} parts; write one for each, or ()")
    if widths:
        weights = weights or (1.0,) * len(widths)
        parts = zip(weights, np.split(features, np.cumsum(widths)[:-1], axis=-1), strict=True)
        own = [sqrt(weight / sum(weights)) * prepare(x, power=power, normalize=normalize) for weight, x in parts]
        return jnp.concatenate(own, axis=1)
    if isinstance(features, np.ndarray):  # averaged where it lies: a hundredth of the bytes to move
        features = features.mean(axis=tuple(range(1, features.ndim - 1)), dtype=np.float32)
    if tail:
        own = _prepare(features[:, :-tail], power, normalize)
        return jnp.concatenate([own, jnp.asarray(features[:, -tail:], jnp.float32)], axis=1)
    return _prepare(features, power, normalize)


@partial(jax.jit, static_argnums=(1, 2))
def _prepare(features: Float[Array, "n ..."], power: float, normalize: bool) -> Float[Array, "n f"]:
    x = features.astype(jnp.float32).mean(axis=tuple(range(1, features.ndim - 1)))
    if power == 0.5:
        x = jnp.sign(x) * safe_sqrt(jnp.abs(x))
    elif power != 1:
        x = jnp.sign(x) * jnp.abs(x) ** power
    return l2_normalize(x) if normalize else x


class EmbeddingHead(nn.Module):
    """The published network: ReLU layers, dropout after every layer but the last, and no normalisation.

    Attributes:
      widths: of the layers; the last one is the size of the embedding.
      dropouts: rates after the first layers; those beyond the layers are ignored, those that are missing are 0.
      final: "relu", or "normalize": then the last layer is linear and the embedding has unit length.
      precision: of the factors of products.
    """

    widths: Sequence[int] = (512, 512, 256)
    dropouts: Sequence[float] = (0.5, 0.25)
    final: str = "relu"
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], dropout_keys: Array | None = None) -> Float[Array, "b d"]:
        """Embeds rows."""
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        # Keras' initialisation, which the published network was trained from.
        dense = partial(
            nn.Dense, kernel_init=nn.initializers.glorot_uniform(), dot_general=rounding_dot(self.precision)
        )
        layers = [dense(width) for width in self.widths]
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
      precision: of the factors of products.
    """

    rank: int = 64
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b ..."], dropout_keys: Array | None = None) -> Float[Array, "b f"]:
        """Embeds rows; ``dropout_keys`` is not used."""
        x = x.mean(axis=tuple(range(1, x.ndim - 1)))
        x = x - jax.lax.stop_gradient(self.variable("constants", "center", jnp.zeros, x.shape[-1:]).value)
        dense = partial(nn.Dense, use_bias=False, dot_general=rounding_dot(self.precision))
        down = dense(self.rank, name="down")
        up = dense(x.shape[-1], kernel_init=nn.initializers.zeros, name="up")
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
    return Head(partial(init_module, module), partial(apply_module, module), fit_nothing)


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
    fit = partial(whitening, rank=rank, strength=whiten) if whiten > 0 else fit_nothing
    return Head(partial(init_module, module), partial(apply_module, module), fit)


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
    center, vectors, scale = shrunk_directions(features, rank, strength)
    missing = rank - len(scale)
    noise = stream_generator(0).normal(size=(len(center), missing)) / np.sqrt(len(center))
    down = np.concatenate([vectors, noise], axis=1)
    up = np.concatenate([(scale - 1)[:, None] * vectors.T, np.zeros((missing, len(center)))])
    kernels = {"down": {"kernel": down.astype(np.float32)}, "up": {"kernel": up.astype(np.float32)}}
    return {"params": kernels, "constants": {"center": center.astype(np.float32)}}


HEADS: dict[str, Callable[..., Head]] = {
    "mlp": mlp,
    "residual": residual,
    "deep_ranking": deep_ranking,
    "visnet": visnet,
}
