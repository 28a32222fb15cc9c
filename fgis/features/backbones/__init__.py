"""Pretrained networks: one table, whatever their source.

A new network of Keras is one entry of ``BACKBONES``. A new source is one module beside ``keras_applications`` with a
function of (name, backbone, weights) such as its ``load_network``, and an entry for each of its networks.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from fgis.features.backbones.backbone import PREPROCESSING, Apply, Backbone, Loaded
from fgis.features.backbones.classical import load_classical as described
from fgis.features.backbones.efficientnet_lite import lite_layers
from fgis.features.backbones.efficientnet_lite import load_efficientnet_lite as lite
from fgis.features.backbones.keras_applications import keras_layers, keras_trainable
from fgis.features.backbones.keras_applications import load_network as keras
from fgis.features.backbones.transformer_files import load_transformer as vit
from fgis.ranges import nearest

__all__ = [
    "BACKBONES",
    "PREPROCESSING",
    "Backbone",
    "find_backbone",
    "layer_names",
    "load_backbone",
    "trainable_parameters",
]

BACKBONES: dict[str, Backbone] = {
    "vgg16": Backbone(
        keras, "VGG16", {}, (224, 224), "caffe", 512, 32, 32, 14_714_688,
        "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "vgg19": Backbone(
        keras, "VGG19", {}, (224, 224), "caffe", 512, 32, 32, 20_024_384,
        "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "inception_v3": Backbone(
        keras, "InceptionV3", {}, (299, 299), "tf", 2048, 32, 75, 21_802_784,
        "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "resnet50": Backbone(
        keras, "ResNet50", {}, (224, 224), "caffe", 2048, 32, 32, 23_587_712,
        "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "xception": Backbone(
        keras, "Xception", {}, (299, 299), "tf", 2048, 32, 71, 20_861_480,
        "xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "mobilenet": Backbone(
        keras, "MobileNet", {}, (224, 224), "tf", 1024, 32, 32, 3_228_864, "mobilenet_1_0_224_tf_no_top.h5"
    ),
    "mobilenet_075": Backbone(
        keras, "MobileNet", {"alpha": 0.75}, (224, 224), "tf", 768, 32, 32, 1_832_976,
        "mobilenet_7_5_224_tf_no_top.h5",
    ),
    "mobilenet_v2": Backbone(
        keras, "MobileNetV2", {}, (224, 224), "tf", 1280, 32, 32, 2_257_984,
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    ),
    "convnext_tiny": Backbone(
        keras, "ConvNeXtTiny", {}, (224, 224), "none", 768, 32, 32, 27_820_128, "convnext_tiny_notop.h5"
    ),
    "convnext_base": Backbone(
        keras, "ConvNeXtBase", {}, (224, 224), "none", 1024, 32, 32, 87_566_464, "convnext_base_notop.h5"
    ),
    "efficientnet_v2_s": Backbone(
        keras, "EfficientNetV2S", {}, (384, 384), "none", 1280, 32, 32, 20_331_360, "efficientnetv2-s_notop.h5"
    ),
    "efficientnet_v2_b0": Backbone(
        keras, "EfficientNetV2B0", {}, (224, 224), "none", 1280, 32, 32, 5_919_312, "efficientnetv2-b0_notop.h5"
    ),
    "efficientnet_lite0": Backbone(
        lite, "EfficientNetLite", {"width": 1.0, "depth": 1.0}, (224, 224), "lite", 1280, 32, 32,
        3_413_024, "efficientnet-lite0-57934424.pth",
    ),
    "efficientnet_lite1": Backbone(
        lite, "EfficientNetLite", {"width": 1.0, "depth": 1.1}, (240, 240), "lite", 1280, 32, 32,
        4_189_344, "efficientnet-lite1-77cc7160.pth",
    ),
    "efficientnet_lite2": Backbone(
        lite, "EfficientNetLite", {"width": 1.1, "depth": 1.2}, (260, 260), "lite", 1280, 32, 32,
        4_869_168, "efficientnet-lite2-9656183e.pth",
    ),
    "dinov2_s14": Backbone(
        vit, "dinov2", {"width": 384, "depth": 12}, (224, 224), "imagenet", 384, 14, 14, 22_056_192,
        "facebook/dinov2-small", 14, True,
    ),
    "dinov2_b14": Backbone(
        vit, "dinov2", {"width": 768, "depth": 12}, (224, 224), "imagenet", 768, 14, 14, 86_579_712,
        "facebook/dinov2-base", 14, True,
    ),
    "dinov2_s14_registers": Backbone(
        vit, "dinov2", {"width": 384, "depth": 12, "registers": 4, "antialias": True}, (224, 224), "imagenet", 384, 14,
        14, 22_057_728, "facebook/dinov2-with-registers-small", 14, True,
    ),
    "dinov2_b14_registers": Backbone(
        vit, "dinov2", {"width": 768, "depth": 12, "registers": 4, "antialias": True}, (224, 224), "imagenet", 768, 14,
        14, 86_582_784, "facebook/dinov2-with-registers-base", 14, True,
    ),
    "dinov3_s16": Backbone(
        vit, "dinov3", {"width": 384, "depth": 12}, (224, 224), "imagenet", 384, 16, 16, 21_596_160,
        "facebook/dinov3-vits16-pretrain-lvd1689m", 16, True,
    ),
    "dinov3_b16": Backbone(
        vit, "dinov3", {"width": 768, "depth": 12}, (224, 224), "imagenet", 768, 16, 16, 85_659_648,
        "facebook/dinov3-vitb16-pretrain-lvd1689m", 16, True,
    ),
    "siglip2_b16": Backbone(
        vit, "siglip", {"width": 768, "depth": 12, "patch": 16, "positions": 196, "text_width": 768}, (224, 224), "tf",
        768, 0, 16, 92_884_224, "google/siglip2-base-patch16-224", 16, True,
    ),
    "clip_b32": Backbone(
        vit, "clip",
        {"width": 768, "depth": 12, "patch": 32, "positions": 50, "projection": 512, "text_width": 512}, (224, 224),
        "clip", 512, 0, 32, 87_849_216, "openai/clip-vit-base-patch32", 32, True,
    ),
    "clip_b16": Backbone(
        vit, "clip",
        {"width": 768, "depth": 12, "patch": 16, "positions": 197, "projection": 512, "text_width": 512}, (224, 224),
        "clip", 512, 0, 16, 86_192_640, "openai/clip-vit-base-patch16", 16, True,
    ),
    "clip_l14": Backbone(
        vit, "clip",
        {"width": 1024, "depth": 24, "patch": 14, "positions": 257, "projection": 768, "text_width": 768}, (224, 224),
        "clip", 768, 0, 14, 303_966_208, "openai/clip-vit-large-patch14", 14, True,
    ),
    "colour_histogram": Backbone(described, "", {}, (224, 224), "none", 256, 0, 8, 0, "", on_host=True),
    "hog": Backbone(described, "", {}, (224, 224), "none", 8100, 0, 8, 0, "", on_host=True),
    "bag_of_words": Backbone(described, "", {}, (480, 640), "none", 10_000, 0, 32, 1_280_000, "", on_host=True),
    "bag_of_words_tf_idf": Backbone(described, "", {}, (480, 640), "none", 10_000, 0, 32, 1_280_000, "", on_host=True),
    "bag_of_words_hard": Backbone(described, "", {}, (480, 640), "none", 10_000, 0, 32, 1_280_000, "", on_host=True),
    "vlad": Backbone(described, "", {}, (480, 640), "none", 4096, 0, 32, 12_416, "", on_host=True),
    "fisher": Backbone(described, "", {}, (480, 640), "none", 8192, 0, 32, 16_576, "", on_host=True),
}  # fmt: skip


def find_backbone(name: str) -> Backbone:
    """Look up what is known of a network.

    Raises:
      ValueError: no such network; the message begins with ``backbone:`` and names the nearest.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: {name!r} is unknown; {nearest(str(name), BACKBONES)}")
    return BACKBONES[name]


LAYERS: dict[Callable[..., Loaded], Callable[[Backbone], tuple[str, ...]]] = {keras: keras_layers, lite: lite_layers}


def layer_names(name: str) -> tuple[str, ...]:
    """The layers whose maps a network can give, from the first to the last; () of a network that gives its last alone.

    Raises:
      ValueError: as ``find_backbone``.
    """
    backbone = find_backbone(name)
    return LAYERS[backbone.load](backbone) if backbone.load in LAYERS else ()


def trainable_parameters(name: str, count: int) -> tuple[bool, ...]:
    """Which of the ``count`` parameters of a network gradients may move: not the statistics of batch normalisation.

    Raises:
      ValueError: as ``find_backbone``.
    """
    backbone = find_backbone(name)
    return keras_trainable(backbone) if backbone.load is keras else (True,) * count


def load_backbone(name: str, weights: str) -> Loaded:
    """Load a network without its classifier; nothing is compiled.

    Args:
      name: a key of ``BACKBONES``.
      weights: ``imagenet`` (the published ones: from the source's cache, else fetched by a source that fetches),
        ``none`` (seeded random values, for tests) or the path of a weights file that the source can load.

    Returns:
      ``(apply, params, weights_sha256)``. ``apply(params, images [b, h, w, 3]) -> [b, h', w', channels]`` takes RGB in
      0..255 of any number type and any size of at least ``BACKBONES[name].smallest``, includes the preprocessing, and
      is traceable; those that are ``on_host`` take uint8 and return arrays outside of any trace instead. Where the
      network ``has_token``, ``apply(params, images, token=True) -> [b, 1, 1, channels]`` gives that in place of a map,
      and ``apply(params, images, layer=NAME)`` the map of a layer of ``layer_names``.
      The digest is that of the weights file, or of the values where there is no file.

    Raises:
      ValueError: an unknown name, or weights that cannot be had; the message begins with ``backbone:`` or
        ``weights:``.
      UserError: the weights file does not fit the network, or the source cannot be imported.
    """
    backbone = find_backbone(name)
    network, params, digest = backbone.load(name, backbone, weights)
    if backbone.on_host:
        return network, params, digest
    return functools.partial(_apply_preprocessed, PREPROCESSING[backbone.preprocessing], network), params, digest


def _apply_preprocessed(
    preprocess: Callable[[Array], Array], network: Apply, params: Any, images: Shaped[Array, "b h w 3"], **options: Any
) -> Float[Array, "b oh ow c"]:
    return network(params, preprocess(images.astype(jnp.float32)), **options)
