"""What a run was trained on: a digest of its images, so that a changed feature file is noticed wherever it lies."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from fgis import files
from fgis.features.store import Rows

NAME = "trained_on.json"
BLOCK = 1 << 26  # bytes of features that are read at a time


def digest_rows(rows: Rows) -> dict[str, Any]:
    """{"images", "sha256"}: the number of images, and the SHA-256 of ids, labels, coarse labels and features in order.

    Names of labels and all attributes of the file are left out: they change no figure.
    """
    digest = hashlib.sha256()
    for column in (rows.labels, rows.coarse):
        digest.update(b"none" if column is None else np.ascontiguousarray(column, np.int64).tobytes())
    digest.update("\0".join(map(str, rows.image_ids)).encode())
    count, size = len(rows.labels), max(1, int(np.prod(rows.shape[1:])) * rows.dtype.itemsize)
    step = max(1, BLOCK // size)
    for start in range(0, count, step):
        digest.update(np.ascontiguousarray(rows.read(np.arange(start, min(start + step, count)))).tobytes())
    return {"images": count, "sha256": digest.hexdigest()}


def save_identity(workdir: Path, identity: dict[str, Any]) -> None:
    """Writes ``trained_on.json`` into a work directory."""
    files.write_json(workdir / NAME, {"version": 1, **identity})


def saved_identity(workdir: Path) -> dict[str, Any] | None:
    """What the run in ``workdir`` was trained on; None where it does not say so."""
    found = files.read_json(workdir / NAME)
    return found if isinstance(found, dict) and "sha256" in found else None
