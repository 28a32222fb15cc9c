"""The HDF5 feature file: write it whole, load it whole, check it, or read rows of it in place.

Datasets ``image_ids`` (UTF-8), ``features`` [n, ...] float16 or float32, ``labels`` [n] int64, as in the published
experiment, optional coarse labels ``coarse`` [n] int64, optional ``label_names`` (UTF-8, by label), optional
``is_query`` [n] (1 for queries, 0 for the gallery), and any named extras [n, ...]; attributes say how the features were
made. Datasets are contiguous, so rows can be mapped into memory.
A file with only the three published datasets loads as well. Every defect is a UserError that begins with the path, or
with "the bundled features"; ``~`` is expanded in every path.
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fgis.base import FeatureSet
from fgis.errors import UserError
from fgis.features.fields import bundled_path, named, opened, read_fields, read_texts, require_stored, resolved
from fgis.features.labels import find_unnamed
from fgis.features.pixels import dataset_name, pixel_count
from fgis.files import json_types, replacing
from fgis.ranges import Count, conform

__all__ = [
    "CHECKED", "Blocks", "Rows", "bundled_path", "check_features", "image_sizes", "load_features", "open_rows",
    "read_skipped", "weights_label", "write_features",
]  # fmt: skip

# Settings that are attributes, too; a file of the last layer, or of an earlier version, says no layer.
CHECKED = ("collection", "backbone", "weights", "image_size", "fit", "pooling")
LAYER = "layer"
BLOCK_BYTES = 1 << 26  # features are checked and copied in blocks of this size


class Blocks(NamedTuple):
    """Features that come in parts: ``FeatureSet.features`` of a file that is larger than memory."""

    shape: tuple[int, ...]  # [n, ...] of the whole
    dtype: Any
    parts: Iterable[np.ndarray]  # consecutive rows


class Rows(NamedTuple):
    """A feature file left on disk; ``read(rows [b]) -> [b, ...]`` takes rows in any order, repeated or not."""

    shape: tuple[int, ...]
    dtype: np.dtype
    labels: Int[np.ndarray, " n"]
    image_ids: np.ndarray  # [n] str
    source: Mapping[str, Any]
    read: Callable[[Int[np.ndarray, " b"]], Float[np.ndarray, "b ..."]]
    coarse: Int[np.ndarray, " n"] | None = None
    label_names: tuple[str, ...] | None = None  # the name of label 0, 1, ...
    is_query: Bool[np.ndarray, " n"] | None = None  # queries, or else in the gallery; None: every image is both
    widths: tuple[int, ...] = ()  # of the files that are joined side by side; (): it is one file


def weights_label(weights: str) -> str:
    """What a feature file says of the setting ``weights``: of a path the name alone, without its folder.

    >>> weights_label("imagenet"), weights_label("/home/me/mine.weights.h5")
    ('imagenet', 'mine.weights.h5')
    """
    return Path(weights).name


def image_sizes(image_size: Any) -> tuple[tuple[int, int], ...]:
    """One (height, width), or a list of such, as a tuple of sizes.

    Raises:
      ValueError: ``image_size`` is neither, or a side is no whole number of at least 1.

    >>> image_sizes([224, 320]), image_sizes([(96, 96), (128, 160)])
    (((224, 320),), ((96, 96), (128, 160)))
    """
    sizes = json_types(image_size)
    if isinstance(sizes, list) and sizes and not isinstance(sizes[0], list):
        sizes = [sizes]
    with suppress(ValueError):
        sizes = conform(tuple[tuple[Count, ...], ...], sizes)
        if sizes and all(len(size) == 2 for size in sizes):
            return sizes
    raise ValueError(f"image_size: {image_size!r} found; write (height, width) or a list of such")


def write_features(path: str | Path, feature_set: FeatureSet, extras: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a complete feature file; it appears at ``path`` only when all of it is written.

    The bytes depend on the arguments alone, not on the time. Attributes that HDF5 has no form for (sequences, mappings)
    are stored as JSON.

    Args:
      path: the file, which is replaced; its folder is made.
      feature_set: ``features`` is an array [n, ...] or ``Blocks``.
      extras: further datasets by name, of numbers or texts.

    Raises:
      ValueError: the blocks do not hold ``shape[0]`` rows, or the label names do not cover the labels.
      OSError: the file cannot be written.
    """
    features = feature_set.features
    if not isinstance(features, Blocks):
        array = np.asarray(features)
        features = Blocks(array.shape, array.dtype, [array])
    labels, datasets = np.asarray(feature_set.labels, np.int64), dict(extras or {})
    if feature_set.coarse is not None:
        datasets["coarse"] = np.asarray(feature_set.coarse, np.int64)
    if feature_set.is_query is not None:
        datasets["is_query"] = np.asarray(feature_set.is_query, np.uint8)
    if feature_set.label_names is not None:
        uncovered = find_unnamed(feature_set.label_names, labels)
        if uncovered is not None:
            raise ValueError(f"label_names: {len(feature_set.label_names)} names, none of which is that of {uncovered}")
        datasets["label_names"] = np.array(feature_set.label_names)
    with replacing(os.path.expanduser(path)) as partial, h5py.File(partial, "w", track_order=False) as file:
        _write_dataset(file, "image_ids", np.asarray(feature_set.image_ids, dtype=object))
        _write_dataset(file, "labels", labels)
        dataset = file.create_dataset("features", features.shape, features.dtype, track_times=False)
        row = 0
        for part in features.parts:
            dataset[row : row + len(part)] = part
            row += len(part)
        if row != features.shape[0]:
            raise ValueError(f"features: the blocks hold {row} rows, not {features.shape[0]}")
        for name, values in datasets.items():
            _write_dataset(file, name, np.asarray(values))
        for key, value in sorted(feature_set.source.items()):
            has_form = isinstance(value, str | bool | int | float | np.generic)
            file.attrs[key] = value if has_form else json.dumps(value)
        file.attrs["complete"] = True


def load_features(path: str | Path = "", extras: Sequence[str] = ()) -> FeatureSet:
    """Load a whole feature file.

    Args:
      path: the file; "" (or "bundled:ukbench") and "bundled:ukbench_transfer" are those bundled with the package.
      extras: names of further datasets to load.

    Returns:
      The content. With ``extras``, ``features`` is a mapping of ``"features"`` and each extra's name to its array.

    Raises:
      UserError: the file is missing, damaged or incomplete, fields disagree in length, ids repeat, one label has two
        coarse ones, label names do not cover the labels, or a feature is not finite.
    """
    with opened(path) as file:
        fields = read_fields(file, path)
        dataset = file["features"]
        features = np.empty(dataset.shape, _float_type(dataset.dtype))
        for start, stop in _block_bounds(dataset.shape, features.dtype):
            dataset.read_direct(features, np.s_[start:stop], np.s_[start:stop])
            _require_finite(features[start:stop], np.arange(start, stop), fields.image_ids, path)
        for name in extras:
            if name not in file or len(file[name]) != len(fields.labels):
                raise UserError(
                    f"{named(path)}: no dataset {name!r} with one row per image; extract the features again"
                )
        values: Any = {"features": features, **{name: file[name][...] for name in extras}} if extras else features
    return fields._replace(features=values)


def open_rows(path: str | Path = "", pixels: Sequence[int] = ()) -> Rows:
    """Open a feature file for reading rows in place: mapped into memory where it is contiguous, else through h5py.

    Args:
      path: the file; "" (or "bundled:ukbench") and "bundled:ukbench_transfer" are those bundled with the package.
      pixels: sides of the copies of images that follow the features of each row, see ``fgis.features.pixels``.

    Returns:
      The fields, checked as by ``load_features``, and a function that reads rows of features and checks them.

    Raises:
      UserError: as ``load_features``.
    """
    with opened(path) as file:
        fields = read_fields(file, path)
        dataset = file["features"]
        shape, stored, offset = dataset.shape, dataset.dtype, dataset.id.get_offset()
        contiguous = dataset.chunks is None and offset is not None and stored.isnative and dataset.external is None
        copies = {name: _copies(file, side, shape, path) for side in pixels for name in [dataset_name(side)]}
    name, dtype = resolved(path), _float_type(stored)
    mapped = _map(name, stored, offset, shape) if contiguous else None
    if pixels:
        shape, dtype = (shape[0], shape[1] + pixel_count(pixels)), np.dtype(np.float32)

    def read(rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b ..."]:
        rows = np.asarray(rows)
        if mapped is not None:
            values = mapped.array[rows]
            # Pages that were read count as memory of the process until they are given back.
            mapped.give_back()
        else:
            increasing, inverse = np.unique(rows, return_inverse=True)  # h5py wants increasing and unique rows
            with h5py.File(name, "r") as file:
                values = file["features"][increasing][inverse]
        values = values.astype(dtype, copy=False)
        _require_finite(values, rows, fields.image_ids, path)
        tails = [copy[rows].reshape(len(rows), -1).astype(np.float32) / 255 for copy in copies.values()]
        return np.concatenate([values, *tails], axis=1) if tails else values

    return Rows(
        shape, dtype, fields.labels, fields.image_ids, fields.source, read, fields.coarse, fields.label_names,
        fields.is_query,
    )  # fmt: skip


class _Mapped(NamedTuple):
    """A dataset in a file that is mapped into memory."""

    array: np.ndarray
    give_back: Callable[[], Any]  # pages that were read; they are read again when they are wanted


def _map(name: str | Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> _Mapped:
    with open(name, "rb") as file:
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array = np.frombuffer(whole, dtype, math.prod(shape), offset).reshape(shape)
    if not hasattr(mmap, "MADV_DONTNEED"):  # as on Windows
        return _Mapped(array, lambda: None)
    return _Mapped(array, lambda: whole.madvise(mmap.MADV_DONTNEED))


def read_skipped(path: str | Path = "") -> tuple[str, ...]:
    """The ids of the images that an extraction left out."""
    with opened(path) as file:
        if "skipped_image_ids" not in file:
            return ()
        require_stored(file, "skipped_image_ids", path)
        return tuple(read_texts(file["skipped_image_ids"], path))


def check_features(feature_set: FeatureSet | Rows, path: str | Path, expected: Mapping[str, Any]) -> None:
    """Compare settings with what a feature file says of itself.

    Args:
      feature_set: the content of the file.
      path: the file, for messages.
      expected: settings by name; those in ``CHECKED`` and the layer are compared. One that the file does not
        record (a published file) cannot be compared and passes.

    Raises:
      UserError: a setting differs; the message names the first.
    """
    found = {LAYER: "", **feature_set.source} if "backbone" in feature_set.source else feature_set.source
    for key in (*CHECKED, LAYER, "shrink"):  # the last one only where there are copies of pixels
        if key not in expected or key not in found:
            continue
        wanted, held = json_types(expected[key]), json_types(found[key])
        comparable = weights_label(wanted) if key == "weights" else wanted
        if key == "image_size":
            with suppress(ValueError):  # a size that is none differs from every size
                comparable, held = json_types(image_sizes(wanted)), json_types(image_sizes(held))
        if comparable != held:
            shown = json_types(found[key])
            raise UserError(
                f"{named(path)}: made with {key} {shown!r}, not {wanted!r}; set {key} to {shown!r}, or extract the "
                "features into another file"
            )


def _copies(file: h5py.File, side: int, shape: Sequence[int], path: str | Path) -> UInt8[np.ndarray, "n s s 3"]:
    """The copies of one side, in memory."""
    name, wanted = dataset_name(side), (shape[0], side, side, 3)
    found = file.get(name)
    fits = isinstance(found, h5py.Dataset) and found.shape == wanted and found.dtype == np.uint8
    if len(shape) != 2 or not fits:
        raise UserError(
            f"{named(path)}: has no copies of {side} × {side} pixels beside pooled features; extract it again with them"
        )
    return file[name][...]


def _write_dataset(file: h5py.File, name: str, values: np.ndarray) -> None:
    if values.dtype.kind in "UO":
        file.create_dataset(name, data=values.astype(object), dtype=h5py.string_dtype("utf-8"), track_times=False)
    else:
        file.create_dataset(name, data=values, track_times=False)


def _float_type(stored: np.dtype) -> np.dtype:
    return np.dtype(np.float16 if stored.itemsize == 2 else np.float32)


def _block_bounds(shape: Sequence[int], dtype: np.dtype) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    return ((start, min(start + step, shape[0])) for start in range(0, shape[0], step))


def _require_finite(values: np.ndarray, rows: np.ndarray, image_ids: np.ndarray, path: str | Path) -> None:
    finite = np.isfinite(values.reshape(len(values), -1)).all(1)
    if not finite.all():
        row = rows[np.argmin(finite)]
        raise UserError(
            f"{named(path)}: features of row {row} (image {str(image_ids[row])!r}) are NaN or infinite; "
            "extract them again"
        )
