"""``operating_point.json``: the distances that divide known, uncertain and absent objects, saved with a run."""

from pathlib import Path

from fgis import files
from fgis.retrieval.operating_point import OperatingPoint

NAME = "operating_point.json"
VERSION = 2


def write_point(folder: Path, distance: str, point: OperatingPoint) -> None:
    """Saves what was chosen on the prepared features of a run's images, compared by ``distance``, in its directory."""
    files.write_json(folder / NAME, {"version": VERSION, "distance": distance, **point._asdict()})


def read_point(folder: Path, distance: str) -> OperatingPoint | None:
    """The operating point that was saved for this distance; None where none was, or by an older version.

    JSON has no infinity and no NaN: an infinite limit and unknown rates are saved as null.
    """
    held = files.read_json(folder / NAME)
    if not isinstance(held, dict) or held.get("version") != VERSION or held.get("distance") != distance:
        return None
    missing = {"threshold": float("inf"), "limit": float("inf")}
    values = {name: held.get(name) for name in OperatingPoint._fields}
    if not all(
        value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in values.values()
    ):
        return None
    return OperatingPoint(
        **{name: missing.get(name, float("nan")) if value is None else float(value) for name, value in values.items()}
    )
