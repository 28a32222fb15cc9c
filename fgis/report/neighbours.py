"""``neighbours.h5``: the ranked neighbours of every image, for programs of the user's own."""

from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float, Int

from fgis.files import replacing


def write_neighbours(
    path: Path,
    image_ids: np.ndarray,
    labels: Int[np.ndarray, " n"],
    rows: Int[np.ndarray, "n k"],
    distances: Float[np.ndarray, "n k"],
) -> None:
    """Writes ``image_ids``, ``labels``, ``rows`` (row numbers of both, by ascending distance) and ``distances``.

    The file appears whole or not at all; its bytes depend on the arguments alone.
    """
    with replacing(path) as partial, h5py.File(partial, "w", track_order=False) as file:
        ids = np.asarray(image_ids, dtype=object)
        file.create_dataset("image_ids", data=ids, dtype=h5py.string_dtype("utf-8"), track_times=False)
        for name, values in (("labels", labels), ("rows", rows), ("distances", distances)):
            file.create_dataset(name, data=values, track_times=False)
