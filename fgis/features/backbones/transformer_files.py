"""The weights of transformers: how the published files name them, which shapes they have, and whether a file fits.

A ``Layout`` says how the files of one family name what ``transformer`` calls by short names, with ``{}`` for the number
of a block. The tables follow the files of Hugging Face's hub.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from fgis.errors import UserError
from fgis.features.backbones.backbone import Backbone, Loaded
from fgis.features.backbones.hub_cache import WEIGHTS, find_weights
from fgis.features.backbones.safetensors_file import read_safetensors
from fgis.features.backbones.torch_pickle import StateFile
from fgis.features.backbones.transformer import EXPANSION, Tower, run_image_tower

Shapes = dict[str, tuple[int, ...]]
Names = Mapping[str, str]  # short name -> that of the files; of layers without ".weight" and ".bias"

DINOV2_BLOCK = {
    "norm1": "norm1", "query": "attention.attention.query", "key": "attention.attention.key",
    "value": "attention.attention.value", "out": "attention.output.dense", "scale1": "layer_scale1.lambda1",
    "norm2": "norm2", "up": "mlp.fc1", "down": "mlp.fc2", "scale2": "layer_scale2.lambda1",
}  # fmt: skip
DINOV3_BLOCK = {
    "norm1": "norm1", "query": "attention.q_proj", "key": "attention.k_proj", "value": "attention.v_proj",
    "out": "attention.o_proj", "scale1": "layer_scale1.lambda1", "norm2": "norm2", "up": "mlp.up_proj",
    "down": "mlp.down_proj", "scale2": "layer_scale2.lambda1",
}  # fmt: skip
CLIP_BLOCK = {
    "norm1": "layer_norm1", "query": "self_attn.q_proj", "key": "self_attn.k_proj", "value": "self_attn.v_proj",
    "out": "self_attn.out_proj", "norm2": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2",
}  # fmt: skip


class Layout(NamedTuple):
    """How files name the weights of one tower."""

    block: str  # what stands before the names of a block, with {} for its number
    blocks: Names
    others: Names


class Family(NamedTuple):
    """Transformers that differ in size alone."""

    image: Tower  # width, depth and more are those of a network
    layout: Layout
    text: Tower | None = None
    text_layout: Layout | None = None
    ignored: tuple[str, ...] = ()  # what files hold besides, for training


DINOV2 = Family(
    Tower(0, 0, 1e-6, "gelu", patch=14, positions=37 * 37 + 1, class_token=True, scaled=True),
    Layout("encoder.layer.{}.", DINOV2_BLOCK, {
        "class": "embeddings.cls_token", "positions": "embeddings.position_embeddings",
        "registers": "embeddings.register_tokens", "patch": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }),
    ignored=("embeddings.mask_token",),
)  # fmt: skip
DINOV3 = Family(
    Tower(0, 0, 1e-5, "gelu", patch=16, class_token=True, registers=4, key_bias=False, scaled=True),
    Layout("layer.{}.", DINOV3_BLOCK, {
        "class": "embeddings.cls_token", "registers": "embeddings.register_tokens",
        "patch": "embeddings.patch_embeddings", "norm": "norm",
    }),
    ignored=("embeddings.mask_token",),
)  # fmt: skip
CLIP = Family(
    Tower(0, 0, 1e-5, "quick_gelu", class_token=True, patch_bias=False, first_norm=True, output="class"),
    Layout("vision_model.encoder.layers.{}.", CLIP_BLOCK, {
        "class": "vision_model.embeddings.class_embedding", "norm": "vision_model.post_layernorm",
        "positions": "vision_model.embeddings.position_embedding.weight",
        "patch": "vision_model.embeddings.patch_embedding",
        "first_norm": "vision_model.pre_layrnorm",  # as the files spell it
        "projection": "visual_projection",
    }),
    Tower(0, 12, 1e-5, "quick_gelu", positions=77, output="end", vocabulary=49408),
    Layout("text_model.encoder.layers.{}.", CLIP_BLOCK, {
        "pieces": "text_model.embeddings.token_embedding.weight",
        "positions": "text_model.embeddings.position_embedding.weight", "norm": "text_model.final_layer_norm",
        "projection": "text_projection",
    }),
    ignored=("logit_scale",),
)  # fmt: skip
SIGLIP = Family(
    Tower(0, 0, 1e-6, "gelu_tanh", output="attention"),
    Layout("vision_model.encoder.layers.{}.", CLIP_BLOCK, {
        "positions": "vision_model.embeddings.position_embedding.weight",
        "patch": "vision_model.embeddings.patch_embedding", "norm": "vision_model.post_layernorm",
        "head.probe": "vision_model.head.probe", "head.in.weight": "vision_model.head.attention.in_proj_weight",
        "head.in.bias": "vision_model.head.attention.in_proj_bias", "head.out": "vision_model.head.attention.out_proj",
        "head.norm": "vision_model.head.layernorm", "head.up": "vision_model.head.mlp.fc1",
        "head.down": "vision_model.head.mlp.fc2",
    }),
    Tower(0, 12, 1e-6, "gelu_tanh", positions=64, output="last", vocabulary=256_000),
    Layout("text_model.encoder.layers.{}.", CLIP_BLOCK, {
        "pieces": "text_model.embeddings.token_embedding.weight",
        "positions": "text_model.embeddings.position_embedding.weight", "norm": "text_model.final_layer_norm",
        "projection": "text_model.head",
    }),
    ignored=("logit_scale", "logit_bias"),
)  # fmt: skip
FAMILIES = {"dinov2": DINOV2, "dinov3": DINOV3, "clip": CLIP, "siglip": SIGLIP}


def towers(backbone: Backbone) -> tuple[Tower, Tower | None]:
    """The towers of a network for images and for texts; None where it reads no texts."""
    family, options = FAMILIES[backbone.constructor], dict(backbone.options)
    width = options.pop("text_width", 0)
    image = family.image._replace(**options)
    return image, family.text._replace(width=width, projection=backbone.channels) if family.text else None


def load_transformer(name: str, backbone: Backbone, weights: str) -> Loaded:
    """Load one of the networks; see ``load_backbone``, which adds the preprocessing.

    The function it returns takes ``token=True`` for the class token in place of the patches.
    """
    image, _ = towers(backbone)
    if weights == "none":
        found = random_weights(tower_shapes(image))
        digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(found))).hexdigest()
    else:
        path = find_weights(name, backbone.weights_file, weights)
        file = read_safetensors(path)
        digest = file.sha256
        found = read_tower(name, backbone, path, file, "image")
        image = image._replace(positions=len(found.get("positions", ())))
    leaves, tree = jax.tree.flatten(found)

    def apply(params: list[Array], x: Float[Array, "b h w 3"], token: bool = False) -> Float[Array, "b oh ow c"]:
        with jax.default_matmul_precision("float32"):  # accelerators would else round to fewer bits, differently each
            return run_image_tower(image, jax.tree.unflatten(tree, params), x, token)

    return apply, leaves, digest


def read_tower(name: str, backbone: Backbone, path: Path, file: StateFile, which: str) -> dict[str, np.ndarray]:
    """The weights of the tower for images or for texts, by short name; those of pieces of text stay on disk.

    Positions of images are those of the file, whatever the size that it was trained at.

    Raises:
      UserError: a weight is missing, has another shape or is not finite, or the file holds some of another network.
    """
    family = FAMILIES[backbone.constructor]
    image, text = towers(backbone)
    both = {"image": (image, family.layout)}
    if text and family.text_layout:
        both["text"] = (text, family.text_layout)
    names = {part: file_names(*one) for part, one in both.items()}
    shapes = tower_shapes(both[which][0])
    try:
        if unknown := sorted({*file.tensors}.difference(family.ignored, *(one.values() for one in names.values()))):
            raise ValueError(f"it holds {unknown[0]}, which the network lacks")
        if which == "image" and image.positions:
            shapes["positions"] = _square_positions(file, names[which]["positions"], image)
        return {short: _read_weight(file, long, short, shapes[short]) for short, long in names[which].items()}
    except ValueError as error:
        raise UserError(
            f"{path}: does not hold weights of {name} ({error}); name {WEIGHTS} of {backbone.weights_file}"
        ) from error


def _square_positions(file: StateFile, long: str, tower: Tower) -> tuple[int, int]:
    """The shape of the positions in a file: those of a square of patches, whose side depends on the training."""
    held = file.tensors[long].size // tower.width if long in file.tensors else 0
    return math.isqrt(max(1, held - tower.class_token)) ** 2 + tower.class_token, tower.width


def _read_weight(file: StateFile, long: str, short: str, shape: tuple[int, ...]) -> np.ndarray:
    """One weight as float32; files may give its shape axes of length 1 in front."""
    if long not in file.tensors:
        raise ValueError(f"{long} is missing")
    value = file.tensors[long]
    if value.shape != (1,) * (value.ndim - len(shape)) + shape:
        raise ValueError(f"{long} has the shape {value.shape}, not {shape}")
    if short == "pieces":
        return value
    value = value.reshape(shape).astype(np.float32)
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{long} holds NaN or infinity")
    return value


def tower_shapes(tower: Tower) -> Shapes:
    """The shapes of the weights of a tower by short name."""
    width, hidden = tower.width, EXPANSION * tower.width
    layers: Shapes = {}  # [out, in]; a normalisation has none for ``in``
    others: Shapes = {}
    for number in range(tower.depth):
        block = f"blocks.{number}."
        layers |= {f"{block}{part}": (width, width) for part in ("query", "key", "value", "out")}
        layers |= {f"{block}norm1": (width,), f"{block}norm2": (width,)}
        layers |= {f"{block}up": (hidden, width), f"{block}down": (width, hidden)}
        others |= {f"{block}{part}": (width,) for part in ("scale1", "scale2") if tower.scaled}
    layers["norm"] = (width,)
    if tower.patch:
        layers["patch"] = (width, 3, tower.patch, tower.patch)
    if tower.first_norm:
        layers["first_norm"] = (width,)
    if tower.projection:
        layers["projection"] = (tower.projection, width)
    if tower.output == "attention":
        others |= {"head.probe": (1, width), "head.in.weight": (3 * width, width), "head.in.bias": (3 * width,)}
        layers |= {"head.out": (width, width), "head.norm": (width,)}
        layers |= {"head.up": (hidden, width), "head.down": (width, hidden)}
    counts = {"registers": tower.registers, "positions": tower.positions}
    others |= {part: (count, width) for part, count in counts.items() if count}
    if tower.class_token:
        others["class"] = (width,)
    if tower.vocabulary:
        others["pieces"] = (tower.vocabulary, width)
    for layer, shape in layers.items():
        others[f"{layer}.weight"] = shape
        if has_bias(tower, layer):
            others[f"{layer}.bias"] = shape[:1]
    return others


def has_bias(tower: Tower, layer: str) -> bool:
    """Whether a layer adds a bias: most do."""
    if layer == "patch":
        return tower.patch_bias
    if layer == "projection":  # CLIP's have none, SigLIP's for texts has one
        return tower.output == "last"
    return tower.key_bias or not layer.endswith(".key")


def file_names(tower: Tower, layout: Layout) -> dict[str, str]:
    """The name in files of every weight of a tower, by short name."""
    found = {}
    for short in tower_shapes(tower):
        if short.startswith("blocks."):
            _, number, part = short.split(".", 2)
            prefix, names = layout.block.format(number), layout.blocks
        else:
            prefix, names, part = "", layout.others, short
        layer, dot, leaf = (part, "", "") if part in names else part.rpartition(".")
        found[short] = f"{prefix}{names[layer]}{dot}{leaf}"
    return found


def random_weights(shapes: Shapes) -> dict[str, np.ndarray]:
    """Seeded weights for tests: kernels of variance 1 / fan-in, tokens and positions of .01, factors 1, biases 0."""
    generator, found = np.random.default_rng(0), {}
    for name, shape in sorted(shapes.items()):
        leaf = name.rpartition(".")[2]
        if leaf == "bias":
            value: Any = np.zeros(shape)
        elif leaf in ("scale1", "scale2") or (leaf == "weight" and len(shape) == 1):
            value = np.ones(shape)
        else:
            deviation = 0.1 if leaf != "weight" else 1 / math.sqrt(math.prod(shape[1:]))
            value = generator.standard_normal(shape, np.float32) * np.float32(deviation)
        found[name] = value.astype(np.float32)
    return found
