"""``operating_point.json``: the distance beyond which a search says that its object is not in the gallery."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from fgis import files
from fgis.retrieval import open_set

NAME = "operating_point.json"


def write(folder: Path, step: int, distance: str, unknown: Float[np.ndarray, "..."], *, unseen_objects: bool) -> None:
    """Saves the threshold that accepts a share ``open_set.OPERATING`` of queries whose object is not in the gallery.

    Args:
      folder: the work directory, or that of one evaluation.
      step: of the checkpoint that embedded the queries.
      distance: its name.
      unknown: the distance of each query to the nearest image of another object; NaN where there is none.
      unseen_objects: whether no head was trained on the objects of its queries.
    """
    content = {
        "version": 1, "step": step, "distance": distance, "false_alarms": open_set.OPERATING,
        "threshold": open_set.choose_threshold(unknown.ravel(), open_set.OPERATING), "unseen_objects": unseen_objects,
    }  # fmt: skip
    files.write_json(folder / NAME, content)


def read_threshold(folder: Path, step: int) -> float | None:
    """The threshold that was saved with this step; None where none was."""
    point = files.read_json(folder / NAME)
    if not isinstance(point, dict) or point.get("step") != step or not isinstance(point.get("threshold"), int | float):
        return None
    return float(point["threshold"])
