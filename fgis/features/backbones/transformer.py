"""Transformers for images and texts, as plain functions of a dictionary of weights.

One ``Tower`` says how a network is built; DINOv2, DINOv3, CLIP and SigLIP differ in nothing else. Weights have short
names such as ``blocks.3.query.weight``, whatever a file calls them, and the shapes that torch gives them: [out, in].

Dosovitskiy et al., "An image is worth 16x16 words" (arXiv:2010.11929); Oquab et al., "DINOv2" (arXiv:2304.07193);
Darcet et al., "Vision transformers need registers" (arXiv:2309.16588); Siméoni et al., "DINOv3" (arXiv:2508.10104);
Radford et al., "Learning transferable visual models from natural language supervision" (arXiv:2103.00020); Tschannen et
al., "SigLIP 2" (arXiv:2502.14786).
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Weights = Mapping[str, Array]
HEAD = 64  # channels of one attention head, in every network here
EXPANSION = 4  # the hidden layer of a block has so many times its channels
THETA = 100.0  # the longest wavelength of rotary positions, over the shortest

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Tower(NamedTuple):
    """How a transformer is built."""

    width: int  # channels of a token
    depth: int  # blocks
    epsilon: float  # of its normalisations
    activation: str  # a key of ACTIVATIONS
    patch: int = 0  # pixels of a side; 0: it reads texts
    positions: int = 0  # learned positions, with that of the class token; 0: rotary positions
    class_token: bool = False
    registers: int = 0  # further tokens, which only keep what blocks write into them
    antialias: bool = False  # when learned positions are resized
    key_bias: bool = True
    patch_bias: bool = True
    scaled: bool = False  # every block multiplies what it adds by learned factors
    first_norm: bool = False  # tokens are normalised before the first block, too
    output: Literal["patches", "class", "attention", "end", "last"] = "patches"
    projection: int = 0  # channels that the output is projected to; 0: it is not
    vocabulary: int = 0  # pieces of text


def run_image_tower(
    tower: Tower, weights: Weights, images: Float[Array, "b h w 3"], token: bool = False
) -> Float[Array, "b oh ow c"]:
    """Run a transformer on images.

    Args:
      tower: how it is built.
      weights: by their short names.
      images: preprocessed; sides are multiples of ``tower.patch``.
      token: the class token instead of the patches, where the output is "patches".

    Returns:
      The tokens of all patches where they lie, [b, h/patch, w/patch, c]; or, of "class" and "attention" and with
      ``token``, one vector per image, [b, 1, 1, c].
    """
    rows, columns = images.shape[1] // tower.patch, images.shape[2] // tower.patch
    x = embed_patches(tower, weights, images)
    first = tower.class_token + tower.registers
    rotary = None if tower.positions else rotary_angles(rows, columns)
    x = run_blocks(tower, weights, x, rotary=rotary)
    if tower.output == "patches" and not token:
        return _norm(tower, weights, "norm", x[:, first:]).reshape(len(x), rows, columns, tower.width)
    if tower.output == "attention":
        x = attend_with_probe(tower, weights, _norm(tower, weights, "norm", x))
    else:
        x = _norm(tower, weights, "norm", x[:, 0])
    return (_linear(weights, "projection", x) if tower.projection else x)[:, None, None, :]


def run_text_tower(
    tower: Tower, weights: Weights, tokens: Float[Array, "b n d"], end: Int[Array, " b"]
) -> Float[Array, "b c"]:
    """Run a transformer on texts.

    Args:
      tower: how it is built.
      weights: by their short names.
      tokens: the vectors of the pieces of each text.
      end: the place of the piece that ends each text, where the output is "end".

    Returns:
      One vector per text, comparable with those of images.
    """
    count = tokens.shape[1]
    x = tokens + weights["positions"][:count]
    # Of CLIP, a piece sees those before it alone, so that what follows the end is not seen by it.
    mask = jnp.tril(jnp.ones((count, count), bool)) if tower.output == "end" else None
    x = _norm(tower, weights, "norm", run_blocks(tower, weights, x, mask=mask))
    place = end if tower.output == "end" else jnp.full(len(x), count - 1)
    return _linear(weights, "projection", jnp.take_along_axis(x, place[:, None, None], axis=1)[:, 0])


def embed_patches(tower: Tower, weights: Weights, images: Float[Array, "b h w 3"]) -> Float[Array, "b n d"]:
    """Images to tokens: the class token, the registers, then the patches row by row, with their learned positions."""
    (b, h, w, channels), side = images.shape, tower.patch
    rows, columns = h // side, w // side
    x = images.reshape(b, rows, side, columns, side, channels).transpose(0, 1, 3, 5, 2, 4)
    kernel = weights["patch.weight"].reshape(tower.width, -1)  # torch's order: channel, row, column
    x = x.reshape(b, rows * columns, -1) @ kernel.T
    x = x + weights["patch.bias"] if tower.patch_bias else x
    extra = []
    if tower.class_token:
        extra.append(weights["class"][None])
    if tower.positions:
        own, learned = weights["positions"][: tower.class_token], weights["positions"][tower.class_token :]
        x = x + resize_positions(learned, rows, columns, tower.antialias)
        extra = [token + own for token in extra]
    if tower.registers:
        extra.append(weights["registers"])
    x = jnp.concatenate([*(jnp.broadcast_to(one, (b, *one.shape)) for one in extra), x], axis=1)
    return _norm(tower, weights, "first_norm", x) if tower.first_norm else x


def run_blocks(
    tower: Tower,
    weights: Weights,
    x: Float[Array, "b n d"],
    *,
    mask: Array | None = None,
    rotary: np.ndarray | None = None,
) -> Float[Array, "b n d"]:
    """The blocks of a tower: x + attention(norm(x)), then x + layers(norm(x)).

    Args:
      tower: how it is built.
      weights: by their short names.
      x: tokens.
      mask: [n, n], true where a token (by row) sees another (by column); None: all see all.
      rotary: [patches, 64] angles by which queries and keys of the last tokens are turned; None: none are.
    """
    for number in range(tower.depth):
        block = f"blocks.{number}."
        y = _norm(tower, weights, f"{block}norm1", x)
        query, key, value = (_heads(_linear(weights, f"{block}{part}", y)) for part in ("query", "key", "value"))
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        y = _linear(weights, f"{block}out", attend(query, key, value, mask))
        x = x + (y * weights[f"{block}scale1"] if tower.scaled else y)
        y = _feed_forward(tower, weights, block, _norm(tower, weights, f"{block}norm2", x))
        x = x + (y * weights[f"{block}scale2"] if tower.scaled else y)
    return x


def attend(
    query: Float[Array, "b q m c"], key: Float[Array, "b k m c"], value: Float[Array, "b k m c"], mask: Array | None
) -> Float[Array, "b q d"]:
    """Attention of m heads: softmax(query · key / √c) value, the heads side by side."""
    scores = jnp.einsum("bqmc,bkmc->bmqk", query, key) / math.sqrt(query.shape[-1])
    scores = scores if mask is None else jnp.where(mask, scores, -jnp.inf)
    found = jnp.einsum("bmqk,bkmc->bqmc", jax.nn.softmax(scores, axis=-1), value)
    return found.reshape(*found.shape[:2], -1)


def attend_with_probe(tower: Tower, weights: Weights, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
    """SigLIP's output: what one learned query finds in all tokens, and a feed-forward layer on top."""
    parts = zip(*(jnp.split(weights[f"head.in.{part}"], 3) for part in ("weight", "bias")), strict=True)
    query, key, value = (
        _heads(source @ kernel.T + bias)
        for source, (kernel, bias) in zip((weights["head.probe"][None], x, x), parts, strict=True)
    )
    y = _linear(weights, "head.out", attend(jnp.broadcast_to(query, (len(x), *query.shape[1:])), key, value, None))
    y = y + _feed_forward(tower, weights, "head.", _norm(tower, weights, "head.norm", y))
    return y[:, 0]


def rotary_angles(rows: int, columns: int) -> Float[np.ndarray, "n 64"]:
    """DINOv3's angles of patches: 2π · centre / 100^(4 i / 64) for i < 16, of rows, then of columns, and again.

    Centres lie in [-1, 1], whatever the size of the image.
    """
    frequencies = THETA ** -(np.arange(HEAD // 4) * 4 / HEAD)
    centres = (2 * (np.arange(count) + 0.5) / count - 1 for count in (rows, columns))
    places = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    return np.tile((2 * np.pi * places * frequencies).reshape(rows * columns, -1), 2).astype(np.float32)


def rotate(x: Float[Array, "b n m c"], angles: np.ndarray) -> Float[Array, "b n m c"]:
    """Turn channels i and i + c/2 of the last tokens by their angles; tokens before them have no place in the image."""
    first = x.shape[1] - len(angles)
    patches = x[:, first:]
    low, high = jnp.split(patches, 2, axis=-1)
    turned = jnp.concatenate([-high, low], axis=-1)
    angles = angles[:, None]
    return jnp.concatenate([x[:, :first], patches * np.cos(angles) + turned * np.sin(angles)], axis=1)


def resize_positions(positions: Float[Array, "n d"], rows: int, columns: int, antialias: bool) -> Float[Array, "m d"]:
    """Learned positions of a square grid for another one, by cubic interpolation."""
    side = math.isqrt(len(positions))
    if (side, side) == (rows, columns):
        return positions
    down, right = (cubic_weights(side, count, antialias) for count in (rows, columns))
    grid = positions.reshape(side, side, -1)
    return jnp.einsum("rs,ct,std->rcd", down, right, grid).reshape(rows * columns, -1)


def cubic_weights(old: int, new: int, antialias: bool) -> Float[np.ndarray, "new old"]:
    """Weights of cubic interpolation from ``old`` to ``new`` points, as torch's ``interpolate`` has them.

    Args:
      old: points that there are.
      new: points that are wanted.
      antialias: a wider filter where there are fewer points (a = -1/2, beyond the edge nothing), or else the four
        nearest points (a = -3/4, beyond the edge the last point).

    Reference: Keys, "Cubic convolution interpolation for digital image processing" (1981).
    """
    a, scale = (-0.5, max(1.0, old / new)) if antialias else (-0.75, 1.0)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    beyond = math.ceil(2 * scale)
    points = np.arange(-beyond, old + beyond)
    x = np.abs(points - centres[:, None]) / scale
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    wide = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    weights = wide[:, beyond:-beyond].copy()
    if antialias:
        weights /= weights.sum(axis=1, keepdims=True)
    else:
        weights[:, 0] += wide[:, :beyond].sum(axis=1)
        weights[:, -1] += wide[:, -beyond:].sum(axis=1)
    return weights.astype(np.float32)


def _linear(weights: Weights, name: str, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _feed_forward(tower: Tower, weights: Weights, part: str, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    return _linear(weights, f"{part}down", ACTIVATIONS[tower.activation](_linear(weights, f"{part}up", x)))


def _norm(tower: Tower, weights: Weights, name: str, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + tower.epsilon) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _heads(x: Float[Array, "b n d"]) -> Float[Array, "b n m c"]:
    return x.reshape(*x.shape[:2], -1, HEAD)
