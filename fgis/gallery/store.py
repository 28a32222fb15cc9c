"""What a gallery keeps on disk: ``gallery.sqlite``, and ``gallery.lock`` while somebody writes.

Features, sizes and thumbnails belong to the content of a file (its SHA-256) and not to its name, so that files that are
moved or copied keep theirs. Every change is one transaction: a process that is killed leaves the last whole one.
"""

import json
import math
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fgis.errors import UserError
from fgis.gallery.pictures import Box
from fgis.locks import only_process

DATABASE, LOCK = "gallery.sqlite", "gallery.lock"
WAIT = 30  # seconds that a reader waits for a transaction
# SQLite's messages quote a damaged file, and Python's module takes them for UTF-8.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)
LARGEST = 1e18  # of a feature: the squares of larger ones have no finite sum
KINDS = (str, str, int, int, int, int, str, str)  # of the fields of a record
SCHEMA = """
CREATE TABLE IF NOT EXISTS images(image_id TEXT PRIMARY KEY, label TEXT, bytes INT, modified_ns INT, sha256 TEXT);
CREATE INDEX IF NOT EXISTS images_sha256 ON images(sha256);
CREATE TABLE IF NOT EXISTS contents(sha256 TEXT PRIMARY KEY, width INT, height INT, taken TEXT, vector BLOB);
CREATE TABLE IF NOT EXISTS thumbnails(sha256 TEXT PRIMARY KEY, webp BLOB);
CREATE TABLE IF NOT EXISTS tiles(sha256 TEXT, number INT, x INT, y INT, width INT, height INT, vector BLOB,
  PRIMARY KEY (sha256, number));
CREATE TABLE IF NOT EXISTS bad(image_id TEXT PRIMARY KEY, reason TEXT);
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT);
"""


class ImageRecord(NamedTuple):
    """One image file of a gallery."""

    image_id: str  # posix path below the folder that was indexed
    label: str  # the first sub-folder's name; "" for a file at the top
    width: int  # pixels of the upright picture
    height: int
    bytes: int  # size of the file
    modified_ns: int  # its time of modification
    sha256: str  # of the file's bytes
    taken: str  # EXIF time of exposure, such as 2024-05-17 10:31:00; "" where the file does not say


class Content(NamedTuple):
    """What is kept of a file's content."""

    sha256: str
    width: int
    height: int
    taken: str
    thumbnail: bytes  # WebP
    vector: np.ndarray  # features of one image, as the network gives them
    boxes: Sequence[Box] = ()  # of its windows, if it has any
    tiles: Sequence[np.ndarray] = ()  # and their features


class Store:
    """The open database of a gallery; ``open_store`` makes one. Threads may share it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        """Takes an open connection with the tables of ``SCHEMA``."""
        self._connection = connection
        self._mutex = threading.Lock()
        self.path = path

    def __enter__(self) -> "Store":
        """The store; it is closed at the end of the block."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the store."""
        self.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read in the block is of one moment, whatever another process writes meanwhile."""
        self._select("BEGIN")
        try:
            yield
        finally:
            self._select("COMMIT")

    def close(self) -> None:
        """Closes the database."""
        with self._mutex:
            self._connection.close()

    def records(self) -> list[ImageRecord]:
        """All images, by image id."""
        rows = self._select(
            "SELECT image_id, label, width, height, bytes, modified_ns, sha256, taken FROM images JOIN contents "
            "USING (sha256) ORDER BY image_id"
        )
        for row in rows:
            if not all(map(isinstance, row, KINDS)) or not row[0]:
                raise damaged(self.path, f"its entry of the image {row[0]!r}")
        return [ImageRecord(*row) for row in rows]

    def vectors(self) -> np.ndarray:
        """The features [n, ...] of all images in the order of ``records``; float16 where all of them are."""
        count = self.count()
        found: np.ndarray | None = None
        for start, block in self.vector_blocks():
            if found is None:
                found = np.empty((count, *block.shape[1:]), block.dtype)
            if block.dtype.itemsize > found.dtype.itemsize:
                found = found.astype(block.dtype)
            found[start : start + len(block)] = block
        return np.zeros((0, *self.shape), np.float16) if found is None else found

    def vector_blocks(self, size: int = 2048) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first row, features [at most ``size``, ...]) in the order of ``records``, a block at a time."""
        shape, start = self.shape, 0
        text = "SELECT image_id, vector FROM images JOIN contents USING (sha256) WHERE image_id > ? ORDER BY image_id"
        after = ""
        while rows := self._select(f"{text} LIMIT {size}", (after,)):
            yield start, self._read_vectors([blob for _, blob in rows], shape)
            start, after = start + len(rows), rows[-1][0]

    def windows(self) -> tuple[list[str], Int[np.ndarray, "m 4"], np.ndarray]:
        """(image ids [m], boxes [m, 4], features [m, ...]) of all windows, by image id and place in the picture."""
        if not self.meta("tiles"):
            return [], np.zeros((0, 4), int), np.zeros((0, *self.shape), np.float16)
        rows = self._select(
            "SELECT image_id, x, y, tiles.width, tiles.height, tiles.vector FROM images JOIN contents USING (sha256) "
            "JOIN tiles USING (sha256) ORDER BY image_id, number"
        )
        if not all(isinstance(number, int) for row in rows for number in row[1:5]):
            raise damaged(self.path, "a window that is no box")
        vectors = self._read_vectors([row[5] for row in rows], self.shape)
        boxes = np.array([row[1:5] for row in rows], int).reshape(-1, 4)
        return [row[0] for row in rows], boxes, vectors

    def count(self) -> int:
        """How many images there are."""
        return int(self._select("SELECT count(*) FROM images JOIN contents USING (sha256)")[0][0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image's features; () before there is any."""
        found = self.meta("shape") or ()
        if not isinstance(found, list | tuple) or not all(isinstance(side, int) and 0 < side < 2**31 for side in found):
            raise damaged(self.path, "the shape of its features")
        return tuple(found)

    def contents(self) -> set[str]:
        """The SHA-256 of every content that is kept."""
        return {row[0] for row in self._select("SELECT sha256 FROM contents")}

    def thumbnail(self, image_id: str) -> bytes:
        """The WebP thumbnail of an image; ``KeyError`` where there is no such image."""
        found = self._select("SELECT webp FROM thumbnails JOIN images USING (sha256) WHERE image_id = ?", (image_id,))
        if not found or not isinstance(found[0][0], bytes):
            raise KeyError(image_id)
        return found[0][0]

    def bad(self) -> list[tuple[str, str]]:
        """(image id, reason) of the files that could not be used."""
        return self._select("SELECT image_id, reason FROM bad ORDER BY image_id")

    def meta(self, key: str) -> Any | None:
        """A value in JSON's types; None where there is none."""
        found = self._select("SELECT value FROM meta WHERE key = ?", (key,))
        try:
            return json.loads(found[0][0]) if found else None
        except (ValueError, TypeError, RecursionError) as error:
            raise damaged(self.path, f"its entry {key!r}") from error

    def set_meta(self, **values: Any) -> None:
        """Sets values in JSON's types."""
        with self._change(silent=True) as cursor:
            self._write_meta(cursor, values)

    def add(self, records: Sequence[ImageRecord], contents: Sequence[Content] = ()) -> None:
        """Adds contents and images, or replaces images of the same ids, in one transaction.

        Args:
          records: images; the content of each is kept already or among ``contents``. Their sizes and times of exposure
            are those of the content.
          contents: what is new.

        Raises:
          UserError: features of a shape that differs from the gallery's, which one network cannot give.
        """
        shape = self.shape
        with self._change() as cursor:
            for one in contents:
                if shape and one.vector.shape != shape:
                    raise damaged(self.path, f"features of shape {shape}, where its network gives {one.vector.shape}")
                if not shape:
                    shape = one.vector.shape
                    self._write_meta(cursor, {"shape": shape})
                row = (one.sha256, one.width, one.height, one.taken, _to_blob(one.vector))
                cursor.execute("INSERT OR IGNORE INTO contents VALUES (?, ?, ?, ?, ?)", row)
                cursor.execute("INSERT OR IGNORE INTO thumbnails VALUES (?, ?)", (one.sha256, one.thumbnail))
                cursor.executemany(
                    "INSERT OR IGNORE INTO tiles VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [
                        (one.sha256, number, *box, _to_blob(vector))
                        for number, (box, vector) in enumerate(zip(one.boxes, one.tiles, strict=True))
                    ],
                )
            cursor.executemany(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)",
                [(one.image_id, one.label, one.bytes, one.modified_ns, one.sha256) for one in records],
            )

    def copy_contents(self, database: Path) -> None:
        """Copies the contents of another gallery that this one has not, in one transaction; images stay as they are."""
        self._select("ATTACH ? AS other", (str(database),))
        try:
            shape = self._select("SELECT value FROM other.meta WHERE key = 'shape'")
            with self._change(silent=True) as cursor:
                for table in ("contents", "thumbnails", "tiles"):
                    cursor.execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM other.{table}")
                if shape and not cursor.execute("SELECT 1 FROM meta WHERE key = 'shape'").fetchone():
                    self._write_meta(cursor, {"shape": json.loads(shape[0][0])})
        finally:
            self._select("DETACH other")

    def remove(self, image_ids: Iterable[str]) -> None:
        """Removes images, and those whose content is lost; what belongs to their contents stays until ``purge``."""
        with self._change() as cursor:
            cursor.executemany("DELETE FROM images WHERE image_id = ?", [(one,) for one in image_ids])
            kept = "SELECT 1 FROM contents WHERE contents.sha256 = images.sha256"
            cursor.execute(f"DELETE FROM images WHERE NOT EXISTS ({kept})")

    def purge(self, bad: Sequence[tuple[str, str]]) -> None:
        """Removes contents that no image has any more, and replaces the list of files that could not be used."""
        with self._change(silent=True) as cursor:
            for table in ("contents", "thumbnails", "tiles"):
                cursor.execute(f"DELETE FROM {table} WHERE sha256 NOT IN (SELECT sha256 FROM images)")
            cursor.execute("DELETE FROM bad")
            cursor.executemany("INSERT OR REPLACE INTO bad VALUES (?, ?)", bad)

    def _read_vectors(self, blobs: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
        types = {2 * math.prod(shape): np.float16, 4 * math.prod(shape): np.float32}
        if not all(isinstance(blob, bytes) and len(blob) in types for blob in blobs):
            raise damaged(self.path, f"features that are not of the shape {shape}")
        found = np.array([np.frombuffer(blob, types[len(blob)]) for blob in blobs]).reshape(-1, *shape)
        if not (np.abs(found) <= min(LARGEST, float(np.finfo(found.dtype).max))).all():
            raise damaged(self.path, "features that are not finite")
        return found

    def _select(self, text: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._mutex, self._naming_errors():
            return self._connection.execute(text, values).fetchall()

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except SQLITE_ERRORS as error:
            raise _refusal(self.path, error) from error

    @contextmanager
    def _change(self, silent: bool = False) -> Iterator[sqlite3.Cursor]:
        """One transaction; unless ``silent`` the generation is counted on, since the images are others afterwards."""
        with self._mutex, self._naming_errors(), self._connection, closing(self._connection.cursor()) as cursor:
            yield cursor
            if not silent:
                cursor.execute(
                    "INSERT INTO meta VALUES ('generation', '1') ON CONFLICT (key) DO UPDATE SET value = value + 1"
                )

    def _write_meta(self, cursor: sqlite3.Cursor, values: dict[str, Any]) -> None:
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        cursor.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)


def _to_blob(vector: np.ndarray) -> bytes:
    """float16 where that holds all numbers."""
    half = bool(np.abs(vector).max(initial=0) <= np.finfo(np.float16).max)
    return vector.astype(np.float16 if half else np.float32).tobytes()


def open_store(gallery: str | Path, create: bool = False) -> Store:
    """Opens the database of a gallery.

    Args:
      gallery: the folder of the gallery.
      create: make it where there is none.

    Raises:
      UserError: there is none and ``create`` is False, or the file is damaged.
    """
    path = Path(gallery) / DATABASE
    if not create and not path.is_file():
        raise UserError(f"{gallery}: no gallery here; index a folder of images first")
    try:
        connection = sqlite3.connect(path, timeout=WAIT, check_same_thread=False)
        if create:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.executescript(SCHEMA)
        connection.execute("SELECT count(*) FROM images, meta, contents, thumbnails, bad WHERE 0")
    except SQLITE_ERRORS as error:
        raise _refusal(Path(gallery), error) from error
    return Store(connection, Path(gallery))


def damaged(gallery: Path, reason: object) -> UserError:
    """The error about a database that holds what no gallery writes."""
    return UserError(f"{gallery / DATABASE}: damaged ({reason}); remove the folder {gallery} and index again")


def _refusal(gallery: Path, error: Exception) -> UserError:
    if isinstance(error, sqlite3.OperationalError):
        return UserError(
            f"{gallery / DATABASE}: cannot be used ({error}); look at its permissions and at the free space of the "
            "disk, or index again"
        )
    return damaged(gallery, error)


@contextmanager
def writing(gallery: str | Path) -> Iterator[None]:
    """Holds the lock of a gallery; it ends with the process, however that ends.

    Raises:
      UserError: another process holds it; the line names the process and its host. Or the folder cannot be written.
    """
    with only_process(Path(gallery) / LOCK, gallery, "is indexing it", keep=True):
        yield
