"""Damage for fuzzing: of bytes, of lines, of values in JSON's types, and of HDF5 files."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    127,
    255,
    65535,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    -(2**63),
    10**30,
    0.5,
    -0.5,
    1e-30,
    1e30,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
)
TEXTS = (
    "",
    " ",
    "a",
    "0",
    "-1",
    "1e9",
    "nan",
    "None",
    "true",
    "../x",
    "/etc/passwd",
    "~",
    "a\nb",
    "\x00",
    "\ud800",
    "é",
    "%s",
    "{}",
    "[",
    '"',
    ",",
    "x" * 300,
    "١",
    "🦉",
    "features",
    "labels",
    "drop",
    "cosine",
    "batch_hard",
)
VALUES: tuple[Any, ...] = (
    *NUMBERS,
    *TEXTS,
    None,
    True,
    False,
    [],
    {},
    [0],
    [None],
    [[]],
    ["a"],
    {"": 0},
    {"name": "x"},
)


def damage_bytes(content: bytes, rng: random.Random, most: int = 6) -> bytes:
    """Bits flipped, ranges cut out, doubled, overwritten, or the end cut off; a few times."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, most))):
        size = len(found)
        place, length = rng.randrange(size + 1), rng.choice((1, 2, 4, 8, 16, 64, 512))
        match rng.randrange(9):
            case 0 | 1 | 2 if size:
                found[rng.randrange(size)] ^= 1 << rng.randrange(8)
            case 3 if size:
                found[rng.randrange(size)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 4:
                del found[place:]
            case 5:
                del found[place : place + length]
            case 6:
                found[place:place] = found[place : place + length]
            case 7:
                number = int(rng.choice((0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32))))
                found[place : place + 4] = number.to_bytes(4, rng.choice(("little", "big")))
            case _:
                other = rng.randrange(size + 1)
                found[place : place + length] = found[other : other + length]
    return bytes(found)


def damage_text(content: bytes, rng: random.Random) -> bytes:
    """Lines and words left out, doubled, exchanged or replaced; now and then the bytes themselves."""
    if rng.random() < 0.3:
        return damage_bytes(content, rng)
    lines = content.decode("utf-8", "surrogateescape").splitlines(keepends=True) or [""]
    for _ in range(rng.choice((1, 1, 2, 4))):
        row = rng.randrange(len(lines))
        separator = rng.choice((",", " ", "\t", "/"))
        cells = lines[row].rstrip("\n").split(separator)
        cell = rng.randrange(len(cells))
        match rng.randrange(7):
            case 0 if len(lines) > 1:
                del lines[row]
            case 1:
                lines.insert(row, rng.choice(lines))
            case 2:
                del cells[cell]
            case 3:
                cells.insert(cell, rng.choice(cells))
            case 4:
                lines[row] = lines[row] + rng.choice(("\n", "\r", "\x0b", "\u2028", "\x85", '"', "\ufeff"))
                continue
            case _:
                cells[cell] = str(rng.choice(VALUES))
        if row < len(lines):
            lines[row] = separator.join(cells) + "\n"
    return "".join(lines).encode("utf-8", "surrogatepass" if rng.random() < 0.5 else "replace")


def damage_value(value: Any, rng: random.Random, values: tuple[Any, ...] = VALUES) -> Any:
    """Leaves and branches replaced, left out, added, renamed or exchanged, in a copy."""
    found = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(branches(found))
        if not places:
            return rng.choice(values)
        holder, key = rng.choice(places)
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(rng.choice(TEXTS))] = rng.choice(values)
            case 2 if isinstance(holder, dict):
                holder[f"{key}x"] = holder.pop(key)
            case 3 if isinstance(holder, list):
                holder.insert(0, rng.choice(values))
            case 4:
                other, name = rng.choice(places)
                holder[key] = copy.deepcopy(other[name])
            case 5 if rng.random() < 0.05:
                return rng.choice(values)
            case _:
                holder[key] = rng.choice(values)
    return found


def branches(value: Any) -> Any:
    """(container, key) of everything below ``value``."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(pairs):
        yield value, key
        yield from branches(one)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """Values of a JSON document changed, or its bytes."""
    if rng.random() < 0.2:
        return damage_bytes(content, rng)
    if rng.random() < 0.03:
        return rng.choice((b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b"null", b"", b"\xff\xfe", b"NaN"))
    return json.dumps(damage_value(json.loads(content), rng)).encode()


DTYPES = (
    "f2",
    "f4",
    "f8",
    "i1",
    "i8",
    "u8",
    "u1",
    "?",
    "S4",
    "O",
    ">f4",
    ">i8",
    "c8",
    "V3",
    "f4,i4",
    "S0x",
    "enum",
    "ref",
    "vlen",
    "ascii",
    "(2,)f4",
)


def odd_array(shape: tuple[int, ...], rng: random.Random) -> tuple[Any, Any]:
    """(values, type) of a dataset or attribute of some type of HDF5."""
    kind, size = rng.choice(DTYPES), int(np.prod(shape))
    numbers = np.arange(size).reshape(shape) % 7
    match kind:
        case "O":
            return np.array([rng.choice(("a", "b", "é", "a\x00b", "")) for _ in range(size)], object).reshape(shape), (
                h5py.string_dtype()
            )
        case "ascii":
            return np.array([b"\xe9" for _ in range(size)], object).reshape(shape), h5py.string_dtype("ascii")
        case "S0x":
            return np.array([b"\xff\xfe"] * size, "S2").reshape(shape), None
        case "enum":
            return numbers.astype("i4"), h5py.enum_dtype({"A": 0, "B": 1}, "i4")
        case "ref":
            return None, h5py.ref_dtype
        case "vlen":
            return None, h5py.vlen_dtype(np.int32)
        case "V3" | "f4,i4" | "(2,)f4":
            return np.zeros(shape, np.dtype(kind)), None
        case _:
            values = numbers.astype(kind)
            if values.dtype.kind == "f" and rng.random() < 0.3 and values.size:
                values.flat[rng.randrange(values.size)] = rng.choice((np.nan, np.inf, -1.0, 0.0))
            return values, None


def change_dataset(file: h5py.File, rng: random.Random) -> None:
    """One dataset gets another shape, type, layout or kind of object."""
    name = rng.choice([*file, "coarse", "label_names", "is_query", "skipped_image_ids", "pixels_8", "neighbours"])
    rows = rng.choice((12, 12, 12, 12, 0, 1, 11, 13))
    shape = rng.choice(((rows,), (rows,), (rows, 4), (rows, 4), (rows, 2, 2, 4), (), (rows, 0), (rows, 1)))
    values, dtype = odd_array(shape, rng)
    what = rng.randrange(10)
    if name in file:
        if what == 0 and isinstance(file[name], h5py.Dataset):
            file[name].attrs[str(rng.choice(("a", "scale", "DIMENSION_LIST")))] = rng.choice((1, "x", [1.0, 2.0]))
            return
        del file[name]
    match what:
        case 1:
            file.create_group(name)
        case 2:
            file[name] = h5py.SoftLink(rng.choice(("/labels", "/nowhere", "/", f"/{name}")))
        case 3:
            file[name] = h5py.ExternalLink("other.h5", "features")
        case 4:
            file.create_dataset(
                name, (2 ** rng.randrange(50), *shape[1:]), "f4", chunks=(16, *tuple(max(1, n) for n in shape[1:]))
            )
        case 5:
            file[name] = h5py.Empty(rng.choice(("f4", "i8", "S3")))
        case 6:
            pass
        case 7 if values is not None and shape and all(shape):
            more = rng.choice(
                ({"compression": "gzip"}, {"compression": "lzf"}, {"shuffle": True}, {"fletcher32": True})
            )
            file.create_dataset(name, data=values, dtype=dtype, chunks=True, maxshape=(None, *shape[1:]), **more)
        case _:
            file.create_dataset(name, shape, dtype) if values is None else file.create_dataset(
                name, data=values, dtype=dtype
            )


def change_attribute(file: h5py.File, rng: random.Random) -> None:
    """One attribute gets another value, type or none."""
    known = (
        "complete",
        "backbone",
        "weights",
        "image_size",
        "fit",
        "pooling",
        "collection",
        "layer",
        "fgis_version",
        "weights_sha256",
        "preprocessing",
        "collection_sha256",
        "skipped",
        "files",
        "shrink",
    )
    name = rng.choice(known)
    values, dtype = odd_array(rng.choice(((), (2,), (0,), (2, 2))), rng)
    match rng.randrange(5):
        case 0 if name in file.attrs:
            del file.attrs[name]
        case 1:
            file.attrs[name] = h5py.Empty("f4")
        case 2:
            file.attrs[name] = rng.choice(
                (
                    "[",
                    "{",
                    "[1, 2",
                    "[224, 224]",
                    "[[1, 2], [3, 4]]",
                    '{"a": [1]}',
                    "\x00",
                    "1e999",
                    "[" * 5000,
                    '[{"file": 1}]',
                )
            )
        case 3:
            file.attrs[name] = rng.choice((0, 1, -1, 2**63 - 1, 0.5, True, False, np.float16(3)))
        case _ if values is not None:
            file.attrs.create(name, values, dtype=dtype)


def damage_hdf5(content: bytes, rng: random.Random, place: Path) -> bytes:
    """Datasets and attributes of a feature file changed by h5py, or its bytes, or both."""
    if rng.random() < 0.35:
        return damage_bytes(content, rng)
    place.write_bytes(content)
    with h5py.File(place, "r+") as file:
        for _ in range(rng.choice((1, 1, 2, 3))):
            change: Callable[[h5py.File, random.Random], None] = rng.choice((change_dataset, change_attribute))
            try:
                change(file, rng)
            except (TypeError, ValueError, OSError, RuntimeError, KeyError):  # h5py refuses to write such a thing
                continue
    changed = place.read_bytes()
    return damage_bytes(changed, rng) if rng.random() < 0.1 else changed
