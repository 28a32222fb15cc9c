"""Networks of three paths: frozen features of a deep network beside two shallow ones that are trained on small copies.

Deep Ranking (Wang 2014, arXiv:1404.4661) and VisNet (Shankar 2017, arXiv:1703.02344), with any backbone in place of
their deep path. A row holds the features, then the copies of the image as ``fgis.features.pixels`` joins them.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgis.distances import l2_normalize
from fgis.learning.head import Head, Variables, apply_module, dropout, fit_nothing, init_module, shrunk_directions
from fgis.learning.products import Precision, round_and_multiply, rounding_dot
from fgis.ranges import Count, NonNegative, Share, Whole, require

CHANNELS, KERNEL, STRIDE, PLACES = 96, 8, 4, 4  # of a shallow path: 8 × 8 / 4, then pooled to 4 × 4


def soft_normalize(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """x / √(1 + ‖x‖²): VisNet's normalisation, which keeps vectors inside the unit ball and is smooth at 0.

    >>> print(soft_normalize(jnp.array([[2.0, 2.0]])))
    [[0.6666667 0.6666667]]
    """
    return x * jax.lax.rsqrt(1 + jnp.sum(x * x, axis=-1, keepdims=True))


class CellConvolution(nn.Module):
    """A convolution by 8 × 8 kernels with stride 4 (SAME), as one matrix product over cells of 4 × 4 pixels.

    A kernel covers 2 × 2 cells. The variables are those of ``flax.linen.Conv``. XLA runs a convolution that lies in a
    loop, as every train step does, 20 times slower than this product on a CPU (measured on 126 copies of 57² pixels).

    Attributes:
      precision: of the factors of the product.
    """

    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b s s 3"]) -> Float[Array, "b o o 96"]:
        """Convolves copies."""
        b, side, _, colours = x.shape
        shape = (KERNEL, KERNEL, colours, CHANNELS)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (CHANNELS,))
        out = -(-side // STRIDE)
        before = max((out - 1) * STRIDE + KERNEL - side, 0) // 2
        edges = (before, (out + 1) * STRIDE - side - before)
        x = jnp.pad(x, ((0, 0), edges, edges, (0, 0))).reshape(b, out + 1, STRIDE, out + 1, STRIDE, colours)
        cells = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, out + 1, out + 1, -1)
        near = [cells[:, i : i + out, j : j + out] for i in (0, 1) for j in (0, 1)]
        by_cell = kernel.reshape(2, STRIDE, 2, STRIDE, colours, CHANNELS).transpose(0, 2, 1, 3, 4, 5)
        near_cells = jnp.concatenate(near, axis=-1)
        return round_and_multiply(near_cells, by_cell.reshape(-1, CHANNELS), self.precision) + bias


def max_over_places(y: Float[Array, "b s s c"]) -> Float[Array, "b p q c"]:
    """Maxima over about 4 × 4 windows that overlap (SAME), first down, then across.

    XLA's gradient of ``flax.linen.max_pool`` took three times as long on a CPU, half of a train step (measured on 378
    maps of 15²).

    Args:
      y: maps without negative values.

    Returns:
      Maps of ⌈s / ⌈s / 4⌉⌉ places a side. The gradient of a maximum that several places share is shared by them.

    >>> print(max_over_places(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0])
    [[ 0.  1.  2.  3.]
     [ 4.  5.  6.  7.]
     [ 8.  9. 10. 11.]
     [12. 13. 14. 15.]]
    """
    side = y.shape[1]
    stride = -(-side // PLACES)
    window, out = 2 * stride - 1, -(-side // stride)
    missing = max((out - 1) * stride + window - side, 0)
    for axis in (1, 2):
        edges = [(missing // 2, missing - missing // 2) if number == axis else (0, 0) for number in range(4)]
        padded, last = jnp.pad(y, edges), (out - 1) * stride + 1
        y = reduce(jnp.maximum, (jax.lax.slice_in_dim(padded, i, i + last, stride, axis) for i in range(window)))
    return y


class ShallowPath(nn.Module):
    """A copy of the image -> 96 channels by 8 × 8 / 4 (SAME), ReLU, maxima over about 4 × 4 places, flattened.

    57² pixels become 15², pooled by 7 × 7 / 4 to 4²; 29² become 8², pooled by 3 × 3 / 2 to 4².

    Attributes:
      precision: of the factors of products.
    """

    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b s s 3"]) -> Float[Array, "b e"]:
        """Describes copies with values in [−1, 1]."""
        y = max_over_places(nn.relu(CellConvolution(self.precision, name="conv")(x)))
        return y.reshape(len(y), -1)


class PathsHead(nn.Module):
    """The deep features and the shallow paths, each normalised, then one linear layer, normalised.

    Attributes:
      pixels: sides of the copies; none leaves the deep path alone: the single-scale network.
      width: of the embedding.
      drop: share of the inputs of the linear layer that is dropped in training.
      shift: in training, copies are shifted by up to so many pixels in each direction; their edges are repeated.
      soft: whether vectors are normalised by x / √(1 + ‖x‖²) instead of x / ‖x‖.
      precision: of the factors of products.
    """

    pixels: Sequence[int] = (57, 29)
    width: int = 4096
    drop: float = 0.4
    shift: int = 2
    soft: bool = False
    precision: Precision = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "b g"], dropout_keys: Array | None = None) -> Float[Array, "b d"]:
        """Embeds rows."""
        normalize = soft_normalize if self.soft else l2_normalize
        place = x.shape[-1] - sum(3 * side**2 for side in self.pixels)
        parts, shallow = [normalize(x[:, :place])], []
        for number, side in enumerate(self.pixels):
            copy = x[:, place : place + 3 * side**2].reshape(len(x), side, side, 3)
            place += 3 * side**2
            if dropout_keys is not None and self.shift:
                copy = shift_copies(copy, dropout_keys, self.shift, number)
            shallow.append(ShallowPath(self.precision, name=f"path_{side}")(2 * copy - 1))
        if shallow:
            parts.append(normalize(jnp.concatenate(shallow, axis=1)))
        joined = dropout(jnp.concatenate(parts, axis=1), self.drop, dropout_keys, len(self.pixels))
        dense = nn.Dense(self.width, name="embedding", dot_general=rounding_dot(self.precision))
        return normalize(dense(joined))


def shift_copies(x: Float[Array, "b s s 3"], keys: Array, most: int, number: int) -> Float[Array, "b s s 3"]:
    """Each copy shifted by a random number of pixels, −most … most, down and to the right; edges are repeated.

    Args:
      x: copies.
      keys: [b], one for each.
      most: of pixels.
      number: of the path, so that paths are shifted apart.

    Returns:
      Copies of the same size.
    """
    side = x.shape[1]

    def one(copy: Float[Array, "s s 3"], key: Array) -> Float[Array, "s s 3"]:
        down, right = jax.random.randint(jax.random.fold_in(key, 100 + number), (2,), 0, 2 * most + 1)
        padded = jnp.pad(copy, ((most, most), (most, most), (0, 0)), mode="edge")
        return jax.lax.dynamic_slice(padded, (down, right, 0), (side, side, 3))

    return jax.vmap(one)(x, keys)


def deep_ranking(
    *,
    pixels: tuple[Count, ...] = (57, 29),
    width: Count = 4096,
    keep: Share = 0.6,
    shift: Whole = 2,
    whiten: NonNegative = 0.0,
) -> Head:
    """The network of Deep Ranking on frozen deep features; the paper's copies have 57² and 29² pixels.

    Args:
      pixels: sides of the copies; () is the single-scale network.
      width: of the embedding, which has unit length.
      keep: share of the inputs of the last layer that dropout keeps, above 0.
      shift: pixels, at most, that copies are shifted by in training.
      whiten: 0 begins at random, as published; otherwise the last layer begins at the shrunk whitening of this strength
        of the deep features, fitted without labels to those that a run may see, and with no weight on the copies.

    Returns:
      A head that begins as ``whiten`` says.

    Raises:
      ValueError: a value is out of range.

    Reference: Wang et al., Learning fine-grained image similarity with deep ranking, CVPR 2014, arXiv:1404.4661.
    """
    require(deep_ranking, pixels=pixels, width=width, keep=keep, shift=shift, whiten=whiten)
    return _head(PathsHead(tuple(pixels), width, 1 - keep, shift), whiten)


def visnet(
    *,
    pixels: tuple[Count, ...] = (56, 28),
    width: Count = 4096,
    keep: Share = 0.6,
    shift: Whole = 0,
    whiten: NonNegative = 0.0,
) -> Head:
    """VisNet on frozen deep features: Deep Ranking's paths on maxima of cells, normalised by x / √(1 + ‖x‖²).

    Args:
      pixels: sides of the copies: 56 and 28 are maxima of 4² and 8² of 224² pixels.
      width: of the embedding, whose length is below 1.
      keep, shift, whiten: as in ``deep_ranking``.

    Returns:
      A head that begins as ``whiten`` says.

    Raises:
      ValueError: a value is out of range.

    Reference: Shankar et al., Deep learning based large scale visual recommendation and search for e-commerce, 2017,
    arXiv:1703.02344, and the layers of its public definition.
    """
    require(visnet, pixels=pixels, width=width, keep=keep, shift=shift, whiten=whiten)
    return _head(PathsHead(tuple(pixels), width, 1 - keep, shift, soft=True), whiten)


def _head(module: PathsHead, whiten: float) -> Head:
    if module.drop == 1:
        raise ValueError("keep: 0 found; nothing would be left, write a share above 0")
    fit = partial(_fit_last_layer, module, whiten) if whiten > 0 else fit_nothing
    return Head(partial(_init_paths, module), partial(apply_module, module), fit)


def _init_paths(module: PathsHead, key: jax.Array, feature_shape: Sequence[int], start: Any = ()) -> Variables:
    """Random variables, but for the layers of ``start``."""
    made = init_module(module, key, feature_shape)
    return {**made, "params": {**made["params"], **dict(start).get("params", {})}}


def _fit_last_layer(module: PathsHead, strength: float, rows: Float[np.ndarray, "m g"]) -> Variables:
    """The last layer as (x − c) V diag(s) of the normalised deep features x, see ``shrunk_directions``.

    Inputs from the copies, and outputs beyond the directions that exist, begin with the weight 0.
    """
    normalize = soft_normalize if module.soft else l2_normalize
    copies = sum(3 * side**2 for side in module.pixels)
    shallow = len(module.pixels) * PLACES**2 * CHANNELS
    deep = np.asarray(normalize(jnp.asarray(rows[:, : rows.shape[1] - copies])))
    center, vectors, scale = shrunk_directions(deep, module.width, strength)
    kernel = np.zeros((deep.shape[1] + shallow, module.width))
    kernel[: deep.shape[1], : len(scale)] = vectors * scale
    bias = -center @ kernel[: deep.shape[1]]
    return {"params": {"embedding": {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}}}
