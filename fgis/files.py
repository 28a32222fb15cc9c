"""Files that are whole or absent: the one way in which this project writes, and JSON in both directions."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
    except BaseException:
        partial.unlink(missing_ok=True)
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
    except (OSError, ValueError):
        return None


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
