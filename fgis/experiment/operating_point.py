"""``operating_point.json``: the distances that divide known, uncertain and absent objects, saved with a run."""

from pathlib import Path

from fgis import files
from fgis.retrieval.operating_point import OperatingPoint

NAME = "operating_point.json"
VERSION = 2


def write_point(folder: Path, step: int, distance: str, point: OperatingPoint, *, unseen_objects: bool) -> None:
    """Saves an operating point.

    Args:
      folder: the work directory, or that of one evaluation.
      step: of the checkpoint that embedded the images.
      distance: its name.
      point: what was chosen on the images of the run.
      unseen_objects: whether no head was trained on the objects that it was judged on.
    """
    content = {"version": VERSION, "step": step, "distance": distance, **point._asdict()}
    files.write_json(folder / NAME, {**content, "unseen_objects": unseen_objects})


def read_point(folder: Path, step: int) -> OperatingPoint | None:
    """The operating point that was saved with this step; None where none was, or by an older version.

    JSON has no infinity and no NaN: an infinite limit and unknown rates are saved as null.
    """
    held = files.read_json(folder / NAME)
    if not isinstance(held, dict) or held.get("version") != VERSION or held.get("step") != step:
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
