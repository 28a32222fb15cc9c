"""What a feature file holds beside the features, read and checked. Every defect is a UserError."""

import importlib.resources
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from fgis.base import FeatureSet
from fgis.errors import UserError
from fgis.features.heaps import has_endless_heap
from fgis.features.labels import find_split, find_unnamed
from fgis.files import json_types

BUNDLED = {  # what stands for a path -> the file that ships with the package
    "": "ukbench1000_mobilenet_v2_336x448.h5",  # the first 1,000 images of UKBench
    "bundled:ukbench": "ukbench1000_mobilenet_v2_336x448.h5",  # the same, where several files are listed
    "bundled:ukbench_transfer": "ukbench_transfer_mobilenet_v2_336x448.h5",  # 500 images of 125 further objects
}

MOST_COMPRESSED = 1032  # bytes that deflate makes of one at most


def bundled_path(name: str = "") -> str:
    """The path of features shipped with the package; ``name`` is a key of ``BUNDLED``."""
    return str(importlib.resources.files("fgis.features") / "bundled" / BUNDLED[name])


def named(path: str | Path) -> str:
    """A feature file in messages."""
    return str(path) or "the bundled features"


def resolved(path: str | Path) -> str:
    """The file that ``path`` means: a key of ``BUNDLED`` is a bundled one, and ``~`` is expanded."""
    return bundled_path(str(path)) if str(path) in BUNDLED else os.path.expanduser(path)


@contextmanager
def opened(path: str | Path) -> Iterator[h5py.File]:
    """Open for reading; errors of HDF5, at opening or later, become a UserError."""
    name = resolved(path)
    if not os.path.isfile(name):
        raise UserError(f"{named(path)}: no such file; extract the features, or take the bundled ones (an empty path)")
    try:
        with h5py.File(name, "r") as file:
            if has_endless_heap(file):
                raise UserError(f"{named(path)}: damaged (a list of texts without an end); extract the features again")
            yield file
    except PermissionError as error:
        raise UserError(f"{named(path)}: may not be read; look at its permissions") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # h5py raises almost anything for a file that is no HDF5, truncated, or damaged
        if isinstance(error, BlockingIOError) or "unable to lock file" in str(error):
            raise UserError(
                f"{named(path)}: another process has it open for writing; wait until that one closes it"
            ) from error
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{named(path)}: damaged or no HDF5 file ({reason}); remove it and extract the features again"
        ) from error


def require_stored(file: h5py.File, name: str, path: str | Path) -> None:
    """Refuses a dataset that declares more than its file can hold, or that lies in other files, before it is read.

    Raises:
      UserError: it does.
    """
    if isinstance(file.get(name, getlink=True), h5py.ExternalLink | h5py.SoftLink):
        raise UserError(f"{named(path)}: {name!r} is a link; store the data themselves, in this file")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        return
    if dataset.external is not None or dataset.is_virtual:
        raise UserError(f"{named(path)}: {name!r} lies in other files; store the data themselves, in this file")
    size, filtered = os.path.getsize(resolved(path)), dataset.id.get_create_plist().get_nfilters() > 0
    if dataset.shape is None:
        raise UserError(f"{named(path)}: {name!r} has no shape; store data in it, or leave it out")
    declared = math.prod(dataset.shape) * dataset.dtype.itemsize
    if declared > size * (MOST_COMPRESSED if filtered else 1):
        raise UserError(
            f"{named(path)}: {name!r} declares {declared:,} bytes, shape {dataset.shape}, in a file of {size:,}; "
            "remove it and extract the features again"
        )


def read_fields(file: h5py.File, path: str | Path) -> FeatureSet:
    """Every field but the features, which are None, of a file whose fields agree."""
    for name in ("image_ids", "features", "labels"):
        if not isinstance(file.get(name), h5py.Dataset):
            raise UserError(f"{named(path)}: no dataset {name!r}, found {sorted(file)}; name a feature file of fgis")
    for name in file:
        require_stored(file, name, path)
    source = _attributes(file)
    if not source.get("complete", True):
        raise UserError(f"{named(path)}: incomplete; remove it and extract the features again")
    n, dataset = len(file["image_ids"]), file["features"]
    if file["labels"].shape != (n,) or dataset.shape[:1] != (n,) or dataset.ndim < 2:
        raise UserError(
            f"{named(path)}: {n} image_ids, labels {file['labels'].shape} and features {dataset.shape} do not belong "
            "together; every one needs a row per image: extract them again"
        )
    if not n or not dataset.size:
        raise UserError(f"{named(path)}: holds no feature, shape {dataset.shape}; extract them again")
    if dataset.dtype.kind != "f" or file["labels"].dtype.kind not in "iu":
        raise UserError(
            f"{named(path)}: features are {dataset.dtype} and labels {file['labels'].dtype}; store floats and integers"
        )
    image_ids = np.array(read_texts(file["image_ids"], path))
    ids, first, counts = np.unique(image_ids, return_index=True, return_counts=True)
    if len(ids) < n:
        row = first[counts > 1].min()
        raise UserError(f"{named(path)}: image id {str(image_ids[row])!r} stands in several rows; ids must be unique")
    labels = file["labels"][...].astype(np.int64)
    return FeatureSet(
        None, labels, image_ids, source, _read_coarse(file, labels, path), _read_label_names(file, labels, path),
        _read_is_query(file, labels, path),
    )  # fmt: skip


def _read_coarse(file: h5py.File, labels: np.ndarray, path: str | Path) -> np.ndarray | None:
    """The coarse labels [n], each of which must hold whole labels; None where the file has none."""
    if "coarse" not in file:
        return None
    dataset = file["coarse"]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != labels.shape or dataset.dtype.kind not in "iu":
        found = f"{dataset.dtype} {dataset.shape}" if isinstance(dataset, h5py.Dataset) else "a group"
        raise UserError(
            f"{named(path)}: coarse is {found}; store one integer for each of {len(labels)} images, or no coarse"
        )
    coarse = dataset[...].astype(np.int64)
    split = find_split(labels, coarse)
    if split is not None:
        row, other = split
        raise UserError(
            f"{named(path)}: label {labels[row]} has coarse labels {coarse[row]} (row {row}) and {coarse[other]} "
            f"(row {other}); give all images of a label the same one"
        )
    return coarse


def _read_label_names(file: h5py.File, labels: np.ndarray, path: str | Path) -> tuple[str, ...] | None:
    """The name of label 0, 1, ..., which must cover the labels; None where the file has none."""
    if "label_names" not in file:
        return None
    dataset = file["label_names"]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.kind not in "OS":
        raise UserError(f"{named(path)}: label_names is no list of texts; store one for each label, or no label_names")
    names = tuple(read_texts(dataset, path))
    uncovered = find_unnamed(names, labels)
    if uncovered is not None:
        raise UserError(
            f"{named(path)}: {len(names)} label_names, none of which is that of label {uncovered}; store one for each "
            "label from 0 on, or no label_names"
        )
    return names


def _read_is_query(file: h5py.File, labels: np.ndarray, path: str | Path) -> np.ndarray | None:
    """Whether each image [n] is a query and not in the gallery; None where the file has no ``is_query``."""
    if "is_query" not in file:
        return None
    dataset = file["is_query"]
    fits = isinstance(dataset, h5py.Dataset) and dataset.shape == labels.shape and dataset.dtype.kind in "biu"
    marks = dataset[...].astype(bool) if fits else np.zeros(0, bool)
    if not fits or marks.all() or not marks.any():
        raise UserError(
            f"{named(path)}: is_query does not say which of {len(labels)} images are queries (1) and which form the "
            "gallery (0); store both, or no is_query"
        )
    return marks


def read_texts(dataset: Any, path: str | Path) -> list[str]:
    """The texts of a dataset, whether HDF5 stores them at fixed or variable length."""
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1 or dataset.dtype.kind not in "OSU":
        raise UserError(f"{named(path)}: {dataset.name} is no list of texts; extract the features again")
    try:
        return [text.decode() if isinstance(text, bytes) else str(text) for text in dataset[...]]
    except UnicodeDecodeError as error:
        raise UserError(f"{named(path)}: {dataset.name} holds text that is not UTF-8; store it as UTF-8") from error


def _attributes(file: h5py.File) -> dict[str, Any]:
    source = {}
    for key, value in file.attrs.items():
        value = value.decode() if isinstance(value, bytes) else json_types(value)
        if isinstance(value, str) and value[:1] in ("[", "{"):
            with suppress(ValueError):  # a text that only looks like JSON
                value = json.loads(value)
        source[key] = value
    return source
