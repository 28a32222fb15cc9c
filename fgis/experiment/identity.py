"""What a run was trained on: a digest of its images, so that a changed feature file is noticed wherever it lies."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fgis import files
from fgis.errors import UserError
from fgis.experiment.differences import DECORATION, flatten
from fgis.features import joined
from fgis.features.store import Rows
from fgis.learning import checkpoint
from fgis.report.contents import versions

NAME = "trained_on.json"
BLOCK = 1 << 26  # bytes of features that are read at a time


def digest_rows(rows: Rows) -> dict[str, Any]:
    """{"images", "sha256"}: the number of images, and the SHA-256 of ids, labels, coarse labels and features in order.

    Names of labels and all attributes of the file are left out: they change no figure. Joined features are those of all
    files side by side, and "files" says how each was made.
    """
    digest = hashlib.sha256()
    for column in (rows.labels, rows.coarse):
        digest.update(b"none" if column is None else np.ascontiguousarray(column, np.int64).tobytes())
    digest.update("\0".join(map(str, rows.image_ids)).encode())
    count, size = len(rows.labels), max(1, int(np.prod(rows.shape[1:])) * rows.dtype.itemsize)
    step = max(1, BLOCK // size)
    for start in range(0, count, step):
        digest.update(np.ascontiguousarray(rows.read(np.arange(start, min(start + step, count)))).tobytes())
    found = {"images": count, "sha256": digest.hexdigest()}
    return {**found, joined.FILES: joined.made_by(rows)} if rows.widths else found


def digest_command(rows: Rows, config: Mapping[str, Any]) -> bytes:
    """SHA-256 of what processes that train together must have in common, which is quick: features of 64 rows alone."""
    digest, count = hashlib.sha256(), len(rows.labels)
    plain = {key: value for key, value in flatten(config).items() if key not in (*DECORATION, "features.path")}
    packages = {name: version for name, version in versions().items() if name != "python"}
    digest.update(json.dumps([plain, packages, rows.shape, count], sort_keys=True, default=str).encode())
    digest.update(np.ascontiguousarray(rows.labels, np.int64).tobytes())
    digest.update("\0".join(map(str, rows.image_ids)).encode())
    digest.update(np.ascontiguousarray(rows.read(np.linspace(0, count - 1, 64).astype(int))).tobytes())
    return digest.digest()


def save_identity(workdir: Path, identity: dict[str, Any]) -> None:
    """Writes ``trained_on.json`` into a work directory."""
    files.write_json(workdir / NAME, {"version": 1, **identity})


def saved_identity(workdir: Path) -> dict[str, Any] | None:
    """What the run in ``workdir`` was trained on; None where it does not say so.

    Raises:
      UserError: the file that says so is damaged.
    """
    found = files.read_object(workdir / NAME)
    if found is not None and not (isinstance(found.get("sha256"), str) and isinstance(found.get("images"), int)):
        raise UserError(f"{workdir / NAME}: holds no digest of images; restore a copy, or remove it")
    return found


def trained_digest(workdir: Path) -> str:
    """The digest of the images that the run in ``workdir`` was trained on, also where its file is lost; "" unknown."""
    if saved := saved_identity(workdir):
        return str(saved["sha256"])
    kept = checkpoint.read_saved(workdir)
    return kept.images if kept else ""
