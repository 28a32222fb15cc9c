"""``metrics.jsonl``: one JSON object per line, one line per recorded step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgis.files import json_types, write_text


def append_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Appends ``record`` as one line; NaN and infinities become null."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(json_types(record)) + "\n")


def read_records(path: str | Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The records up to and including ``last_step``, all of them without it.

    A missing file holds no records. Reading stops at the first line that is no JSON: a killed run leaves its last
    line incomplete.
    """
    records: list[dict[str, Any]] = []
    if not Path(path).exists():
        return records
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if last_step is None or record["step"] <= last_step:
            records.append(record)
    return records


def rewind_records(path: str | Path, last_step: int) -> None:
    """Removes the records after ``last_step``, the step that a run resumes from; a missing file stays missing."""
    if Path(path).exists():
        write_text(path, "".join(json.dumps(record) + "\n" for record in read_records(path, last_step)))


def collapsed_runs(records: list[dict[str, Any]]) -> list[int]:
    """The runs that the last record marks as collapsed: their embeddings were nearly one point or one line.

    >>> collapsed_runs([{"step": 1, "collapsed": [1.0, 1.0]}, {"step": 2, "collapsed": [0.0, 1.0]}])
    [1]
    """
    flags = records[-1].get("collapsed", []) if records else []
    return [run for run, flag in enumerate(flags) if flag]


def idle_runs(records: list[dict[str, Any]]) -> list[int]:
    """The runs in which no term of the loss was above 0 at any record: nothing moved them but the optimiser.

    >>> idle_runs([{"step": 1, "active": [0.0, 0.0]}, {"step": 2, "active": [0.0, 0.5]}])
    [0]
    """
    shares = [record["active"] for record in records if "active" in record]
    return [run for run, values in enumerate(zip(*shares, strict=True)) if not any(values)]
