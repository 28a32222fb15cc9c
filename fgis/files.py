"""Files that are whole or absent: the one way in which this project writes, and JSON in both directions."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fgis.errors import UserError, reason_of


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; what is written there takes the place of ``path`` at the end.

    The temporary file has one fixed name, ``PATH.partial``, so what a killed process leaves behind is overwritten and
    not piled up. Where the body raises, it is removed and ``path`` stays as it was. Parent folders are created.

    Raises:
      OSError: the folder cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a write says no name: the disk is full
            error.filename = str(target)
        raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes ``content``; a reader sees the old file or the new one, never a part of it."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes ``text`` in UTF-8, as ``write_bytes`` does."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, content: Any) -> None:
    """Writes ``json_types(content)`` as indented JSON, as ``write_bytes`` does."""
    write_text(path, json.dumps(json_types(content), indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any | None:
    """The content of a JSON file; None where it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: str | Path) -> dict[str, Any] | None:
    """The object in a JSON file that a run cannot do without; None where there is no such file.

    Raises:
      UserError: the file cannot be read, or holds anything else.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); look at its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); restore a copy, or remove it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {type(found).__name__} and no object; restore a copy, or remove it")
    return found


def can_write(folder: str | Path) -> bool:
    """Whether files may be made in ``folder``, or where there is none yet, in the nearest folder above it."""
    place = Path(folder).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def json_types(value: Any) -> Any:
    """``value`` in JSON's types: tuples become lists, arrays and array scalars numbers, NaN and infinities None.

    >>> json_types({"widths": (8, 4), "loss": float("nan")})
    {'widths': [8, 4], 'loss': None}
    """
    if isinstance(value, Mapping):
        return {str(key): json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_types(item) for item in value]
    if hasattr(value, "tolist"):
        return json_types(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
