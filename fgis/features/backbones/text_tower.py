"""Texts to vectors that are comparable with those of images, by the networks that were trained on both."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from fgis.features.backbones import BACKBONES, find_backbone
from fgis.features.backbones.hub_cache import find_weights
from fgis.features.backbones.safetensors_file import read_safetensors
from fgis.features.backbones.text_pieces import load_clip_pieces, load_siglip_pieces
from fgis.features.backbones.transformer import Tower, run_text_tower
from fgis.features.backbones.transformer_files import load_transformer, read_tower, towers

SPLITS = {"clip": load_clip_pieces, "siglip": load_siglip_pieces}  # by the constructor of a network


class TextEncoder(NamedTuple):
    """The tower of a network that reads texts."""

    encode: Callable[[str], Float[np.ndarray, "1 c"]]
    weights_sha256: str


def reads_texts(name: str) -> bool:
    """Whether a network has a tower for texts."""
    return BACKBONES[name].load is load_transformer and towers(BACKBONES[name])[1] is not None


def load_text_encoder(name: str, weights: str) -> TextEncoder:
    """Load the tower for texts of a network; it is compiled with the first text.

    Args:
      name: a key of ``BACKBONES``.
      weights: as ``load_backbone`` takes them; "none" has no vocabulary and is refused.

    Returns:
      The function from a text to its vector, and the digest of the weights file.

    Raises:
      ValueError: the network has no such tower, or there are no weights; the message begins with ``backbone:`` or
        ``weights:``.
      UserError: the weights, or the vocabulary beside them, do not fit the network or are missing.
    """
    backbone = find_backbone(name)
    if not reads_texts(name):
        able = ", ".join(one for one in BACKBONES if reads_texts(one))
        raise ValueError(f"backbone: {name} reads no texts; these do: {able}")
    if weights == "none":
        raise ValueError("weights: 'none' are random and know no texts; name a file of weights")
    path = find_weights(name, backbone.weights_file, weights)
    tower: Any = towers(backbone)[1]
    split = SPLITS[backbone.constructor](path.parent, backbone.weights_file, tower.positions, tower.vocabulary)
    file = read_safetensors(path)
    found = read_tower(name, backbone, path, file, "text")
    return TextEncoder(_make_encode(tower, found, split), file.sha256)


def _make_encode(tower: Tower, found: dict[str, np.ndarray], split: Callable) -> Callable[[str], np.ndarray]:
    vectors = found.pop("pieces")  # stays on disk: a text needs some rows of hundreds of megabytes
    leaves, tree = jax.tree.flatten(found)

    @jax.jit
    def run(params: list[jax.Array], tokens: jax.Array, end: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("float32"):
            return run_text_tower(tower, jax.tree.unflatten(tree, params), tokens, end)

    def encode(text: str) -> np.ndarray:
        pieces = split(text)
        tokens = vectors[pieces.numbers].astype(np.float32)[None]
        return np.asarray(run(leaves, tokens, np.array([pieces.end])))

    return encode
