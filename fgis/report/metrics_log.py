"""``metrics.jsonl``: one JSON object per line, one line per recorded step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgis.errors import UserError, reason_of
from fgis.files import json_types, write_text


def append_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Appends ``record`` as one line; NaN and infinities become null."""
    line = json.dumps(json_types(record)) + "\n"
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({reason_of(error)}); put that right and run the same command again, which "
            "goes on from the last checkpoint"
        ) from error


def read_records(path: str | Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The records up to and including ``last_step``, all of them without it.

    A missing file holds no records. A last line that is no JSON is left out: a killed run leaves it incomplete.

    Raises:
      UserError: the file cannot be read, or a line is no record of such a run; the line names it.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason_of(error)}); look at its permissions") from error
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            record = None
        if wrong := _why_no_record(record, records[-1] if records else None):
            raise UserError(
                f"{path}:{number}: {wrong}; restore a copy, or remove the file (the report is then without curves)"
            )
        records.append(record)
    return [record for record in records if last_step is None or record["step"] <= last_step]


def _why_no_record(record: Any, before: Mapping[str, Any] | None) -> str:
    """Why a line is not the record after ``before``; "" where it is."""
    step = record.get("step") if isinstance(record, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        return "no record of a step"
    values = [value for key, value in record.items() if key != "step"]
    if not all(isinstance(value, list) and all(map(_is_number, value)) for value in values):
        return "not a list of numbers under every key"
    widths = {len(value) for value in values}
    if before and step <= before["step"]:
        return f"step {step} after step {before['step']}, as of two trainings at once"
    known = widths if before is None else {len(value) for key, value in before.items() if key != "step"}
    if len(widths) > 1 or widths != known or (before and record.keys() != before.keys()):
        return "other keys or another number of runs than in the line before"
    return ""


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


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
