"""Images -> feature file: decode, run the backbone, store; batched, resumable, atomic.

Two threads decode the next batch while the device computes this one. Finished batches are kept in a journal beside the
file, ``PATH.journal.partial``; a killed run continues after the last of them and ends with the same bytes, since every
batch holds the same images and runs through the same compiled program.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fgis.base import FeatureSet
from fgis.errors import UserError
from fgis.features import description, journal, store
from fgis.features.backbones.classical import LEARNING_IMAGES, lacks_vocabulary, learn_vocabulary
from fgis.features.collection import Collection, Decoded, decoded_batches, fingerprint, take_rows
from fgis.features.description import Extractor, Settings, check_settings, fit_image
from fgis.features.newer import finished_words
from fgis.features.pixels import pixel_count, split_pixels


class Extraction(NamedTuple):
    """What ``extract`` did."""

    path: str
    images: int  # in the file
    skipped: tuple[str, ...]  # ids of the images left out
    resumed: int  # images that an earlier run had done
    seconds: float


def extract(
    collection: Collection,
    path: str,
    settings: Settings,
    *,
    devices: Sequence[jax.Device] = (),
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
      devices: which take turns, batch by batch; () for the default one. The bits are the same where devices are alike.
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
        for left in (journal_path, f"{path}.lock"):  # by a run that was killed between its last steps
            Path(left).unlink(missing_ok=True)
        say(f"{path}: {finished_words(path, collection, finished.images)}")
        return finished._replace(seconds=time.perf_counter() - began)
    _require_writable(path)
    if lacks_vocabulary(settings.backbone, settings.weights):
        _learn_vocabulary(collection, settings, say)
    extractor = description.load_extractor(settings, devices)
    source = {**extractor.source, "collection": collection.name, "collection_sha256": fingerprint(collection)}
    header = json.loads(json.dumps({**source, "backend": jax.default_backend(), "jax": jax.__version__}))
    with journal.open_journal(journal_path, header, extractor.find_shape(), settings.batch_size) as log:
        start, total = len(log.good), len(collection.labels)
        resumed = min(start * log.rows, total)
        if resumed:
            say(f"{path}: resumed at image {resumed} of {total}")
        _stop_on_bad(collection, log.good, settings)
        _fill_journal(log, extractor, collection, settings, progress, say)
        count, skipped = _write(path, log, collection, source, settings.pixels)
        os.unlink(journal_path)
    say(f"{path}: {count} images" + (f", {len(skipped)} bad ones left out" if skipped else ""))
    return Extraction(path, count, skipped, resumed, time.perf_counter() - began)


def _learn_vocabulary(collection: Collection, settings: Settings, say: Callable[[str], None]) -> None:
    """Learn the vocabulary of a description from some images of the collection; those that are bad are passed over."""
    rows = np.sort(np.random.default_rng(0).permutation(len(collection.labels))[:LEARNING_IMAGES])
    say(f"{settings.weights}: learnt from {len(rows)} of {len(collection.labels)} images")
    drawn = take_rows(collection, rows)
    fitted = decoded_batches(drawn, settings.batch_size, 0, lambda image: fit_image(image, settings))
    images = [one[0] for batch in fitted for one in batch if not isinstance(one, Exception)]
    learn_vocabulary(settings.backbone, settings.weights, images)


def _fill_journal(
    log: journal.Journal, extractor: Extractor, collection: Collection, settings: Settings,
    progress: Callable[[int, int], None], say: Callable[[str], None],
) -> None:  # fmt: skip
    """Append the batches that a journal lacks; as many are on their way as there are devices."""
    start, total = len(log.good), len(collection.labels)
    batches = decoded_batches(collection, log.rows, start, lambda image: fit_image(image, settings))
    waiting: deque[tuple[int, np.ndarray, Any]] = deque()

    def finish_batch() -> None:
        number, good, features = waiting.popleft()
        _append_batch(log, collection, number, good, np.asarray(features))
        progress(min((number + 1) * log.rows, total), total)

    for number, images in enumerate(batches, start):
        _stop_or_report(collection, number * log.rows, images, settings, say)
        waiting.append((number, *_begin_batch(log, extractor, images)))
        if len(waiting) == extractor.at_once:
            finish_batch()
    while waiting:
        finish_batch()


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


def _begin_batch(log: journal.Journal, extractor: Extractor, images: Sequence[Decoded]) -> tuple[np.ndarray, Any]:
    """Which places of a batch are good, and its features, which a device may still compute.

    Black images stand for bad ones, and fill the batch up to its full size.
    """
    good = np.zeros(log.rows, bool)
    good[: len(images)] = [not isinstance(image, Exception) for image in images]
    decoded = [image for image in images if not isinstance(image, Exception)]
    if not decoded:
        return good, np.zeros((log.rows, *log.shape), np.float32)
    blank = tuple(np.zeros_like(scale) for scale in decoded[0])
    padded = [blank if isinstance(image, Exception) else image for image in images]
    padded += [blank] * (log.rows - len(padded))
    return good, extractor.run(tuple(np.stack(scale) for scale in zip(*padded, strict=True)))


def _append_batch(
    log: journal.Journal, collection: Collection, number: int, good: np.ndarray, features: np.ndarray
) -> None:
    """Append a batch to the journal, unless a feature of a good image is not finite."""
    finite = np.isfinite(features.reshape(log.rows, -1)).all(1) | ~good
    if not finite.all():
        image_id = str(collection.image_ids[number * log.rows + int(np.argmin(finite))])
        raise UserError(f"image {image_id!r}: its features are not finite; use other weights")
    journal.append(log, features, good)


def _write(
    path: str, log: journal.Journal, collection: Collection, source: Mapping[str, Any], pixels: Sequence[int]
) -> tuple[int, tuple[str, ...]]:
    """Turn a full journal into the feature file; return its number of images and the ids left out."""
    largest, flags = 0.0, []
    width = log.shape[-1] - pixel_count(pixels) if pixels else None  # of the features alone
    for features, good in journal.records(log):
        largest = max(largest, float(np.abs(features[good][..., :width]).max(initial=0)))
        flags.append(good)
    kept = np.concatenate(flags)[: len(collection.labels)]
    skipped = tuple(str(image_id) for image_id in collection.image_ids[~kept])
    if not kept.any():
        raise UserError(f"image {skipped[0]!r}: cannot be read, nor can any of {len(kept)} images; repair them")
    dtype = np.float16 if largest <= float(np.finfo(np.float16).max) else np.float32
    count = int(kept.sum())
    shape = (count, *log.shape) if width is None else (count, width)
    parts = (features[good][..., :width].astype(dtype) for features, good in journal.records(log))
    chosen = take_rows(collection, np.flatnonzero(kept))
    feature_set = FeatureSet(
        features=store.Blocks(shape, dtype, parts),
        labels=chosen.labels,
        image_ids=chosen.image_ids,
        source={**source, "skipped": len(skipped)},
        coarse=chosen.coarse,
        label_names=collection.label_names,
        is_query=chosen.is_query,
    )
    extras: dict[str, Any] = {"skipped_image_ids": np.array(skipped)} if skipped else {}
    if pixels:
        tails = (features[good][:, width:] for features, good in journal.records(log))
        extras |= split_pixels(np.concatenate([np.rint(tail * 255).astype(np.uint8) for tail in tails]), pixels)
    store.write_features(path, feature_set, extras or None)
    return count, skipped


def _accept_finished(path: str, collection: Collection, settings: Settings) -> Extraction:
    """Accept a finished file of the same work, and refuse any other."""
    held = store.load_features(path)
    missing = [key for key in (*store.CHECKED, "collection_sha256") if key not in held.source]
    if missing:
        raise UserError(f"{path}: does not say which {missing[0]} it was made with; remove it or write to another path")
    wanted = {**settings._asdict(), "collection": collection.name}
    if settings.pixels:
        store.open_rows(path, settings.pixels)  # refuses a file without these copies
    else:
        wanted.pop("shrink")
    store.check_features(held, path, wanted)
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
