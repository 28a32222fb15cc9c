"""How an image becomes features: its size, its network or descriptor, and how the output is pooled."""

import difflib
import importlib.metadata
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import PIL
from jaxtyping import Float, UInt8
from PIL import Image

from fgis.features import store
from fgis.features.backbones import BACKBONES, find_backbone, layer_names, load_backbone, trainable_parameters
from fgis.features.backbones.backbone import Loaded
from fgis.features.backbones.classical import lacks_vocabulary
from fgis.features.images import FITS
from fgis.features.lowering import lower_convolutions
from fgis.features.pixels import join_pixels, require_divisor, shrink_image
from fgis.features.pooling import POOLINGS, sum_normalised
from fgis.ranges import Count, nearest, require

CACHED_PIXELS = 2 * 224 * 224  # on a CPU, networks run over so many pixels at a time: more would leave the caches


class Settings(NamedTuple):
    """How images become features."""

    backbone: str  # a key of BACKBONES
    image_size: Any  # (height, width), or a list of such whose features are summed
    weights: str = "imagenet"  # or "none" (random), or a file
    fit: str = "squash"  # a key of FITS
    pooling: str = "avg"  # a key of POOLINGS
    on_bad_image: Literal["stop", "skip"] = "stop"  # what to do about an image that cannot be decoded
    batch_size: Count = 32
    pixels: tuple[Count, ...] = ()  # sides of square copies of the image, kept beside the features
    shrink: Literal["mean", "max"] = "mean"  # how a copy is made
    layer: str = ""  # of the backbone, whose output is pooled; "": the last


class Extractor(NamedTuple):
    """A backbone with its pooling, ready to run."""

    run: Callable[[tuple[np.ndarray, ...]], jax.Array]  # one uint8 [b, h, w, 3] per image size -> [b, ...] float32
    find_shape: Callable[[], tuple[int, ...]]  # of one image's features; a function, since it traces the network
    source: Mapping[str, Any]  # attributes of the feature file
    at_once: int = 1  # batches that devices compute at the same time, where ``run`` is not waited for


def check_settings(settings: Settings) -> None:
    """Refuse settings that cannot work; nothing is loaded, so it is quick.

    Raises:
      ValueError: a setting is wrong; the message begins with its name and a colon.
    """
    backbone = find_backbone(settings.backbone)
    for name, value, table in (("fit", settings.fit, FITS), ("pooling", settings.pooling, POOLINGS)):
        if value not in table:
            raise ValueError(f"{name}: {value!r} is unknown; {nearest(str(value), table)}")
    require(Settings, weights=settings.weights, on_bad_image=settings.on_bad_image, batch_size=settings.batch_size)
    lacks_vocabulary(settings.backbone, settings.weights)  # refuses one that no file is named for
    sizes = store.image_sizes(settings.image_size)
    if min(min(size) for size in sizes) < backbone.smallest:
        raise ValueError(
            f"image_size: {settings.image_size!r} found; write sides of at least {backbone.smallest} for "
            f"{settings.backbone}"
        )
    if any(side % backbone.multiple for size in sizes for side in size):
        raise ValueError(
            f"image_size: {settings.image_size!r} found; write sides that are multiples of {backbone.multiple} for "
            f"{settings.backbone}"
        )
    if settings.pooling == "token" and not backbone.has_token:
        raise ValueError(f"pooling: 'token' is a vector that {settings.backbone} does not have; write 'avg'")
    if settings.pooling in ("gem", "regional", "spatial") and not backbone.stride:
        raise ValueError(
            f"pooling: {settings.pooling!r} is for maps, and {settings.backbone} gives one vector; write 'avg'"
        )
    require(Settings, pixels=settings.pixels, shrink=settings.shrink, layer=settings.layer)
    if settings.layer and settings.pooling == "token":
        raise ValueError(f"layer: {settings.layer!r} gives maps, and pooling 'token' takes none; write ''")
    if settings.pixels and settings.pooling == "spatial":
        raise ValueError("pixels: copies stand beside pooled features; write another pooling than 'spatial'")
    if settings.shrink == "max":
        for side in settings.pixels:
            require_divisor(side)
    if len(sizes) > 1 and settings.pooling == "spatial":
        raise ValueError("pooling: 'spatial' maps of several image sizes cannot be summed; pool them")


def load_extractor(settings: Settings, devices: Sequence[jax.Device] = ()) -> Extractor:
    """Load a backbone; nothing is compiled yet, and ``run`` compiles once per batch size.

    With several image sizes, the pooled features at each are divided by their Euclidean norm, then summed.

    Args:
      settings: ``on_bad_image`` and ``batch_size`` are not needed.
      devices: which take turns, batch by batch, each with a copy of the network; () for the default device.

    Returns:
      The function that runs it, the shape of its features, and what a feature file says of them.

    Raises:
      ValueError: as ``check_settings`` and ``load_backbone``.
      UserError: as ``load_backbone``.
    """
    check_settings(settings)
    sizes = store.image_sizes(settings.image_size)
    apply, params, digest = _load_network(settings)
    on_host = BACKBONES[settings.backbone].on_host

    def features(params: Any, scales: tuple[Any, ...]) -> jax.Array:
        pooled = tuple(apply(params, images) for images in scales[: len(sizes)])
        found = pooled[0] if len(pooled) == 1 else sum_normalised(pooled)
        return join_pixels(found, scales[len(sizes) :]) if settings.pixels else found

    on_cpu = jax.default_backend() == "cpu"
    compiled = features if on_host else jax.jit(_in_small_batches(lower_convolutions(features)) if on_cpu else features)
    inputs = (*sizes, *((side, side) for side in settings.pixels))
    one: Any = tuple((np.zeros if on_host else jax.ShapeDtypeStruct)((1, *size, 3), np.uint8) for size in inputs)
    copies = [jax.device_put(params, device) for device in ((None,) if on_host else devices or (None,))]
    turns = itertools.cycle(copies)
    source = {
        "fgis_version": _version("fgis"),
        "backbone": settings.backbone,
        "weights": store.weights_label(settings.weights),
        "weights_sha256": digest,
        "preprocessing": BACKBONES[settings.backbone].preprocessing,
        "image_size": sizes[0] if len(sizes) == 1 else sizes,
        "fit": settings.fit,
        "pooling": settings.pooling,
        "decoder": "pillow",
        "filter": "bilinear",
        "pillow_version": PIL.__version__,
        **({"layer": settings.layer} if settings.layer else {}),  # files of the last layer are as they always were
        **({"pixels": settings.pixels, "shrink": settings.shrink} if settings.pixels else {}),
    }
    find_shape = lambda: (features(params, one) if on_host else jax.eval_shape(features, params, one)).shape[1:]
    return Extractor(lambda scales: compiled(next(turns), scales), find_shape, source, len(copies))


def load_trainable(settings: Settings, side: int) -> tuple[Callable[..., Any], list[np.ndarray]]:
    """A backbone with its pooling as a function that can be differentiated, for images of one size.

    Args:
      settings: of the features; ``image_size`` does not count.
      side: of the images, in pixels.

    Returns:
      ``(apply, params)`` with ``apply(params, images [b, side, side, 3] in 0..255) -> features [b, f]``. The statistics
      of batch normalisation are none of ``params`` and stay as they are.

    Raises:
      ValueError: as ``check_trainable`` and ``load_backbone``.
      UserError: as ``load_backbone``.
    """
    check_trainable(settings, side)
    apply, everything, _ = _load_network(settings)
    moves = trainable_parameters(settings.backbone, len(everything))
    fixed = [None if move else jnp.asarray(leaf) for leaf, move in zip(everything, moves, strict=True)]

    def features(params: list[Any], images: Any) -> jax.Array:
        given = iter(params)
        found: jax.Array = apply([next(given) if leaf is None else leaf for leaf in fixed], images)
        return found

    params = [leaf for leaf, move in zip(everything, moves, strict=True) if move]
    return (lower_convolutions(features) if jax.default_backend() == "cpu" else features), params


def check_trainable(settings: Settings, side: int) -> None:
    """Refuses a backbone that cannot be trained on images of ``side`` × ``side`` pixels; nothing is loaded.

    Raises:
      ValueError: the message begins with ``backbone:`` or ``pixels:``.
    """
    backbone = find_backbone(settings.backbone)
    if backbone.on_host:
        raise ValueError(f"backbone: {settings.backbone!r} is no network that can be trained; name one")
    if side < backbone.smallest or side % backbone.multiple:
        of = f", in multiples of {backbone.multiple}" if backbone.multiple > 1 else ""
        raise ValueError(
            f"pixels: copies of {side} pixels found, and {settings.backbone} wants at least {backbone.smallest}{of}"
        )


def _load_network(settings: Settings) -> Loaded:
    """A backbone, up to its layer, with its pooling."""
    apply, params, digest = load_backbone(settings.backbone, settings.weights)
    if settings.layer:
        known = layer_names(settings.backbone)
        if settings.layer not in known:
            near = _nearest_layers(settings.layer, known)
            raise ValueError(f"layer: {settings.layer!r} is no layer of {settings.backbone}; {near}")
        apply = partial(apply, layer=settings.layer)
    apply = partial(apply, token=True) if settings.pooling == "token" else apply
    return lambda params, images: POOLINGS[settings.pooling](apply(params, images)), params, digest


def fit_image(image: Image.Image, settings: Settings) -> tuple[UInt8[np.ndarray, "_ _ 3"], ...]:
    """Bring one RGB image to each image size, then to each copy: what ``Extractor.run`` takes, before stacking."""
    sizes = tuple(np.asarray(FITS[settings.fit](image, size)) for size in store.image_sizes(settings.image_size))
    return (*sizes, *(shrink_image(image, side, settings.shrink) for side in settings.pixels))


def describe(extractor: Extractor, settings: Settings, image: Image.Image) -> Float[np.ndarray, "1 ..."]:
    """The features of one RGB image, as ``extract`` computes them but for the last bits of other batch sizes.

    Args:
      extractor: what ``load_extractor`` returns for ``settings``.
      settings: how images are fitted.
      image: upright, as ``read_image`` returns it.

    Returns:
      [1, ...] float32.
    """
    return np.asarray(extractor.run(tuple(scale[None] for scale in fit_image(image, settings))))


def _nearest_layers(layer: str, known: Sequence[str]) -> str:
    """What to write instead, in one line: networks have hundreds of layers."""
    if not known:
        return "only its last can be had; write ''"
    close = difflib.get_close_matches(layer, known, 4, 0.3) or known[-4:]
    return f"near it are {', '.join(close)}; '' is the last"


def _in_small_batches(features: Callable) -> Callable:
    """Run ``features`` over a few images at a time, in one compiled loop: on a CPU twice as fast as the whole batch."""

    def run(params: Any, scales: tuple[jax.Array, ...]) -> jax.Array:
        count = len(scales[0])
        most = max(1, CACHED_PIXELS // max(math.prod(images.shape[1:3]) for images in scales))
        small = max(size for size in range(1, count + 1) if count % size == 0 and size <= most)
        split = tuple(images.reshape(-1, small, *images.shape[1:]) for images in scales)
        outputs = jax.lax.map(lambda part: features(params, part), split)
        return outputs.reshape(count, *outputs.shape[2:])

    return run


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
