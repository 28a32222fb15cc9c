"""Several feature files of the same images as one: rows matched by image id, the features of a row side by side."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fgis.errors import UserError
from fgis.features.fields import named, resolved
from fgis.features.store import CHECKED, LAYER, Rows, open_rows

FILES = "files"  # the key of ``Rows.source`` under which joined features say of each file what it says of itself


def listed(path: str | Path) -> tuple[str, ...]:
    """The files that a path names, with commas between them; one whose own name has commas is one file.

    >>> listed("a.h5, b.h5"), listed("")
    (('a.h5', 'b.h5'), ('',))
    """
    whole = str(path)
    return (whole,) if os.path.exists(resolved(whole)) else tuple(part.strip() for part in whole.split(","))


def open_files(path: str | Path, pixels: Sequence[int] = ()) -> Rows:
    """Open what a path names: one file as ``store.open_rows`` does, several by ``join_rows``.

    Args:
      path: one file, or several with commas between them.
      pixels: sides of copies of images, of one file alone.

    Raises:
      UserError: as both.
      ValueError: ``pixels`` are named beside several files.
    """
    paths = listed(path)
    if len(paths) == 1:
        return open_rows(paths[0], pixels)
    if pixels:
        raise ValueError(f"{tuple(pixels)} found beside {len(paths)} files, which are joined without copies; write ()")
    return join_rows(paths)


def join_rows(paths: Sequence[str]) -> Rows:
    """Feature files of the same images as one, in the order of the first: [x₁ | x₂ | …], not yet prepared.

    Spatial features are averaged over their places first. Nothing is read before ``read`` is called, and then rows of
    every file alone.

    Args:
      paths: of at least one file, each with the same image ids and labels in any order.

    Returns:
      Rows with the ``widths`` of the files. ``source`` has what all files say alike and, under ``files``, what each
      says of itself.

    Raises:
      UserError: a file cannot be read (``store.open_rows``), lacks images of another, or gives one another label.
    """
    parts = [open_rows(path) for path in paths]
    first = parts[0]
    orders = [_match(paths[0], first, path, part) for path, part in zip(paths, parts, strict=True)]
    widths = tuple(part.shape[-1] for part in parts)

    def read(rows: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b f"]:
        found = [_pooled(part.read(order[rows])) for part, order in zip(parts, orders, strict=True)]
        return np.concatenate(found, axis=1)

    dtype = np.result_type(*(part.dtype if len(part.shape) == 2 else np.float32 for part in parts))
    alike = {key: value for key, value in first.source.items() if all(p.source.get(key) == value for p in parts)}
    each = [{"file": named(path), **part.source} for path, part in zip(paths, parts, strict=True)]
    return first._replace(
        shape=(len(first.labels), sum(widths)), dtype=dtype, source={**alike, FILES: each}, read=read, widths=widths
    )


def made_by(rows: Rows) -> list[dict[str, Any]]:
    """What each of several joined files says of how its features were made; [] of one file.

    >>> rows = Rows((1, 2), np.dtype("f4"), np.zeros(1, int), np.array(["a"]), {"backbone": "vgg16"}, lambda rows: rows)
    >>> made_by(rows), made_by(rows._replace(source={"files": [{"file": "a.h5", "backbone": "vgg16"}]}))
    ([], [{'backbone': 'vgg16'}])
    """
    keys = (*CHECKED[1:], LAYER)  # the collection may be another
    return [{key: one[key] for key in keys if key in one} for one in rows.source.get(FILES, [])]


def refuse_other_makers(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]]) -> None:
    """Refuses joined files that were not made as others were, in the same order; both as ``made_by`` says.

    Raises:
      ValueError: another number of files, or one differs in a key that both say.
    """
    if len(ours) != len(theirs):
        raise ValueError(
            f"files of other networks: {len(theirs) or 1}, where {len(ours) or 1} were joined; name as many"
        )
    for place, (own, other) in enumerate(zip(ours, theirs, strict=True), 1):
        for key in {**own, LAYER: ""}:
            here, there = (one.get(key, "" if key == LAYER else None) for one in (own, other))
            if None not in (here, there) and here != there:
                raise ValueError(
                    f"file {place} was made with {key} {there!r}, but {here!r} belongs there; name the files "
                    "in the order of those that were joined"
                )


def _match(ours: str, first: Rows, theirs: str, other: Rows) -> Int[np.ndarray, " n"]:
    """The rows of ``other`` in the order of ``first``."""
    for path, lacking, holder, held in ((theirs, other, ours, first), (ours, first, theirs, other)):
        missing = held.image_ids[~np.isin(held.image_ids, lacking.image_ids)]
        if len(missing):
            raise UserError(
                f"{named(path)}: lacks {len(missing)} of the {len(held.image_ids)} images of {named(holder)}, the "
                f"first of them {str(missing[0])!r}; name files of the same images"
            )
    order = np.argsort(other.image_ids)[np.argsort(np.argsort(first.image_ids))]
    for what in ("labels", "coarse", "is_query"):
        own, found = getattr(first, what), getattr(other, what)
        if own is None or found is None:
            continue
        differs = own != found[order]
        if differs.any():
            row = int(differs.argmax())
            raise UserError(
                f"{named(theirs)}: {what} of image {str(first.image_ids[row])!r} is {int(found[order][row])}, but "
                f"{int(own[row])} in {named(ours)} ({int(differs.sum())} such images); extract both from one list"
            )
    return order


def _pooled(values: Float[np.ndarray, "b ..."]) -> Float[np.ndarray, "b f"]:
    if values.ndim == 2:
        return values
    return values.mean(axis=tuple(range(1, values.ndim - 1)), dtype=np.float64).astype(np.float32)
