"""What is known of a pretrained network without loading it, and the preprocessing that its weights want."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Apply = Callable[..., Any]  # (params, images [b, h, w, 3]) -> [b, h', w', channels], traceable
Loaded = tuple[Apply, list[np.ndarray], str]  # the network, its parameters, and the SHA-256 of its weights


class Backbone(NamedTuple):
    """One network without its classifier; the fields from ``image_size`` on are facts that the tests check."""

    load: Callable[..., Loaded]  # of the source module: (name, Backbone, weights) -> Loaded, without preprocessing
    constructor: str  # what the source calls the network, such as a function of keras.applications
    options: Mapping[str, Any]  # of the constructor
    image_size: tuple[int, int]  # (height, width) that the published weights were trained at
    preprocessing: str  # a key of PREPROCESSING
    channels: int
    stride: int  # the last feature map has about 1/stride of the input's sides; 0: one place, whatever the size
    smallest: int  # smallest side that the source accepts
    parameters: int
    weights_file: str  # as the source names it in its cache, or the repository of the hub that holds it
    multiple: int = 1  # sides of images are multiples of so many pixels
    has_token: bool = False  # the network sums an image up by itself: pooling "token"
    on_host: bool = False  # whether it runs outside of JAX, on images as they are


def caffe(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB in 0..255 -> BGR less the mean colour of ImageNet, unscaled."""
    return x[..., ::-1] - jnp.array([103.939, 116.779, 123.68], x.dtype)


def tf(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB in 0..255 -> [-1, 1]."""
    return x / 127.5 - 1.0


def lite(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB in 0..255 -> about [-1, 1]."""
    return (x - 127.0) / 128.0


def none(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB in 0..255 as it is: the network begins with layers that scale it."""
    return x


def imagenet(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB in 0..255 -> [0, 1], less the mean colour of ImageNet, over the deviation of its colours."""
    return (x / 255 - jnp.array([0.485, 0.456, 0.406], x.dtype)) / jnp.array([0.229, 0.224, 0.225], x.dtype)


def clip(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB in 0..255 -> [0, 1], less the mean colour of CLIP's images, over the deviation of their colours."""
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    return (x / 255 - jnp.array(mean, x.dtype)) / jnp.array(deviation, x.dtype)


PREPROCESSING: dict[str, Callable[[Array], Array]] = {
    "caffe": caffe, "tf": tf, "lite": lite, "imagenet": imagenet, "clip": clip, "none": none,
}  # fmt: skip
