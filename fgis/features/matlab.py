"""Cells, structures, texts and numbers of a MATLAB file (version 5), read without SciPy, which crashes on damaged ones.

A file is a header of 128 bytes and a list of elements: four bytes of type, four of size, the data, filled up to a
multiple of eight; up to four bytes of data may stand in place of the size. A matrix is an element of elements.

Format: MathWorks, MAT-File Format, version 5.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}  # type -> format
TEXTS = {
    2: "latin-1",
    4: "utf-16",
    16: "utf-8",
    17: "utf-16",
    18: "utf-32",
}  # type -> encoding; its byte order is added
CELL, STRUCTURE, TEXT = 1, 2, 4  # classes of a matrix
NUMERIC = range(6, 16)
MOST_BYTES = 1 << 28  # of one unpacked element
DEEPEST = 8  # matrices within matrices


def read_matlab(path: str | Path) -> dict[str, Any]:
    """The variables of a file.

    Args:
      path: a file that ``save -v6`` or ``-v7`` wrote.

    Returns:
      {name: value}. A matrix of cells is a list, one of structures a list of dictionaries, each column by column; text
      is a ``str``; numbers are a list; whatever else there is, is None.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is of another kind, or damaged.
    """
    content = Path(path).read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or len(content) < 128:
        raise ValueError("no MATLAB file of version 5")
    found = {}
    for kind, data in _elements(content[128:], order):
        if kind == COMPRESSED:
            unpack = zlib.decompressobj()
            try:
                data = unpack.decompress(data, MOST_BYTES)
            except zlib.error as error:
                raise ValueError(f"a variable cannot be unpacked ({error})") from error
            if unpack.unconsumed_tail:
                raise ValueError(f"a variable of more than {MOST_BYTES:,} bytes")
            kind, data = next(_elements(data, order), (0, b""))
        if kind == MATRIX:
            name, value = _matrix(data, order, 0)
            found[name] = value
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(type, data) of each element."""
    place = 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind >> 16:  # a short one
            size, kind, start = kind >> 16, kind & 0xFFFF, place + 4
            place += 8
        else:
            start = place + 8
            place = start + size + (-size % 8 if kind != COMPRESSED else 0)
        if size > len(data) - start or (start + 4 == place and size > 4):
            raise ValueError("it is cut off")
        yield kind, data[start : start + size]


def _matrix(data: bytes, order: str, depth: int) -> tuple[str, Any]:
    """The name and the value of a matrix."""
    if not data:  # [] within a cell
        return "", []
    if depth > DEEPEST:
        raise ValueError(f"matrices deeper than {DEEPEST}")
    parts = _elements(data, order)
    flags, dims, name = (_next(parts) for _ in range(3))
    kind = _numbers(*flags, order)[0] & 0xFF
    shape = _numbers(*dims, order)
    count = math.prod(shape)
    if not all(isinstance(one, int) and one >= 0 for one in shape) or count > len(data):
        raise ValueError(f"a matrix of shape {tuple(shape)[:4]} in {len(data)} bytes")
    value: Any = None
    if kind == CELL:
        value = [_matrix(one, order, depth + 1)[1] for one in _matrices(parts, count)]
    elif kind == STRUCTURE:
        value = _structures(parts, count, order, depth)
    elif kind == TEXT:
        value = _text(*_next(parts), order) if count else ""
    elif kind in NUMERIC:
        value = _numbers(*_next(parts), order) if count else []
    return name[1].decode("latin-1"), value


def _structures(parts: Iterator[tuple[int, bytes]], count: int, order: str, depth: int) -> list[dict[str, Any]]:
    width, names = _numbers(*_next(parts), order), _next(parts)[1]
    if len(width) != 1 or not isinstance(width[0], int) or not 0 < width[0] <= len(names):
        raise ValueError("a structure has no names of fields")
    fields = [names[start : start + width[0]] for start in range(0, len(names), width[0])]
    keys = [field.partition(b"\0")[0].decode("latin-1") for field in fields]
    return [
        {key: _matrix(one, order, depth + 1)[1] for key, one in zip(keys, _matrices(parts, len(keys)), strict=True)}
        for _ in range(count)
    ]


def _matrices(parts: Iterator[tuple[int, bytes]], count: int) -> Iterator[bytes]:
    for _ in range(count):
        kind, data = _next(parts)
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind} in place of a matrix")
        yield data


def _next(parts: Iterator[tuple[int, bytes]]) -> tuple[int, bytes]:
    found = next(parts, None)
    if found is None:
        raise ValueError("a matrix ends too early")
    return found


def _numbers(kind: int, data: bytes, order: str) -> list[Any]:
    if kind not in NUMBERS or len(data) % struct.calcsize(NUMBERS[kind]) or not data:
        raise ValueError(f"{len(data)} bytes of type {kind} are no numbers")
    return list(struct.unpack(f"{order}{len(data) // struct.calcsize(NUMBERS[kind])}{NUMBERS[kind]}", data))


def _text(kind: int, data: bytes, order: str) -> str:
    if kind not in TEXTS:
        raise ValueError(f"text of type {kind}")
    encoding = TEXTS[kind]
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if order == "<" else "-be"
    return data.decode(encoding)
