"""Text files that list images or classes, and the files that they name.

Errors are UserErrors that begin with the file, and with the number of the line where there is one.
"""

import csv
import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fgis.errors import UserError
from fgis.features.images import SUFFIXES

# First cells of a header line in a CSV file; the second and third cells may say anything.
HEADERS = ("file", "file_name", "file_path", "filename", "filepath", "image", "image_id", "image_path", "path")


class Listed(NamedTuple):
    """One image as a list names it, and where: ``FILE:LINE``."""

    place: str
    image_id: str
    label: str
    coarse: str | None


def read_text(path: Path) -> str:
    """The content of a text file in UTF-8, without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text in UTF-8 ({error}); repair or rewrite it") from error


def read_csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    """``FILE:LINE`` and the stripped cells of each line of a CSV file that is not empty."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield f"{path}:{reader.line_num}", cells
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV ({error}); repair the line") from error


def has_header(root: Path, paths: Sequence[str]) -> bool:
    """Whether the first path of a list is a title; see ``collection.csv``."""
    if not paths or Path(paths[0]).suffix.lower() in SUFFIXES or find_file(root, paths[0]).is_file():
        return False
    return paths[0].lower() in HEADERS or (len(paths) > 1 and find_file(root, paths[1]).is_file())


def find_file(root: Path, name: str) -> Path:
    """The file ``name`` below ``root``, or where there is none, the same in another normalisation of Unicode."""
    path = root / name
    if path.exists():
        return path
    others = (root / unicodedata.normalize("NFC", name), root / unicodedata.normalize("NFD", name))
    return next((other for other in others if other.exists()), path)


def read_class_names(path: Path, labels: Int[np.ndarray, " n"]) -> tuple[str, ...]:
    """The class names of ``classes.csv``, by id."""
    columns = ("Class Name (str)", "Class ID (int)")
    (place, header), *lines = list(read_csv(path)) or [(f"{path}:1", [])]
    if not set(columns) <= set(header):
        raise UserError(f"{place}: found {','.join(header)!r}; the first line must name the columns {columns}")
    names: dict[int, str] = {}
    for place, cells in lines:
        row: dict[str, Any] = dict(zip(header, cells, strict=False))
        name, number = (row.get(column, "") for column in columns)
        if not name or not re.fullmatch(r"\d{1,9}", number) or int(number) in names:
            raise UserError(f"{place}: class name {name!r} and id {number!r}; write a name and an id of its own")
        names[int(number)] = name
    missing = sorted({*range(len(names)), *labels.tolist()} - {*names})
    if missing:
        raise UserError(f"{path}: no class has id {missing[0]}; name every class, with ids from 0 on")
    return tuple(names[number] for number in range(len(names)))
