"""Images -> feature file: decode, run the backbone, store; batched, resumable, atomic.

Two threads decode the next batch while the device computes this one. Finished batches are kept in ``PATH.partial``
(``journal.py``); a killed run continues after the last of them and ends with the same bytes, since every batch holds
the same images and runs through the same compiled program.
"""

import importlib.metadata
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import Image

from fgis.errors import UserError
from fgis.features import backbones, journal, store
from fgis.features.collection import Collection, fingerprint
from fgis.features.lowering import lower_convolutions

DECODING_THREADS = 2
CACHED_PIXELS = 2 * 224 * 224  # on a CPU, networks run over so many pixels at a time: more would leave the caches
FILL = (124, 116, 104)  # the mean colour of ImageNet: close to 0 after any preprocessing
Decoded = tuple[np.ndarray, ...] | Exception  # one array per scale, or why the image is bad


class Extraction(NamedTuple):
    """What ``extract`` did: the file, its number of images, the ids left out, the images found done, the seconds."""

    path: str
    images: int
    skipped: tuple[str, ...]
    resumed: int
    seconds: float


class Extractor(NamedTuple):
    """A backbone with its pooling, ready to run."""

    run: Callable[[tuple[np.ndarray, ...]], jax.Array]  # one uint8 [b, h, w, 3] per scale -> [b, ...] float32
    shape: tuple[int, ...]  # of one image's features
    source: Mapping[str, Any]  # attributes of the feature file


def squash(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize to exactly (height, width), whatever the aspect."""
    return image.resize(size[::-1], Image.Resampling.BILINEAR)


def pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize the whole image into (height, width), aspect kept, and fill the rest with ImageNet's mean colour."""
    scale = min(size[0] / image.height, size[1] / image.width)
    height, width = (max(1, min(s, round(x * scale))) for s, x in zip(size, (image.height, image.width), strict=True))
    canvas = Image.new("RGB", size[::-1], FILL)
    canvas.paste(squash(image, (height, width)), ((size[1] - width) // 2, (size[0] - height) // 2))
    return canvas


def crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Cut the largest centred part with the aspect of (height, width), and resize it to that."""
    scale = max(size[0] / image.height, size[1] / image.width)
    height, width = size[0] / scale, size[1] / scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return image.resize(size[::-1], Image.Resampling.BILINEAR, (left, top, left + width, top + height))


FITS: dict[str, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {"squash": squash, "pad": pad, "crop": crop}
ON_BAD_IMAGE = ("stop", "skip")


def check_settings(backbone: str, image_size: Any, fit: str, pooling: str, on_bad_image: str = "stop") -> None:
    """Refuse settings that cannot work, by a UserError that names the key; needs no Keras, so it is quick."""
    found = backbones.find_backbone(backbone)
    for key, value, table in (("fit", fit, FITS), ("pooling", pooling, backbones.POOLINGS)):
        if value not in table:
            raise UserError(f"config.features.{key}: {value!r} is unknown; take one of {', '.join(table)}")
    if on_bad_image not in ON_BAD_IMAGE:
        raise UserError(
            f"config.features.on_bad_image: {on_bad_image!r} is unknown; take one of {', '.join(ON_BAD_IMAGE)}"
        )
    try:
        sizes = store.scales(image_size)
    except (TypeError, ValueError):
        sizes = ()
    if not sizes or min(min(size) for size in sizes) < found.smallest:
        raise UserError(
            f"config.features.image_size: {image_size!r}; give (height, width) or a list of such, "
            f"at least {found.smallest} each for {backbone}"
        )
    if len(sizes) > 1 and pooling == "spatial":
        raise UserError("config.features.pooling: 'spatial' maps of several image sizes cannot be summed; pool them")


def load_extractor(backbone: str, weights: str, image_size: Any, fit: str, pooling: str) -> Extractor:
    """Load a backbone and compile nothing yet: ``run`` compiles once per batch size.

    With several sizes, each scale's pooled features are divided by their Euclidean norm, then summed.
    """
    check_settings(backbone, image_size, fit, pooling)
    sizes = store.scales(image_size)
    apply, params, digest = backbones.load_backbone(backbone, weights)

    def features(params: list[jax.Array], scales: tuple[jax.Array, ...]) -> jax.Array:
        pooled = tuple(backbones.POOLINGS[pooling](apply(params, images)) for images in scales)
        return pooled[0] if len(pooled) == 1 else backbones.sum_normalised(pooled)

    on_cpu = jax.default_backend() == "cpu"
    compiled = jax.jit(_in_small_batches(lower_convolutions(features)) if on_cpu else features)
    one = tuple(jax.ShapeDtypeStruct((1, *size, 3), np.uint8) for size in sizes)
    shape = jax.eval_shape(features, params, one).shape[1:]
    on_device = jax.device_put(params)
    source = {
        "fgis_version": _version("fgis"),
        "backbone": backbone,
        "weights": store.weights_label(weights),
        "weights_sha256": digest,
        "preprocessing": backbones.BACKBONES[backbone].preprocessing,
        "image_size": sizes[0] if len(sizes) == 1 else sizes,
        "fit": fit,
        "pooling": pooling,
        "decoder": "pillow",
        "filter": "bilinear",
        "pillow_version": PIL.__version__,
    }
    return Extractor(lambda scales: compiled(on_device, scales), shape, source)


def fit_image(image: Image.Image, image_size: Any, fit: str) -> tuple[UInt8[np.ndarray, "_ _ 3"], ...]:
    """Bring one RGB image to each size: what ``Extractor.run`` takes, before stacking."""
    return tuple(np.asarray(FITS[fit](image, size)) for size in store.scales(image_size))


def extract(
    collection: Collection,
    path: str,
    *,
    backbone: str,
    weights: str = "imagenet",
    image_size: Any,
    fit: str = "squash",
    pooling: str = "avg",
    on_bad_image: str = "stop",
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = print,
) -> Extraction:
    """Write the features of a collection to ``path``, resuming what an earlier run with the same arguments left.

    Features are float16 where all of them fit, else float32. ``progress(done, total)`` counts images after each batch;
    ``say`` gets each sentence worth printing. A finished file with the same settings is left alone; one with other
    settings is a UserError, as are a bad image under ``on_bad_image="stop"``, weights that cannot be had, and features
    that are not finite. Under ``"skip"`` bad images are left out and listed in the dataset ``skipped_image_ids``.
    """
    began = time.perf_counter()
    check_settings(backbone, image_size, fit, pooling, on_bad_image)
    if not path:
        raise UserError("config.features.path: empty means the bundled file, which is only read; name a file to write")
    digest = fingerprint(collection)
    asked = {
        "collection": collection.name, "backbone": backbone, "weights": weights, "image_size": image_size, "fit": fit,
        "pooling": pooling,
    }  # fmt: skip
    if os.path.isfile(path):
        return _finished(path, asked, digest, on_bad_image, say, began)
    _require_writable(path)
    extractor = load_extractor(backbone, weights, image_size, fit, pooling)
    source = {**extractor.source, "collection": collection.name, "collection_sha256": digest}
    header = json.loads(json.dumps({**source, "backend": jax.default_backend(), "jax": jax.__version__}))
    partial = f"{path}.partial"
    with journal.open_journal(partial, header, extractor.shape, batch_size) as log:
        resumed = min(len(log.good) * batch_size, len(collection.labels))
        if resumed:
            say(f"{path}: resumed at image {resumed} of {len(collection.labels)}")
        _stop_on_bad(collection, log.good, on_bad_image)
        start = len(log.good)
        batches = decoded_batches(collection, batch_size, start, lambda image: fit_image(image, image_size, fit))
        for number, images in enumerate(batches, start):
            _append_batch(log, extractor, collection, number, images, on_bad_image, say)
            progress(min((number + 1) * batch_size, len(collection.labels)), len(collection.labels))
        count, skipped = _write(path, log, collection, source)
        os.unlink(partial)
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


def decoded_batches(
    collection: Collection, batch_size: int, start: int, fit: Callable[[Image.Image], tuple[np.ndarray, ...]]
) -> Iterator[list[Decoded]]:
    """Yield the images of each batch from number ``start`` on, the next batch being decoded meanwhile."""

    def decode(row: int) -> Decoded:
        try:
            return fit(collection.read(row))
        except Exception as error:  # decoders raise whatever the damage leads them to; the caller names the image
            return error

    total = len(collection.labels)
    batches = [range(first, min(first + batch_size, total)) for first in range(start * batch_size, total, batch_size)]
    pool = ThreadPoolExecutor(DECODING_THREADS)
    try:
        coming: list[Future[Decoded]] = [pool.submit(decode, row) for row in batches[0]] if batches else []
        for number in range(len(batches)):
            images = [future.result() for future in coming]
            coming = [pool.submit(decode, row) for row in batches[number + 1]] if number + 1 < len(batches) else []
            yield images
    finally:
        pool.shutdown(cancel_futures=True)


def _append_batch(
    log: journal.Journal, extractor: Extractor, collection: Collection, number: int, images: Sequence[Decoded],
    on_bad_image: str, say: Callable[[str], None],
) -> None:  # fmt: skip
    """Run one batch, padded to its full size with black images, and append it to the journal."""
    first = number * log.rows
    good = np.zeros(log.rows, bool)
    blank = next((tuple(np.zeros_like(s) for s in image) for image in images if not isinstance(image, Exception)), None)
    for offset, image in enumerate(images):
        if isinstance(image, Exception):
            reason = " ".join(str(image).split())[:120] or type(image).__name__
            if on_bad_image == "stop":
                raise _bad_image(str(collection.image_ids[first + offset]), reason) from image
            say(f"image {str(collection.image_ids[first + offset])!r} left out: {reason}")
        good[offset] = not isinstance(image, Exception)
    features = np.zeros((log.rows, *log.shape), np.float32)
    if blank is not None:
        padded = [blank if isinstance(image, Exception) else image for image in images]
        padded += [blank] * (log.rows - len(padded))
        features = np.asarray(extractor.run(tuple(np.stack(scale) for scale in zip(*padded, strict=True))))
    finite = np.isfinite(features.reshape(log.rows, -1)).all(1) | ~good
    if not finite.all():
        image_id = str(collection.image_ids[first + int(np.argmin(finite))])
        raise UserError(f"config.features.weights: features of image {image_id!r} are not finite; use other weights")
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
        raise UserError(
            f"config.features.images: none of {len(kept)} images can be read, {skipped[0]!r} first; mend them"
        )
    dtype = np.float16 if largest <= float(np.finfo(np.float16).max) else np.float32
    blocks = (features[good].astype(dtype) for features, good in journal.records(log))
    extras = {"skipped_image_ids": np.array(skipped)} if skipped else {}
    if collection.coarse is not None:
        extras["coarse"] = collection.coarse[kept]
    shape = (int(kept.sum()), *log.shape)
    attributes = {**source, "skipped": len(skipped)}
    ids, labels = collection.image_ids[kept], collection.labels[kept]
    store.write_stream(path, shape, dtype, blocks, ids, labels, attributes, extras)
    return shape[0], skipped


def _finished(
    path: str, asked: Mapping[str, Any], digest: str, on_bad_image: str, say: Callable[[str], None], began: float
) -> Extraction:
    """Accept a finished file of the same work, and refuse any other."""
    held = store.load_features(path)
    missing = [key for key in (*store.CHECKED, "collection_sha256") if key not in held.source]
    if missing:
        raise UserError(
            f"config.features.path={path}: does not say which {missing[0]} it was made with; remove it or name another"
        )
    store.check_features(held, path, asked)
    if held.source["collection_sha256"] != digest:
        raise UserError(
            f"config.features.path={path}: its {len(held.labels)} images or labels are not those of "
            "config.features.images; remove it or name another"
        )
    skipped = store.read_skipped(path)
    if skipped and on_bad_image == "stop":
        raise _bad_image(skipped[0], f"left out of {path} by an earlier run")
    Path(f"{path}.partial").unlink(missing_ok=True)  # a run was killed between its last two steps
    say(f"{path}: already finished, {len(held.labels)} images; remove the file to extract again")
    return Extraction(path, len(held.labels), skipped, len(held.labels), time.perf_counter() - began)


def _stop_on_bad(collection: Collection, good: Sequence[np.ndarray], on_bad_image: str) -> None:
    """Under "stop", refuse to resume what an earlier run did under "skip" with a bad image in it."""
    flags = np.concatenate([*good, np.zeros(0, bool)])[: len(collection.labels)]
    if on_bad_image == "stop" and not flags.all():
        raise _bad_image(str(collection.image_ids[int(np.argmin(flags))]), "left out by the run that this one resumes")


def _bad_image(image_id: str, reason: str) -> UserError:
    return UserError(
        f"config.features.images: image {image_id!r} cannot be used ({reason}); mend or remove it, "
        "or leave bad images out with config.features.on_bad_image=skip"
    )


def _require_writable(path: str) -> None:
    folder = Path(path).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"config.features.path: cannot write {path} ({error.strerror}); name another place") from error
    if not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise UserError(f"config.features.path: cannot write {path}; name a file in a folder that you may write to")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0"
