"""Images -> feature file: decode, run the backbone, store; batched, resumable, atomic.

Two threads decode the next batch while the device computes this one. Finished batches are kept in a journal beside the
file, ``PATH.journal.partial``; a killed run continues after the last of them and ends with the same bytes, since every
batch holds the same images and runs through the same compiled program.
"""

import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import PIL
from jaxtyping import Float, UInt8
from PIL import Image

from fgis.base import FeatureSet
from fgis.errors import UserError
from fgis.features import journal, store
from fgis.features.backbones import BACKBONES, find_backbone, load_backbone
from fgis.features.collection import Collection, Decoded, decoded_batches, fingerprint
from fgis.features.images import FITS
from fgis.features.lowering import lower_convolutions
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


class Extraction(NamedTuple):
    """What ``extract`` did."""

    path: str
    images: int  # in the file
    skipped: tuple[str, ...]  # ids of the images left out
    resumed: int  # images that an earlier run had done
    seconds: float


class Extractor(NamedTuple):
    """A backbone with its pooling, ready to run."""

    run: Callable[[tuple[np.ndarray, ...]], jax.Array]  # one uint8 [b, h, w, 3] per image size -> [b, ...] float32
    find_shape: Callable[[], tuple[int, ...]]  # of one image's features; a function, since it traces the network
    source: Mapping[str, Any]  # attributes of the feature file


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
    sizes = store.image_sizes(settings.image_size)
    if min(min(size) for size in sizes) < backbone.smallest:
        raise ValueError(
            f"image_size: {settings.image_size!r} found; write sides of at least {backbone.smallest} for "
            f"{settings.backbone}"
        )
    if len(sizes) > 1 and settings.pooling == "spatial":
        raise ValueError("pooling: 'spatial' maps of several image sizes cannot be summed; pool them")


def load_extractor(settings: Settings) -> Extractor:
    """Load a backbone; nothing is compiled yet, and ``run`` compiles once per batch size.

    With several image sizes, the pooled features at each are divided by their Euclidean norm, then summed.

    Args:
      settings: ``on_bad_image`` and ``batch_size`` are not needed.

    Returns:
      The function that runs it, the shape of its features, and what a feature file says of them.

    Raises:
      ValueError: as ``check_settings`` and ``load_backbone``.
      UserError: as ``load_backbone``.
    """
    check_settings(settings)
    sizes = store.image_sizes(settings.image_size)
    apply, params, digest = load_backbone(settings.backbone, settings.weights)

    def features(params: list[jax.Array], scales: tuple[jax.Array, ...]) -> jax.Array:
        pooled = tuple(POOLINGS[settings.pooling](apply(params, images)) for images in scales)
        return pooled[0] if len(pooled) == 1 else sum_normalised(pooled)

    on_cpu = jax.default_backend() == "cpu"
    compiled = jax.jit(_in_small_batches(lower_convolutions(features)) if on_cpu else features)
    one = tuple(jax.ShapeDtypeStruct((1, *size, 3), np.uint8) for size in sizes)
    on_device = jax.device_put(params)
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
    }
    find_shape = lambda: jax.eval_shape(features, params, one).shape[1:]
    return Extractor(lambda scales: compiled(on_device, scales), find_shape, source)


def fit_image(image: Image.Image, settings: Settings) -> tuple[UInt8[np.ndarray, "_ _ 3"], ...]:
    """Bring one RGB image to each image size: what ``Extractor.run`` takes, before stacking."""
    return tuple(np.asarray(FITS[settings.fit](image, size)) for size in store.image_sizes(settings.image_size))


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


def extract(
    collection: Collection,
    path: str,
    settings: Settings,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = print,
) -> Extraction:
    """Write the features of a collection to a file, resuming what an earlier run with the same arguments left.

    Features are float16 where all of them fit, else float32. A finished file of the same work is left alone. With
    ``on_bad_image="skip"``, images that cannot be decoded are left out and listed in the dataset ``skipped_image_ids``.

    Args:
      collection: the images.
      path: the feature file; ``~`` is expanded, folders are made.
      settings: how images become features.
      progress: called with (images done, images in all) after each batch.
      say: called with each sentence worth printing.

    Returns:
      What was done.

    Raises:
      ValueError: an argument is wrong; the message begins with ``path:`` or the name of a setting.
      UserError: ``path`` cannot be written or holds other work, an image is bad under ``on_bad_image="stop"``, no image
        is good, or features are not finite.
    """
    began = time.perf_counter()
    check_settings(settings)
    if not path:
        raise ValueError("path: empty means the bundled file, which is only read; name a file to write")
    path = os.path.expanduser(path)
    journal_path = f"{path}.journal.partial"
    if os.path.isfile(path):
        finished = _accept_finished(path, collection, settings)
        Path(journal_path).unlink(missing_ok=True)  # a run was killed between its last two steps
        say(f"{path}: already finished, {finished.images} images; remove the file to extract again")
        return finished._replace(seconds=time.perf_counter() - began)
    _require_writable(path)
    extractor = load_extractor(settings)
    source = {**extractor.source, "collection": collection.name, "collection_sha256": fingerprint(collection)}
    header = json.loads(json.dumps({**source, "backend": jax.default_backend(), "jax": jax.__version__}))
    with journal.open_journal(journal_path, header, extractor.find_shape(), settings.batch_size) as log:
        start, total = len(log.good), len(collection.labels)
        resumed = min(start * log.rows, total)
        if resumed:
            say(f"{path}: resumed at image {resumed} of {total}")
        _stop_on_bad(collection, log.good, settings)
        batches = decoded_batches(collection, log.rows, start, lambda image: fit_image(image, settings))
        for number, images in enumerate(batches, start):
            _stop_or_report(collection, number * log.rows, images, settings, say)
            _append_batch(log, extractor, collection, number, images)
            progress(min((number + 1) * log.rows, total), total)
        count, skipped = _write(path, log, collection, source)
        os.unlink(journal_path)
    say(f"{path}: {count} images" + (f", {len(skipped)} bad ones left out" if skipped else ""))
    return Extraction(path, count, skipped, resumed, time.perf_counter() - began)


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


def _stop_or_report(
    collection: Collection, first: int, images: Sequence[Decoded], settings: Settings, say: Callable[[str], None]
) -> None:
    """Raise an error about the first bad image of a batch whose first row is ``first``, or name each."""
    for image_id, image in zip(collection.image_ids[first : first + len(images)], images, strict=True):
        if isinstance(image, Exception):
            reason = " ".join(str(image).split())[:120] or type(image).__name__
            if settings.on_bad_image == "stop":
                raise _bad_image(str(image_id), reason) from image
            say(f"image {str(image_id)!r} left out: {reason}")


def _append_batch(
    log: journal.Journal, extractor: Extractor, collection: Collection, number: int, images: Sequence[Decoded]
) -> None:
    """Run one batch, with black images for bad ones and up to its full size, and append it to the journal."""
    good = np.zeros(log.rows, bool)
    good[: len(images)] = [not isinstance(image, Exception) for image in images]
    features = np.zeros((log.rows, *log.shape), np.float32)
    decoded = [image for image in images if not isinstance(image, Exception)]
    if decoded:
        blank = tuple(np.zeros_like(scale) for scale in decoded[0])
        padded = [blank if isinstance(image, Exception) else image for image in images]
        padded += [blank] * (log.rows - len(padded))
        features = np.asarray(extractor.run(tuple(np.stack(scale) for scale in zip(*padded, strict=True))))
    finite = np.isfinite(features.reshape(log.rows, -1)).all(1) | ~good
    if not finite.all():
        image_id = str(collection.image_ids[number * log.rows + int(np.argmin(finite))])
        raise UserError(f"image {image_id!r}: its features are not finite; use other weights")
    journal.append(log, features, good)


def _write(
    path: str, log: journal.Journal, collection: Collection, source: Mapping[str, Any]
) -> tuple[int, tuple[str, ...]]:
    """Turn a full journal into the feature file; return its number of images and the ids left out."""
    largest, flags = 0.0, []
    for features, good in journal.records(log):
        largest = max(largest, float(np.abs(features[good]).max(initial=0)))
        flags.append(good)
    kept = np.concatenate(flags)[: len(collection.labels)]
    skipped = tuple(str(image_id) for image_id in collection.image_ids[~kept])
    if not kept.any():
        raise UserError(f"image {skipped[0]!r}: cannot be read, nor can any of {len(kept)} images; repair them")
    dtype = np.float16 if largest <= float(np.finfo(np.float16).max) else np.float32
    count = int(kept.sum())
    parts = (features[good].astype(dtype) for features, good in journal.records(log))
    feature_set = FeatureSet(
        features=store.Blocks((count, *log.shape), dtype, parts),
        labels=collection.labels[kept],
        image_ids=collection.image_ids[kept],
        source={**source, "skipped": len(skipped)},
        coarse=None if collection.coarse is None else collection.coarse[kept],
        label_names=collection.label_names,
        is_query=None if collection.is_query is None else collection.is_query[kept],
    )
    store.write_features(path, feature_set, {"skipped_image_ids": np.array(skipped)} if skipped else None)
    return count, skipped


def _accept_finished(path: str, collection: Collection, settings: Settings) -> Extraction:
    """Accept a finished file of the same work, and refuse any other."""
    held = store.load_features(path)
    missing = [key for key in (*store.CHECKED, "collection_sha256") if key not in held.source]
    if missing:
        raise UserError(f"{path}: does not say which {missing[0]} it was made with; remove it or write to another path")
    store.check_features(held, path, {**settings._asdict(), "collection": collection.name})
    if held.source["collection_sha256"] != fingerprint(collection):
        raise UserError(
            f"{path}: its {len(held.labels)} images or labels are not those of the collection; remove it or write to "
            "another path"
        )
    # Files of earlier versions have no names, and are complete without.
    if held.label_names not in (None, collection.label_names):
        raise UserError(f"{path}: its label names are not those of the collection; remove it or write to another path")
    skipped = store.read_skipped(path)
    if skipped and settings.on_bad_image == "stop":
        raise _bad_image(skipped[0], f"left out of {path} by an earlier run")
    return Extraction(path, len(held.labels), skipped, len(held.labels), 0.0)


def _stop_on_bad(collection: Collection, good: Sequence[np.ndarray], settings: Settings) -> None:
    """Under "stop", refuse to resume what an earlier run did under "skip" with a bad image in it."""
    flags = np.concatenate([*good, np.zeros(0, bool)])[: len(collection.labels)]
    if settings.on_bad_image == "stop" and not flags.all():
        raise _bad_image(str(collection.image_ids[int(np.argmin(flags))]), "left out by the run that this one resumes")


def _bad_image(image_id: str, reason: str) -> UserError:
    return UserError(
        f"image {image_id!r}: cannot be used ({reason}); repair or remove it, or leave bad images out with "
        "on_bad_image='skip'"
    )


def _require_writable(path: str) -> None:
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); name another place") from error
    if not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise UserError(f"{path}: cannot be written; name a file in a folder that you may write to")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
