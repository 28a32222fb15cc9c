"""What a run leaves to be read by programs: ``config.json``, ``metrics.jsonl`` and ``report.json``.

Files appear whole or not at all; nothing in them depends on the clock, so the same run writes the same bytes.
"""

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VERSION = 1
PACKAGES = ("fgis", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """The versions that a figure depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def write_text(path: str | Path, text: str) -> None:
    """Writes a file that is whole or absent, never half-written."""
    partial = Path(f"{path}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """``content`` as indented JSON; NaN and infinities become null, which every reader accepts."""
    write_text(path, json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any | None:
    """The content of a file that ``write_json`` wrote; None where it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def append_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Adds one line to a ``metrics.jsonl``."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(record)) + "\n")


def read_records(path: str | Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The records up to ``last_step``; what a killed run left half-written at the end is passed over."""
    records = []
    if Path(path).exists():
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if last_step is None or record["step"] <= last_step:
                records.append(record)
    return records


def rewind_records(path: str | Path, last_step: int) -> None:
    """Cuts a ``metrics.jsonl`` back to the step that a run resumes from."""
    if Path(path).exists():
        kept = read_records(path, last_step)
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def _plain(value: Any) -> Any:
    """``value`` as JSON types: tuples become lists, array scalars numbers, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
