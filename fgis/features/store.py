"""The HDF5 feature file: write it whole, load it whole, check it, or read rows of it in place.

Datasets ``image_ids`` (UTF-8), ``features`` [n, ...] float16 or float32, ``labels`` [n] int64, as in the published
experiment, optional coarse labels ``coarse`` [n] int64, and any named extras [n, ...]; attributes say how the features
were made. Datasets are contiguous, so rows can be mapped into memory. A file with only the three published datasets
loads as well. Every defect is a UserError.
"""

import importlib.resources
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Float, Int

from fgis.base import FeatureSet
from fgis.errors import UserError

BUNDLED = "ukbench1000_mobilenet_v2_336x448.h5"
CHECKED = (
    "collection",
    "backbone",
    "weights",
    "image_size",
    "fit",
    "pooling",
)  # keys of config.features, and attributes
BLOCK_BYTES = 1 << 26  # features are checked and copied in blocks of this size


class Rows(NamedTuple):
    """A feature file left on disk; ``read(rows [b]) -> [b, ...]`` takes rows in any order, repeated or not."""

    shape: tuple[int, ...]
    dtype: np.dtype
    labels: Int[np.ndarray, " n"]
    image_ids: np.ndarray  # [n] str
    source: Mapping[str, Any]
    read: Callable[[Int[np.ndarray, " b"]], Float[np.ndarray, "b ..."]]
    coarse: Int[np.ndarray, " n"] | None = None


def bundled_path() -> str:
    """Return the path of the features shipped with the package."""
    return str(importlib.resources.files("fgis.features") / "bundled" / BUNDLED)


def weights_label(weights: str) -> str:
    """Return what a feature file says of ``config.features.weights``: a path by its name alone, without its folder."""
    return Path(weights).name


def find_split(labels: Int[np.ndarray, " n"], coarse: Int[np.ndarray, " n"]) -> tuple[int, int] | None:
    """Return two rows of one label whose coarse labels differ, or None where each coarse class holds whole labels."""
    _, first, fine = np.unique(labels, return_index=True, return_inverse=True)
    apart = np.flatnonzero(coarse != coarse[first[fine]])
    return (int(first[fine[apart[0]]]), int(apart[0])) if len(apart) else None


def write_features(path: str, feature_set: FeatureSet, extras: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a complete feature file at ``path``, atomically; extras are further datasets with one row per image."""
    features = np.asarray(feature_set.features)
    coarse = {} if feature_set.coarse is None else {"coarse": np.asarray(feature_set.coarse, np.int64)}
    write_stream(
        path, features.shape, features.dtype, [features], feature_set.image_ids, feature_set.labels,
        feature_set.source, {**(extras or {}), **coarse},
    )  # fmt: skip


def write_stream(
    path: str,
    shape: tuple[int, ...],
    dtype: Any,
    blocks: Iterable[np.ndarray],
    image_ids: Sequence[str] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    source: Mapping[str, Any],
    extras: Mapping[str, np.ndarray],
) -> None:
    """Write features that come as blocks of consecutive rows; the file appears at ``path`` only when it is complete.

    Attributes that HDF5 has no plain form for (sequences, mappings) are stored as JSON text. The bytes depend on the
    arguments alone, not on the time.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name: what a kill leaves behind is overwritten by the next run, not piled up.
    temporary = target.with_name(f"{target.name}.writing.partial")
    try:
        with h5py.File(temporary, "w", track_order=False) as file:
            ids = np.asarray(image_ids, dtype=object)
            file.create_dataset("image_ids", data=ids, dtype=h5py.string_dtype("utf-8"), track_times=False)
            file.create_dataset("labels", data=np.asarray(labels, np.int64), track_times=False)
            features = file.create_dataset("features", shape, dtype, track_times=False)
            row = 0
            for block in blocks:
                features[row : row + len(block)] = block
                row += len(block)
            for name, values in extras.items():
                strings = np.asarray(values).dtype.kind in "UO"
                text = {"dtype": h5py.string_dtype("utf-8")} if strings else {}
                data = np.asarray(values, dtype=object) if strings else values
                file.create_dataset(name, data=data, track_times=False, **text)
            for key, value in source.items():
                plain = isinstance(value, str | bool | int | float | np.generic)
                file.attrs[key] = value if plain else json.dumps(value)
            if row != shape[0]:
                raise ValueError(f"blocks hold {row} rows, not {shape[0]}")
            file.attrs["complete"] = True
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_skipped(path: str = "") -> tuple[str, ...]:
    """Return the ids of the images that an extraction left out."""
    with _opened(path) as file:
        ids = file["skipped_image_ids"][...] if "skipped_image_ids" in file else ()
    return tuple(i.decode() for i in ids)


def load_features(path: str = "", extras: Sequence[str] = ()) -> FeatureSet:
    """Load a whole feature file; "" is the one bundled with the package.

    With ``extras``, ``features`` is a mapping of ``"features"`` and each extra's name to its array. Raises UserError
    where the file is missing, damaged or incomplete, where fields disagree in length, ids repeat, one label has two
    coarse ones, or a feature is not finite.
    """
    with _opened(path) as file:
        image_ids, labels, coarse, source = _describe(file, path)
        dataset = file["features"]
        features = np.empty(dataset.shape, _float_type(dataset.dtype))
        for start, stop in _blocks(dataset.shape, features.dtype):
            dataset.read_direct(features, np.s_[start:stop], np.s_[start:stop])
            _require_finite(features[start:stop], np.arange(start, stop), image_ids, path)
        for name in extras:
            if name not in file or len(file[name]) != len(labels):
                raise UserError(
                    f"{_named(path)}: no dataset {name!r} with one row per image; extract the features again"
                )
        values: Any = {"features": features, **{name: file[name][...] for name in extras}} if extras else features
    return FeatureSet(values, labels, image_ids, source, coarse)


def open_rows(path: str = "") -> Rows:
    """Open a feature file for reading rows in place: mapped into memory where it is contiguous, else through h5py.

    Fields are validated as by ``load_features``; features are checked as they are read.
    """
    with _opened(path) as file:
        image_ids, labels, coarse, source = _describe(file, path)
        dataset = file["features"]
        shape, stored, offset = dataset.shape, dataset.dtype, dataset.id.get_offset()
        plain = dataset.chunks is None and offset is not None and stored.isnative and dataset.external is None
    name = path or bundled_path()
    dtype = _float_type(stored)
    mapped = np.memmap(name, stored, "r", offset, shape) if plain else None

    def read(rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b ..."]:
        rows = np.asarray(rows)
        if mapped is not None:
            values = mapped[rows]
        else:
            increasing, inverse = np.unique(rows, return_inverse=True)  # h5py wants increasing and unique rows
            with h5py.File(name, "r") as file:
                values = file["features"][increasing][inverse]
        values = values.astype(dtype, copy=False)
        _require_finite(values, rows, image_ids, path)
        return values

    return Rows(shape, dtype, labels, image_ids, source, read, coarse)


def check_features(feature_set: FeatureSet | Rows, path: str, expected: Mapping[str, Any]) -> None:
    """Compare keys of ``config.features`` with what the file says of itself; the first that differs is a UserError.

    Keys are those in ``CHECKED``; one that the file does not record (a published file) cannot be checked and passes.
    """
    for key in CHECKED:
        if key not in expected or key not in feature_set.source:
            continue
        wanted, held = _plain(expected[key]), _plain(feature_set.source[key])
        if key == "weights":
            wanted = weights_label(wanted)
        if key == "image_size":
            wanted, held = scales(wanted), scales(held)
        if wanted != held:
            raise UserError(
                f"config.features.{key}: {_plain(expected[key])!r}, but {_named(path)} holds "
                f"{_plain(feature_set.source[key])!r}; set config.features.{key} to that, or --mode=extract into "
                "another config.features.path"
            )


def scales(image_size: Any) -> tuple[tuple[int, int], ...]:
    """Return one (height, width), or a sequence of them, as a tuple of sizes."""
    sizes = [image_size] if np.ndim(image_size) == 1 else image_size
    return tuple((int(height), int(width)) for height, width in sizes)


def _named(path: str) -> str:
    return f"config.features.path={path}" if path else "the bundled features"


@contextmanager
def _opened(path: str) -> Iterator[h5py.File]:
    """Open for reading; errors of HDF5, at opening or later, become a UserError."""
    name = path or bundled_path()
    if not os.path.isfile(name):
        raise UserError(
            f"{_named(path)}: no such file; --mode=extract makes it, and an empty path takes the bundled one"
        )
    try:
        with h5py.File(name, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:  # what h5py raises for a file that is no HDF5, truncated, or damaged
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{_named(path)}: damaged or no HDF5 file ({reason}); remove it and run --mode=extract"
        ) from error


def _describe(file: h5py.File, path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]:
    """Return (image_ids, labels, coarse labels or None, attributes) of a file whose fields agree."""
    for name in ("image_ids", "features", "labels"):
        if not isinstance(file.get(name), h5py.Dataset):
            raise UserError(f"{_named(path)}: no dataset {name!r}, found {sorted(file)}; name a feature file of fgis")
    source = _attributes(file)
    if not source.get("complete", True):
        raise UserError(f"{_named(path)}: incomplete; remove it and run --mode=extract")
    n, dataset = len(file["image_ids"]), file["features"]
    if file["labels"].shape != (n,) or dataset.shape[:1] != (n,) or dataset.ndim < 2:
        raise UserError(
            f"{_named(path)}: {n} image_ids, labels {file['labels'].shape} and features {dataset.shape} do not belong "
            "together; every one needs a row per image: extract them again"
        )
    if not n or not dataset.size:
        raise UserError(f"{_named(path)}: holds no feature, shape {dataset.shape}; extract them again")
    if dataset.dtype.kind != "f" or file["labels"].dtype.kind not in "iu":
        raise UserError(
            f"{_named(path)}: features are {dataset.dtype} and labels {file['labels'].dtype}; store floats and integers"
        )
    image_ids = np.array([i.decode() if isinstance(i, bytes) else str(i) for i in file["image_ids"][...]])
    ids, first, counts = np.unique(image_ids, return_index=True, return_counts=True)
    if len(ids) < n:
        row = first[counts > 1].min()
        raise UserError(f"{_named(path)}: image id {str(image_ids[row])!r} stands in several rows; ids must be unique")
    labels = file["labels"][...].astype(np.int64)
    return image_ids, labels, _coarse(file, labels, path), source


def _coarse(file: h5py.File, labels: np.ndarray, path: str) -> np.ndarray | None:
    """Return the coarse labels [n], each of which must hold whole labels; None where the file has none."""
    if "coarse" not in file:
        return None
    dataset = file["coarse"]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != labels.shape or dataset.dtype.kind not in "iu":
        found = f"{dataset.dtype} {dataset.shape}" if isinstance(dataset, h5py.Dataset) else "a group"
        raise UserError(
            f"{_named(path)}: coarse is {found}; store one integer for each of {len(labels)} images, or no coarse"
        )
    coarse = dataset[...].astype(np.int64)
    split = find_split(labels, coarse)
    if split is not None:
        row, other = split
        raise UserError(
            f"{_named(path)}: label {labels[row]} has coarse labels {coarse[row]} (row {row}) and {coarse[other]} "
            f"(row {other}); give all images of a label the same one"
        )
    return coarse


def _attributes(file: h5py.File) -> dict[str, Any]:
    source = {}
    for key, value in file.attrs.items():
        value = _plain(value)
        if isinstance(value, str) and value[:1] in ("[", "{"):
            with suppress(ValueError):  # a text that only looks like JSON
                value = json.loads(value)
        source[key] = value
    return source


def _plain(value: Any) -> Any:
    """Return HDF5's and NumPy's scalars as Python's own, and sequences as lists."""
    value = value.decode() if isinstance(value, bytes) else value
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _float_type(stored: np.dtype) -> np.dtype:
    return np.dtype(np.float16 if stored.itemsize == 2 else np.float32)


def _blocks(shape: Sequence[int], dtype: np.dtype) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _require_finite(values: np.ndarray, rows: np.ndarray, image_ids: np.ndarray, path: str) -> None:
    finite = np.isfinite(values.reshape(len(values), -1)).all(1)
    if not finite.all():
        row = rows[np.argmin(finite)]
        raise UserError(
            f"{_named(path)}: features of row {row} (image {str(image_ids[row])!r}) are NaN or infinite; "
            "extract them again"
        )
