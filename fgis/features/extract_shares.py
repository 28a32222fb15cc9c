"""Extraction over many machines: each writes the feature file of its share, and these are joined."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from fgis.base import FeatureSet
from fgis.errors import UserError
from fgis.features import store
from fgis.features.backbones.classical import lacks_vocabulary
from fgis.features.collection import Collection, fingerprint, take_rows
from fgis.features.description import Settings
from fgis.features.extract import Extraction, extract
from fgis.features.shares import Share

SHARE_NAME = re.compile(r"(?P<stem>.*)\.(?P<number>\d+)-of-(?P<of>\d+)(?P<suffix>\.[^.]*)?")


def share_path(path: str | Path, share: Share) -> Path:
    """The feature file of a share, beside the whole one.

    >>> str(share_path("features/mine.h5", Share(2, 8)))
    'features/mine.2-of-8.h5'
    """
    path = Path(path).expanduser()
    return path.with_name(f"{path.stem}.{share.number}-of-{share.of}{path.suffix}")


def share_rows(images: int, share: Share, batch_size: int) -> Int[np.ndarray, " m"]:
    """The rows of a share: consecutive whole batches, so that every image is described beside the same others.

    Args:
      images: in the collection.
      share: which.
      batch_size: images that the network takes at a time.

    Returns:
      [m] rows; none where there are more shares than batches.

    >>> [share_rows(10, Share(number, 2), 4).tolist() for number in (1, 2)]
    [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    """
    batches = -(-images // batch_size)
    first, end = (batches * step // share.of * batch_size for step in (share.number - 1, share.number))
    return np.arange(first, min(end, images))


def found_shares(path: str | Path) -> list[Share]:
    """The shares that lie beside a feature file, finished or begun, by number.

    Raises:
      UserError: they belong to different divisions, such as 1/4 and 2/8.
    """
    path, found = Path(path).expanduser(), set()
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    for name in names:
        match = SHARE_NAME.fullmatch(name.removesuffix(".journal.partial"))
        if match and (match["stem"], match["suffix"] or "") == (path.stem, path.suffix):
            found.add(Share(int(match["number"]), int(match["of"])))
    if len({share.of for share in found}) > 1:
        listed = ", ".join(share_path(path, share).name for share in sorted(found))
        raise UserError(f"{path}: shares of different divisions beside it ({listed}); remove those of one")
    return sorted(found)


def extract_share(
    collection: Collection,
    path: str,
    settings: Settings,
    share: Share,
    *,
    devices: Sequence[jax.Device] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = print,
) -> Extraction:
    """Write the feature file of one share, as ``extract`` does, at ``share_path(path, share)``.

    Raises:
      ValueError: as ``extract``.
      UserError: as ``extract``, or the share holds no image.
    """
    rows = share_rows(len(collection.labels), share, settings.batch_size)
    target = str(share_path(path, share))
    if not len(rows):
        raise UserError(
            f"{target}: would hold none of {len(collection.labels)} images, which are shared out in batches of "
            f"{settings.batch_size}; write fewer shards"
        )
    if lacks_vocabulary(settings.backbone, settings.weights):
        raise UserError(f"{settings.weights}: no vocabulary, and a share learns none; extract some images whole first")
    return extract(take_rows(collection, rows), target, settings, devices=devices, progress=progress, say=say)


def extract_joined(
    collection: Collection,
    path: str,
    settings: Settings,
    *,
    devices: Sequence[jax.Device] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
    say: Callable[[str], None] = print,
) -> Extraction:
    """Write the features of a collection from the shares beside ``path``; what they lack is described first.

    Where there is no share, or ``path`` exists, this is ``extract``. The features are those of one extraction bit for
    bit where all machines compute alike, unless only some shares hold a value beyond float16: then all are float32,
    and those of the other shares are rounded to float16. The shares stay, and may be removed afterwards.

    Raises:
      ValueError: as ``extract``.
      UserError: as ``extract``, shares of different divisions, or of different weights.
    """
    shares = [] if os.path.isfile(os.path.expanduser(path)) else found_shares(path)
    if not shares:
        return extract(collection, path, settings, devices=devices, progress=progress, say=say)
    parts, done = [], 0
    everyone = [Share(number, shares[0].of) for number in range(1, shares[0].of + 1)]
    everyone = [one for one in everyone if len(share_rows(len(collection.labels), one, settings.batch_size))]
    for share in everyone:
        if not share_path(path, share).is_file():
            say(f"shard {share.number}/{share.of}: not finished; what it lacks is described here")
        advance = lambda now, total, before=done: progress(before + now, len(collection.labels))
        one = extract_share(collection, path, settings, share, devices=devices, progress=advance, say=say)
        parts.append(one)
        done += len(share_rows(len(collection.labels), share, settings.batch_size))
    _join([part.path for part in parts], path, collection)
    skipped = tuple(image_id for part in parts for image_id in part.skipped)
    images = sum(part.images for part in parts)
    say(f"{path}: {images} images of {len(parts)} shares joined")
    return Extraction(path, images, skipped, sum(part.resumed for part in parts), sum(part.seconds for part in parts))


def _join(parts: list[str], path: str, collection: Collection) -> None:
    """Write one feature file of the rows of several, one after the other."""
    opened = [store.open_rows(part) for part in parts]
    first = opened[0]
    for part, rows in zip(parts, opened, strict=True):
        for key in ("weights_sha256", "preprocessing"):
            if rows.source.get(key) != first.source.get(key):
                raise UserError(f"{part}: was made with another {key} than {parts[0]}; remove it and extract it again")

    def join(name: str) -> Any:
        return None if getattr(first, name) is None else np.concatenate([getattr(one, name) for one in opened])

    skipped = [image_id for part in parts for image_id in store.read_skipped(part)]
    dtype = np.float32 if any(one.dtype == np.float32 for one in opened) else np.float16

    def blocks() -> Iterator[np.ndarray]:
        for one in opened:
            for start in range(0, one.shape[0], 1024):
                yield one.read(np.arange(start, min(start + 1024, one.shape[0]))).astype(dtype)

    shape = (sum(one.shape[0] for one in opened), *first.shape[1:])
    source = {**first.source, "collection_sha256": fingerprint(collection), "skipped": len(skipped)}
    source.pop("complete", None)
    with suppress(FileNotFoundError):
        os.unlink(f"{os.path.expanduser(path)}.journal.partial")  # of an extraction of the whole, begun and given up
    whole = FeatureSet(
        features=store.Blocks(shape, dtype, blocks()),
        labels=join("labels"),
        image_ids=join("image_ids"),
        source=source,
        coarse=join("coarse"),
        label_names=collection.label_names,
        is_query=join("is_query"),
    )
    store.write_features(path, whole, {"skipped_image_ids": np.array(skipped)} if skipped else None)
