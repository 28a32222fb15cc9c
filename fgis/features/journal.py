"""The append-only sidecar of an unfinished extraction: whole batches survive a kill at any moment.

Layout: one line of JSON (the header), then records of one size: ``rows * prod(shape)`` float32 features, ``rows`` bytes
that are 1 where the image could be read, and 4 bytes of CRC-32 over both. Appending is the only way it changes; what a
kill cut short fails its length or its checksum and is cut off when the journal is opened again.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fgis.errors import UserError
from fgis.locks import only_process


class Journal(NamedTuple):
    """An open journal: where records begin, what one looks like, and the ``good`` flags of those it began with."""

    file: BinaryIO
    start: int
    shape: tuple[int, ...]  # of one image's features
    rows: int  # images in a record
    good: list[np.ndarray]  # per record, [rows] bool


@contextmanager
def open_journal(path: str, header: Mapping[str, Any], shape: tuple[int, ...], rows: int) -> Iterator[Journal]:
    """Open the journal of exactly this work, or begin it where there is none.

    Args:
      path: the journal; its folder must exist.
      header: what the work is; JSON types.
      shape: of one image's features.
      rows: images in a record.

    Yields:
      The journal, at its end; records that are not whole have been cut off.

    Raises:
      UserError: the journal has another header, or another process has it open.
    """
    line = json.dumps({**header, "shape": shape, "rows": rows}, sort_keys=True).encode() + b"\n"
    whole = path.removesuffix(".journal.partial")
    with only_process(f"{whole}.lock", whole, "is extracting into it"), open(path, "a+b") as file:
        file.seek(0)
        found = file.readline()
        if found and found.endswith(b"\n") and found != line:
            difference = _first_difference(found, line)
            raise UserError(
                f"{path}: belongs to an unfinished extraction with other settings ({difference}); finish that one, "
                "remove this file, or write the features to another path"
            )
        if found != line:  # empty, or killed while the header was written
            file.truncate(0)
            file.write(line)
        journal = Journal(file, len(line), shape, rows, [])
        while (record := _record_at(journal, len(journal.good))) is not None:
            journal.good.append(record[1])
        file.truncate(len(line) + len(journal.good) * _record_bytes(journal))
        yield journal


def append(journal: Journal, features: np.ndarray, good: np.ndarray) -> None:
    """Add one record: features [rows, ...] float32 and good [rows] bool."""
    body = np.ascontiguousarray(features, np.float32).tobytes() + np.asarray(good, bool).tobytes()
    journal.file.write(body + zlib.crc32(body).to_bytes(4, "little"))
    journal.file.flush()


def records(journal: Journal) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (features [rows, ...], good [rows]) of every record on disk, in order."""
    journal.file.flush()
    number = 0
    while (record := _record_at(journal, number)) is not None:
        yield record
        number += 1


def _record_bytes(journal: Journal) -> int:
    return journal.rows * (math.prod(journal.shape) * 4 + 1) + 4


def _record_at(journal: Journal, number: int) -> tuple[np.ndarray, np.ndarray] | None:
    journal.file.seek(journal.start + number * _record_bytes(journal))
    record = journal.file.read(_record_bytes(journal))
    body, checksum = record[:-4], int.from_bytes(record[-4:], "little")
    if len(record) < _record_bytes(journal) or zlib.crc32(body) != checksum:
        return None
    features = np.frombuffer(body[: -journal.rows], np.float32).reshape(journal.rows, *journal.shape)
    return features, np.frombuffer(body[-journal.rows :], bool)


def _first_difference(found: bytes, wanted: bytes) -> str:
    """Name the first setting that differs between two header lines."""
    try:
        there, now = json.loads(found), json.loads(wanted)
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        return "its first line is no header"
    differing = [key for key in sorted({*there, *now}) if there.get(key) != now.get(key)]
    if not differing:
        return "its first line says the same in other words"
    key = differing[0]
    return f"{key}: {there.get(key)!r} there, {now.get(key)!r} now"
