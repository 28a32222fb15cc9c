"""A folder of images -> a gallery: what is new or changed is decoded and described, what vanished is removed.

A file is looked at again where its size or time of modification differs from what the gallery says, and decoded where
its content (SHA-256) is new. Two threads read and decode while the device computes; every batch is one transaction.
"""

import hashlib
import io
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fgis.errors import UserError
from fgis.features.description import Extractor, Settings, fit_image
from fgis.features.images import to_rgb
from fgis.gallery.pictures import Box
from fgis.gallery.scan import PLUGIN, ImageFile, Scan, register_plugins
from fgis.gallery.store import Content, ImageRecord, Store
from fgis.gallery.tiles import Tiles, window_boxes

THUMBNAIL = 320  # pixels, the longer side
QUALITY, EFFORT = 78, 2  # of WebP; more effort takes longer than describing the image
DECODING_THREADS = 2
AHEAD = 2  # batches that are decoded ahead of the one that is computed
TAKEN, MODIFIED, EXIF = 0x9003, 0x0132, 0x8769  # tags of EXIF


class Indexed(NamedTuple):
    """What ``index_folder`` did."""

    images: int  # in the gallery now
    added: int  # under a new name, with a content that the gallery did not hold
    changed: int  # under a known name, with another content
    moved: int  # under a new name, with a content that was there: moved, renamed or copied
    removed: int  # names that are gone, also by moving
    decoded: int  # files that were decoded and described
    bad: tuple[tuple[str, str], ...]  # (image id, reason) of the files that cannot be used
    seconds: float


class Read(NamedTuple):
    """What became of one file; ``pixels`` is None where its content was kept already, or where it is bad."""

    file: ImageFile
    sha256: str = ""
    size: tuple[int, int] = (0, 0)  # width, height
    taken: str = ""
    thumbnail: bytes = b""
    pixels: tuple[np.ndarray, ...] | None = None
    boxes: Sequence[Box] = ()  # of its windows
    image: Image.Image | None = None  # the picture that these are cut from
    reason: str = ""  # why it is bad


def index_folder(
    scan: Scan,
    store: Store,
    settings: Settings,
    load: Callable[[], Extractor],
    *,
    tiles: Tiles | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Indexed:
    """Brings a gallery to the state of a folder; the caller holds its lock (``store.writing``).

    Args:
      scan: what the folder holds.
      store: of the gallery, open for writing.
      settings: how images become features.
      load: loads the network; called once, and only where something has to be described.
      tiles: how pictures are divided into windows; None: they are not.
      progress: called with (files done, files that are new or changed) after each of these.

    Returns:
      What was done.

    Raises:
      UserError: features are not finite.
    """
    began = time.perf_counter()
    held = {one.image_id: one for one in store.records()}
    before = {one.sha256 for one in held.values()}
    wanted = [file for file in scan.files if _looks_new(file, held.get(file.image_id))]
    gone = sorted({*held} - {file.image_id for file in scan.files})
    store.remove(gone)
    counts = dict.fromkeys(("added", "changed", "moved", "decoded"), 0)
    bad: list[tuple[str, str]] = []
    pending, known = list[Read](), store.contents()
    network: list[Extractor] = []

    def commit() -> None:
        if any(one.pixels for one in pending) and not network:
            network.append(load())
        _commit(store, pending, network[0] if network else None, settings)
        known.update(one.sha256 for one in pending)  # copies that come later need not be decoded
        pending.clear()

    for done, one in enumerate(_read_files(wanted, known, settings, tiles), 1):
        old = held.get(one.file.image_id)
        if one.reason:
            bad.append((_printable(one.file.image_id), one.reason))
        else:
            pending.append(one)
            kind = "moved" if one.sha256 in before else "added"
            if old is None or old.sha256 != one.sha256:
                counts["changed" if old else kind] += 1
            counts["decoded"] += one.pixels is not None
        batch = settings.batch_size * (network[0].at_once if network else 1)
        if sum(1 + len(x.boxes) for x in pending if x.pixels) >= batch or len(pending) >= 1024:
            commit()
        progress(done, len(wanted))
    commit()
    removed, seconds = len(gone) + _forget(store, bad, set(held)), time.perf_counter() - began
    return Indexed(images=store.count(), removed=removed, bad=tuple(bad), seconds=seconds, **counts)


def _forget(store: Store, bad: Sequence[tuple[str, str]], held: set[str]) -> int:
    """Removes what is broken now and was not before, and contents without an image; the number of the former."""
    broken = {image_id for image_id, _ in bad} & held
    store.remove(broken)
    store.purge(bad)
    return len(broken)


def make_thumbnail(image: Image.Image) -> bytes:
    """A WebP file whose longer side is at most ``THUMBNAIL`` pixels; small pictures keep their size."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=EFFORT)
    return buffer.getvalue()


def _looks_new(file: ImageFile, old: ImageRecord | None) -> bool:
    return old is None or (file.bytes, file.modified_ns, file.label) != (old.bytes, old.modified_ns, old.label)


def _read_files(files: Sequence[ImageFile], known: set[str], settings: Settings, tiles: Tiles | None) -> Iterator[Read]:
    """What became of each file, in order; some batches are read ahead, or one picture that has windows."""
    register_plugins()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # too large pictures are errors
    pool = ThreadPoolExecutor(DECODING_THREADS)
    coming: deque[Future[Read]] = deque()
    try:
        for file in files:
            coming.append(pool.submit(_read_file, file, known, settings, tiles))
            if len(coming) > (1 if tiles else AHEAD * settings.batch_size):
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_file(file: ImageFile, known: set[str], settings: Settings, tiles: Tiles | None) -> Read:
    """Reads one file, and decodes it where its content is not among those that are ``known``."""
    try:
        file.image_id.encode()
    except UnicodeEncodeError:
        return Read(file, reason="its name is no UTF-8; rename it")
    reason: Exception
    try:
        content = file.path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 in known:
            return Read(file, sha256)
        with Image.open(io.BytesIO(content)) as opened:
            taken = _time_of_exposure(opened)
            image = to_rgb(opened)
        boxes = window_boxes(*image.size, tiles) if tiles else []
        pixels, kept = fit_image(image, settings), image if boxes else None
        return Read(file, sha256, image.size, taken, make_thumbnail(image), pixels, boxes, kept)
    except OSError as error:
        if error.strerror:  # of the file system
            return Read(file, reason=error.strerror)
        reason = error
    except Exception as error:  # decoders raise whatever the damage leads them to
        reason = error
    text = " ".join(str(reason).split()).replace(" <_io.BytesIO object", "").partition(" at 0x")[0]
    if file.path.suffix.lower() in PLUGIN and not register_plugins():
        text = "HEIC needs the package pillow-heif (pip install pillow-heif)"
    return Read(file, reason=text[:160] or type(reason).__name__)


def _time_of_exposure(image: Image.Image) -> str:
    """``2024-05-17 10:31:00`` from EXIF; "" where that does not say."""
    try:
        exif = image.getexif()
        text = str(exif.get_ifd(EXIF).get(TAKEN) or exif.get(MODIFIED) or "")
    except Exception:  # damaged EXIF is no reason to leave the image out
        return ""
    day, _, clock = text.strip("\0 ").partition(" ")
    return f"{day.replace(':', '-')} {clock}".strip()[:19] if day[:4].isdigit() else ""


def _commit(store: Store, pending: Sequence[Read], extractor: Extractor | None, settings: Settings) -> None:
    """Describes what was decoded, with its windows, and adds everything."""
    decoded = [one for one in pending if one.pixels is not None]
    contents = []
    if decoded and extractor:
        vectors = iter(_describe_all(_pixels_of(decoded, settings), extractor, settings.batch_size))
        for one in decoded:
            vector, *tiles = (next(vectors) for _ in range(1 + len(one.boxes)))
            if not all(np.isfinite(features).all() for features in (vector, *tiles)):
                raise UserError(f"image {one.file.image_id!r}: its features are not finite; use other weights")
            contents.append(Content(one.sha256, *one.size, one.taken, one.thumbnail, vector, one.boxes, tiles))
    records = [
        ImageRecord(
            one.file.image_id, one.file.label, *one.size, one.file.bytes, one.file.modified_ns, one.sha256, one.taken
        )
        for one in pending
    ]
    if records:
        store.add(records, contents)


def _pixels_of(decoded: Sequence[Read], settings: Settings) -> Iterator[tuple[np.ndarray, ...]]:
    """What the network takes: of each picture the whole, then each window, cut when it is its turn."""
    for one in decoded:
        assert one.pixels is not None
        yield one.pixels
        for x, y, width, height in one.boxes:
            assert one.image is not None
            yield fit_image(one.image.crop((x, y, x + width, y + height)), settings)


def _describe_all(
    pixels: Iterator[tuple[np.ndarray, ...]], extractor: Extractor, batch_size: int
) -> Iterator[np.ndarray]:
    """The features of each, in batches that are filled up to their full size: one compiled program.

    As many batches are on their way as there are devices.
    """
    waiting: deque[tuple[int, Any]] = deque()
    while (batch := list(islice(pixels, batch_size))) or waiting:
        if batch:
            filled: list[Any] = batch + [tuple(np.zeros_like(scale) for scale in batch[0])] * (batch_size - len(batch))
            waiting.append((len(batch), extractor.run(tuple(np.stack(scale) for scale in zip(*filled, strict=True)))))
        if not batch or len(waiting) == extractor.at_once:
            count, features = waiting.popleft()
            yield from np.asarray(features)[:count]


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
