"""What is known of a pretrained network without loading it, and the preprocessing that its weights want."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Apply = Callable[..., Array]  # (params, images [b, h, w, 3]) -> [b, h', w', channels], traceable
Loaded = tuple[Apply, list[np.ndarray], str]  # the network, its parameters, and the SHA-256 of its weights


class Backbone(NamedTuple):
    """One network without its classifier; the fields from ``image_size`` on are facts that the tests check."""

    load: Callable[..., Loaded]  # of the source module: (name, Backbone, weights) -> Loaded, without preprocessing
    constructor: str  # what the source calls the network, such as a function of keras.applications
    options: Mapping[str, Any]  # of the constructor
    image_size: tuple[int, int]  # (height, width) that the published weights were trained at
    preprocessing: str  # a key of PREPROCESSING
    channels: int
    stride: int  # the last feature map has about 1/stride of the input's sides
    smallest: int  # smallest side that the source accepts
    parameters: int
    weights_file: str  # as the source names it in its cache


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


PREPROCESSING: dict[str, Callable[[Array], Array]] = {"caffe": caffe, "tf": tf, "lite": lite, "none": none}
