"""One folder of images, described by several machines: each its share into a gallery of its own, then joined."""

import re
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from fgis.errors import UserError
from fgis.features.shares import Share
from fgis.gallery.scan import Scan
from fgis.gallery.store import DATABASE, Store, open_store

FOLDER = "shards"  # of a gallery; in it a gallery for each shard


def shard_folder(gallery: Path, shard: Share) -> Path:
    """Where a shard lies."""
    return gallery / FOLDER / f"{shard.number}-of-{shard.of}"


def share_of(scan: Scan, shard: Share) -> Scan:
    """The files of a shard, by their names alone: every machine divides a folder in the same way."""
    number = lambda name: zlib.crc32(name.encode(errors="replace")) % shard.of + 1
    return scan._replace(files=[one for one in scan.files if number(one.image_id) == shard.number])


def found_shards(gallery: Path) -> list[tuple[Share, Path]]:
    """The shards of a gallery, finished or not, by number.

    Raises:
      UserError: they belong to different divisions, such as 1/4 and 2/8.
    """
    found = []
    for path in sorted((gallery / FOLDER).glob("*-of-*")):
        match = re.fullmatch(r"(\d+)-of-(\d+)", path.name)
        if match and (path / DATABASE).is_file():
            found.append((Share(int(match[1]), int(match[2])), path))
    if len({shard.of for shard, _ in found}) > 1:
        names = ", ".join(path.name for _, path in found)
        raise UserError(f"{gallery / FOLDER}: shards of different divisions ({names}); remove those of one")
    return sorted(found)


def take_over(store: Store, shards: list[tuple[Share, Path]]) -> Iterator[tuple[Share, int, bool]]:
    """Copies what shards hold of contents that the gallery has not, one shard after the other.

    Yields:
      The shard, how many contents were new, and whether it had described all its files.
    """
    for shard, path in shards:
        with closing(open_store(path)) as other:
            finished = bool(other.meta("finished"))
        before = len(store.contents())
        try:
            store.copy_contents(path / DATABASE)
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: damaged ({error}); remove this shard and index it again") from error
        yield shard, len(store.contents()) - before, finished
