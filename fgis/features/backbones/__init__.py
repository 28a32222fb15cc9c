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
from fgis.features.backbones.efficientnet_lite import load_efficientnet_lite as lite
from fgis.features.backbones.keras_applications import load_network as keras
from fgis.ranges import nearest

__all__ = ["BACKBONES", "PREPROCESSING", "Backbone", "find_backbone", "load_backbone"]

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
}  # fmt: skip


def find_backbone(name: str) -> Backbone:
    """Look up what is known of a network.

    Raises:
      ValueError: no such network; the message begins with ``backbone:`` and names the nearest.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone: {name!r} is unknown; {nearest(str(name), BACKBONES)}")
    return BACKBONES[name]


def load_backbone(name: str, weights: str) -> Loaded:
    """Load a network without its classifier; nothing is compiled.

    Args:
      name: a key of ``BACKBONES``.
      weights: ``imagenet`` (from the source's cache, else fetched by the source), ``none`` (seeded random values, for
        tests) or the path of a weights file that the source can load.

    Returns:
      ``(apply, params, weights_sha256)``. ``apply(params, images [b, h, w, 3]) -> [b, h', w', channels]`` takes RGB in
      0..255 of any number type and any size of at least ``BACKBONES[name].smallest``, includes the preprocessing, and
      is traceable. The digest is that of the weights file, or of the values where there is no file.

    Raises:
      ValueError: an unknown name, or weights that cannot be had; the message begins with ``backbone:`` or
        ``weights:``.
      UserError: the weights file does not fit the network, or the source cannot be imported.
    """
    backbone = find_backbone(name)
    network, params, digest = backbone.load(name, backbone, weights)
    return functools.partial(_apply_preprocessed, PREPROCESSING[backbone.preprocessing], network), params, digest


def _apply_preprocessed(
    preprocess: Callable[[Array], Array], network: Apply, params: Any, images: Shaped[Array, "b h w 3"]
) -> Float[Array, "b oh ow c"]:
    return network(params, preprocess(images.astype(jnp.float32)))
