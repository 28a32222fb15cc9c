"""Pretrained networks by Keras on its JAX backend: one table of names, preprocessing, shapes; pooling.

Networks are built abstractly, by tracing, so nothing is computed or compiled to know a shape; weights are plain lists
of arrays that any input size shares. This is the only module that imports Keras, and it does so when first needed.
"""

import difflib
import functools
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from fgis.errors import UserError


class Backbone(NamedTuple):
    """One network without its classifier; all but the first two fields are facts that the tests check."""

    constructor: str  # in keras.applications
    options: Mapping[str, Any]
    image_size: tuple[int, int]  # (height, width) that the published weights were trained at
    preprocessing: str  # a key of PREPROCESSING
    channels: int
    stride: int  # the last feature map has about 1/stride of the input's sides
    smallest: int  # smallest side that Keras accepts
    parameters: int
    weights_file: str  # as Keras names it in its cache


BACKBONES: dict[str, Backbone] = {
    "vgg16": Backbone(
        "VGG16", {}, (224, 224), "caffe", 512, 32, 32, 14_714_688, "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    ),
    "vgg19": Backbone(
        "VGG19", {}, (224, 224), "caffe", 512, 32, 32, 20_024_384, "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
    ),
    "inception_v3": Backbone(
        "InceptionV3", {}, (299, 299), "tf", 2048, 32, 75, 21_802_784,
        "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "resnet50": Backbone(
        "ResNet50", {}, (224, 224), "caffe", 2048, 32, 32, 23_587_712,
        "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "xception": Backbone(
        "Xception", {}, (299, 299), "tf", 2048, 32, 71, 20_861_480,
        "xception_weights_tf_dim_ordering_tf_kernels_notop.h5",
    ),
    "mobilenet": Backbone(
        "MobileNet", {}, (224, 224), "tf", 1024, 32, 32, 3_228_864, "mobilenet_1_0_224_tf_no_top.h5"
    ),
    "mobilenet_075": Backbone(
        "MobileNet", {"alpha": 0.75}, (224, 224), "tf", 768, 32, 32, 1_832_976, "mobilenet_7_5_224_tf_no_top.h5"
    ),
    "mobilenet_v2": Backbone(
        "MobileNetV2", {}, (224, 224), "tf", 1280, 32, 32, 2_257_984,
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    ),
    "convnext_tiny": Backbone(
        "ConvNeXtTiny", {}, (224, 224), "none", 768, 32, 32, 27_820_128, "convnext_tiny_notop.h5"
    ),
    "convnext_base": Backbone(
        "ConvNeXtBase", {}, (224, 224), "none", 1024, 32, 32, 87_566_464, "convnext_base_notop.h5"
    ),
    "efficientnet_v2_s": Backbone(
        "EfficientNetV2S", {}, (384, 384), "none", 1280, 32, 32, 20_331_360, "efficientnetv2-s_notop.h5"
    ),
    "efficientnet_v2_b0": Backbone(
        "EfficientNetV2B0", {}, (224, 224), "none", 1280, 32, 32, 5_919_312, "efficientnetv2-b0_notop.h5"
    ),
}  # fmt: skip


def caffe(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB in 0..255 -> BGR less the mean colour of ImageNet, unscaled."""
    return x[..., ::-1] - jnp.array([103.939, 116.779, 123.68], x.dtype)


def tf(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB in 0..255 -> [-1, 1]."""
    return x / 127.5 - 1.0


def none(x: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """RGB in 0..255 as it is: the network begins with layers that scale it."""
    return x


PREPROCESSING: dict[str, Callable] = {"caffe": caffe, "tf": tf, "none": none}


def average(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Mean over positions."""
    return x.mean((1, 2))


def maximum(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """Maximum over positions."""
    return x.max((1, 2))


def gem(x: Float[Array, "b h w c"], p: float = 3.0) -> Float[Array, "b c"]:
    """Generalised mean over positions, mean(max(x, 1e-6)^p)^(1/p) (Radenovic et al., 2018)."""
    x = jnp.maximum(x, 1e-6)
    # Divided by the maximum first: cubes of features above 1e12 or below 1e-13 would leave float32.
    top = x.max((1, 2), keepdims=True)
    return top[:, 0, 0] * ((x / top) ** p).mean((1, 2)) ** (1 / p)


def spatial(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Every position, unpooled, as the published experiment stores them."""
    return x


POOLINGS: dict[str, Callable] = {"avg": average, "max": maximum, "gem": gem, "spatial": spatial}


def sum_normalised(scales: tuple[Float[Array, "b c"], ...]) -> Float[Array, "b c"]:
    """Multi-scale features: the sum over scales of x / ||x||_2; a zero vector counts as zero."""
    norms = [jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in scales]
    return jnp.sum(jnp.stack([x / norm for x, norm in zip(scales, norms, strict=True)]), axis=0)


def find_backbone(name: str) -> Backbone:
    """Look up a backbone; an unknown name is a UserError that names the nearest."""
    if name not in BACKBONES:
        near = difflib.get_close_matches(str(name).lower(), BACKBONES, 1, 0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"config.features.backbone: {name!r} is unknown; {hint}take one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


def load_backbone(name: str, weights: str) -> tuple[Callable, list[np.ndarray], str]:
    """Return (apply, params, weights_sha256) of a network.

    ``apply(params, images [b, h, w, 3] RGB 0..255, any number type) -> [b, h', w', channels]`` is traceable, includes
    the preprocessing and accepts any size of at least ``BACKBONES[name].smallest``. ``weights`` is ``imagenet`` (from
    Keras's cache, else fetched by Keras), ``none`` (seeded random values, for tests) or the path of a weights file
    that Keras can load. The digest is that of the file, or of the values where there is no file.
    """
    backbone = find_backbone(name)
    model = build_model(name, backbone.image_size)
    if weights == "none":
        params = _random_weights(model)
        digest = hashlib.sha256(b"".join(p.tobytes() for p in params)).hexdigest()
    else:
        path = _imagenet_file(name) if weights == "imagenet" else Path(weights)
        if not path.is_file():
            raise UserError(
                f"config.features.weights: no file {weights}; name a Keras weights file of {name}, 'imagenet' or 'none'"
            )
        params = _read_weights(name, model, path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return functools.partial(_apply, name), params, digest


def build_model(name: str, image_size: tuple[int, int]) -> Any:
    """Return the Keras model for one input size with abstract weights: shapes and names, no values, no compilation."""
    models: list[Any] = []
    jax.eval_shape(lambda: models.append(_construct(name, image_size)))
    return models[0]


def _construct(name: str, image_size: tuple[int, int], weights: str | None = None) -> Any:
    backbone = find_backbone(name)
    with warnings.catch_warnings():
        # Keras warns that published weights have another input size; convolutions do not depend on it.
        warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
        constructor = getattr(_keras().applications, backbone.constructor)
        return constructor(weights=weights, include_top=False, input_shape=(*image_size, 3), **backbone.options)


def _apply(name: str, params: list[Array], images: Shaped[Array, "b h w 3"]) -> Float[Array, "b oh ow c"]:
    # Built inside the caller's trace, since Keras's own preprocessing layers make constants that belong to a trace.
    model = _construct(name, (images.shape[1], images.shape[2]))
    values = {id(variable): value for variable, value in zip(model.weights, params, strict=True)}

    def fill(
        variables: list[Any],
    ) -> list[Any]:  # states of dropout's generators are no weights, and nothing reads them
        return [values.get(id(v), np.zeros(v.shape, v.dtype)) for v in variables]

    x = PREPROCESSING[BACKBONES[name].preprocessing](images.astype(jnp.float32))
    with jax.default_matmul_precision("float32"):  # accelerators would else round to fewer bits, differently each
        trainable, other = fill(model.trainable_variables), fill(model.non_trainable_variables)
        return model.stateless_call(trainable, other, x, training=False)[0]


def _keras() -> Any:
    """Import Keras on its JAX backend; its absence, or another backend already running, is a UserError."""
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        import keras
    except ImportError as error:
        raise UserError(
            f"config.features.backbone: Keras cannot be imported ({error}); pip install -e '.[backbones]'"
        ) from error
    if keras.backend.backend() != "jax":
        raise UserError(
            f"KERAS_BACKEND: Keras already runs on {keras.backend.backend()!r}; set KERAS_BACKEND=jax before it starts"
        )
    return keras


def _imagenet_file(name: str) -> Path:
    """Return the file of ImageNet weights in Keras's cache, which Keras fetches where it is missing."""
    file_name = BACKBONES[name].weights_file
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
    # Keras turns to the temporary directory where its home cannot be written.
    places = [home / "models", Path(tempfile.gettempdir(), ".keras", "models"), Path("/tmp/.keras/models")]
    wanted = places[0] / file_name
    found = next((place / file_name for place in places if (place / file_name).is_file()), None)
    if found is None:
        try:  # under a trace: Keras's own code fetches and verifies the file; the values it assigns are thrown away
            jax.eval_shape(lambda: [_construct(name, BACKBONES[name].image_size, "imagenet")][:0])
        except Exception as error:  # Keras raises bare Exception for a failed fetch, ValueError for a bad checksum
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"config.features.weights: 'imagenet' weights of {name} cannot be fetched ({reason}); put "
                f"{file_name} at {wanted}, or give the path of a weights file instead of 'imagenet'"
            ) from error
        found = next((place / file_name for place in places if (place / file_name).is_file()), wanted)
    return found


def _read_weights(name: str, model: Any, path: Path) -> list[np.ndarray]:
    """Load a Keras weights file into the abstract model and return its values; any misfit is a UserError."""
    try:
        model.load_weights(str(path))
        if any(isinstance(variable.value, jax.core.Tracer) for variable in model.weights):
            raise ValueError("the file does not hold every weight")
    except Exception as error:  # h5py and Keras raise OSError, ValueError, KeyError and more for what is one problem
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"config.features.weights: {path} does not load as weights of {name} without its classifier ({reason}); "
            "remove it if it is a damaged download, or name the right file"
        ) from error
    return [np.asarray(variable.value) for variable in model.weights]


def _random_weights(model: Any) -> list[np.ndarray]:
    """Seeded weights for tests: kernels normal with variance 2 / fan-in, scales and variances 1, the rest 0."""
    generator = np.random.default_rng(0)
    values = []
    for variable in model.weights:
        shape, leaf = tuple(variable.shape), variable.path.rsplit("/", 1)[-1]
        if len(shape) > 1:
            fan_in = np.prod(shape[:-2]) if len(shape) == 4 and shape[-1] == 1 else np.prod(shape[:-1])
            value = generator.standard_normal(shape) * np.sqrt(2 / fan_in)
        else:
            value = np.full(shape, float(leaf in ("gamma", "moving_variance")))
        values.append(value.astype(np.float32))
    return values
