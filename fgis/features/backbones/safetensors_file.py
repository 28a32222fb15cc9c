"""Weights files of the format safetensors, read without a library: a header in JSON, then the numbers.

The first eight bytes are the length of the header, a little-endian whole number. The header maps the name of each
tensor to its type, its shape and the place of its bytes. Nothing in such a file is a program. Every declared size is
checked against the size of the file before anything is taken from it, and tensors stay on disk until they are used.

Format: https://github.com/huggingface/safetensors#format.
"""

import hashlib
import json
import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np

from fgis.errors import UserError
from fgis.features.backbones.torch_pickle import StateFile

LONGEST_HEADER = 100_000_000  # bytes, as the format has it
READ = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(jnp.bfloat16)}
SIZES = {name: dtype.itemsize for name, dtype in READ.items()} | {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8,
    "F64": 8,
}  # fmt: skip
POINTER = b"version https://git-lfs"


def read_safetensors(path: Path) -> StateFile:
    """Map the tensors of a safetensors file into memory.

    Args:
      path: the file.

    Returns:
      The tensors of the types F32, F16 and BF16, which are read from disk when they are used, and the digest of the
      file. Tensors of other types are checked and left out: no weight has one.

    Raises:
      UserError: the file is of another kind, is cut off, or contradicts itself.
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            header, start = _read_header(file)
            size = os.fstat(file.fileno()).st_size
            places = {name: _check_entry(name, entry) for name, entry in header.items()}
            _check_places(places, size - start)
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{path}: is no whole safetensors file ({reason}); fetch it again") from error
        data = np.memmap(file, np.uint8, "r")
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    tensors = {
        name: np.asarray(data[start + first : start + last].view(READ[kind]).reshape(shape))
        for name, (kind, shape, first, last) in places.items()
        if kind in READ
    }
    return StateFile(tensors, digest)


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The entries of the header, and where the numbers begin."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    if POINTER.startswith(first) and len(first) == 8:
        raise ValueError("it is a pointer of Git LFS, not the file itself")
    if first[:2] in (b"PK", b"\x80\x02"):
        raise ValueError("it is a file of torch")
    if len(first) < 8:
        raise ValueError(f"it has {size} bytes")
    (length,) = struct.unpack("<Q", first)
    if length > min(LONGEST_HEADER, size - 8):
        raise ValueError(f"its header would have {length} bytes, the file has {size}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("its header is no JSON object")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    header.pop("__metadata__", None)
    return header, 8 + length


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header names something twice")
    return found


def _check_entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """(type, shape, first byte, byte after the last) of a tensor; ``ValueError`` where they do not agree."""
    whole = lambda values: isinstance(values, list) and all(type(one) is int and 0 <= one < 2**63 for one in values)
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= {*entry}:
        raise ValueError(f"{name}: no type, shape and place")
    kind, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in SIZES:
        raise ValueError(f"{name}: the type {kind!r} is unknown")
    if not whole(shape) or not whole(place) or len(place) != 2:
        raise ValueError(f"{name}: its shape or its place is not of whole numbers")
    if place[1] - place[0] != math.prod(shape) * SIZES[kind]:
        raise ValueError(f"{name}: {place[1] - place[0]} bytes for the shape {tuple(shape)} of {kind}")
    return kind, tuple(shape), place[0], place[1]


def _check_places(places: dict[str, tuple[str, tuple[int, ...], int, int]], size: int) -> None:
    """Tensors lie one behind the other and fill the file; ``ValueError`` where they do not."""
    end = 0
    for name, (_, _, first, last) in sorted(places.items(), key=lambda item: item[1][2:]):
        if first != end:
            raise ValueError(f"{name}: begins at byte {first}, not {end}")
        end = last
    if end != size:
        raise ValueError(f"its tensors have {end} bytes, {size} follow the header")
