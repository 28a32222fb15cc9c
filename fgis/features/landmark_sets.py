"""Revisited Oxford and Paris, and INRIA Holidays: their images, with the queries of the former cut out of theirs."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fgis.errors import UserError
from fgis.features.lists import Listed
from fgis.features.standard_sets import Edges, Split

GROUND_TRUTHS = ("gnd_roxford5k.pkl", "gnd_rparis6k.pkl")
QUERY = "query/"  # what the image ids of queries begin with; the same photo may be in the gallery as well

ARRAY_NAMES = {
    ("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"), ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"), ("_codecs", "encode"),
}  # fmt: skip


class _ArrayUnpickler(pickle.Unpickler):
    """Reads containers, numbers, text and NumPy arrays alone; a pickle could run any code otherwise."""

    def find_class(self, module: str, name: str) -> Any:
        """The few names that arrays are made of."""
        if (module, name) not in ARRAY_NAMES:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which a ground truth has no use for")
        return super().find_class(module, name)


def read_revisited(path: str | Path) -> dict[str, Any]:
    """The ground truth of revisited Oxford or Paris.

    Args:
      path: ``gnd_roxford5k.pkl`` or ``gnd_rparis6k.pkl``.

    Returns:
      {"imlist": gallery names, "qimlist": query names, "gnd": [{"easy", "hard", "junk": gallery places, "bbx": the part
      of the query image that shows the landmark: left, top, right, bottom in pixels}]}.

    Raises:
      UserError: anything else, also a pickle that holds more than arrays, text and numbers: it is not executed.
    """
    try:
        with Path(path).open("rb") as file:
            content = _ArrayUnpickler(file).load()
        names = [*content["imlist"], *content["qimlist"]]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a name of an image that is no text")
        for one in content["gnd"]:
            places = [int(place) for key in ("easy", "hard", "junk") for place in one[key]]
            if not all(0 <= place < len(content["imlist"]) for place in places):
                raise ValueError(f"a place beyond its {len(content['imlist'])} images")
            left, top, right, bottom = map(float, one["bbx"])
            if not (0 <= left < right and 0 <= top < bottom):
                raise ValueError(f"the box {left:g}, {top:g}, {right:g}, {bottom:g}")
        if len(content["gnd"]) != len(content["qimlist"]):
            raise ValueError(f"{len(content['gnd'])} entries for {len(content['qimlist'])} queries")
    except Exception as error:  # a damaged pickle raises almost anything
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        raise UserError(
            f"{path}: no revisited ground truth ({reason}); take gnd_roxford5k.pkl or gnd_rparis6k.pkl"
        ) from error
    return content


def list_landmarks(root: Path) -> Split:
    """Revisited Oxford or Paris: the folder with ``jpg`` and the ground truth; every image is a label of its own.

    The gallery's images come first, by the names of the ground truth, then the queries, cut to their landmarks.

    Raises:
      ValueError: there is no ground truth, or both.
      UserError: it cannot be used.
    """
    found = [name for name in GROUND_TRUTHS if (root / name).is_file()]
    if len(found) != 1:
        held = " and ".join(found) or "no ground truth"
        raise ValueError(f"images: {root} holds {held}; put one of {' and '.join(GROUND_TRUTHS)} beside the folder jpg")
    content = read_revisited(root / found[0])
    names = [*content["imlist"], *(f"{QUERY}{name}" for name in content["qimlist"])]
    for name in names:
        if not re.fullmatch(rf"({QUERY})?[\w-]+", name, re.ASCII):
            raise UserError(f"{root / found[0]}: {name!r} names no image of the folder jpg; take the published file")
    listed = [Listed(found[0], f"{name}.jpg", str(label), None) for label, name in enumerate(names)]
    boxes: list[Edges | None] = [None] * len(content["imlist"])
    for one in content["gnd"]:
        left, top, right, bottom = map(round, map(float, one["bbx"]))
        boxes.append((left, top, right, bottom))
    return Split(root / "jpg", listed, [box is not None for box in boxes], boxes)


def list_holidays(root: Path) -> Split:
    """INRIA Holidays: a folder of ``NNNNNN.jpg``; images of a group (number // 100) have the same label.

    Raises:
      ValueError: there is no such image.
    """
    names = sorted(path.name for path in root.iterdir() if re.fullmatch(r"\d{6}\.jpe?g", path.name, re.IGNORECASE))
    if not names:
        raise ValueError(f"images: no NNNNNN.jpg in {root}; name the folder of the images of INRIA Holidays")
    return Split(root, [Listed(str(root), name, str(int(name[:6]) // 100), None) for name in names])


LANDMARK_SETS: dict[str, Callable[[Path], Split]] = {"landmarks": list_landmarks, "holidays": list_holidays}
