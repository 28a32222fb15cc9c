"""A second feature file in the report of a run: the images that ``config.evaluation.transfer`` names."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float

from fgis.base import Neighbours
from fgis.errors import UserError, naming
from fgis.experiment.run import Run
from fgis.features.fields import BUNDLED
from fgis.features.joined import made_by, refuse_other_makers
from fgis.features.store import Rows
from fgis.retrieval.stored import StoredVectors, row_blocks, search_in, searchable

SAME = 1e-4  # cosine distance of prepared features below which two images are one; rounding to float16 stays below it


@lru_cache(maxsize=1)  # what is left out is printed once
def open_transfer(run: Run) -> Run | None:
    """The run on the images of ``config.evaluation.transfer``, without parameters; None where there are none.

    A file that ships with the package and does not go with the features of the run is left out, which is printed: a
    configuration names it, and nobody may have asked for it.

    Raises:
      UserError: a file of the user's is missing or damaged, was made in another way than ``config.features`` says, or
        holds an image that the run is trained on.
    """
    path = run.settings.evaluation.transfer
    if not path:
        return None
    own = run.rows, run.frozen  # what is wrong with the run's own file is said by itself
    features = {**run.config["features"], "path": path, "images": ""}
    other = Run({**run.config, "features": features}, run.workdir, run.wanted_step)
    try:
        with naming(f"config.evaluation.transfer={path}: "):
            _refuse_unfit(*own, other)
    except UserError as error:
        if path not in BUNDLED:
            raise
        print(f"left out: {error}")
        return None
    return other


def _refuse_unfit(rows: Rows, features: Float[np.ndarray, "n f"] | StoredVectors, other: Run) -> None:
    """Raises ``ValueError`` where the images of ``other`` cannot be compared, or are not other images."""
    ours, shape = rows.shape[1:], other.rows.shape[1:]
    if ours != shape:
        raise ValueError(
            f"features of shape {tuple(shape)}, but those of the run have {tuple(ours)}; name a file of the same "
            "backbone and pooling, or none"
        )
    refuse_other_makers(made_by(rows), made_by(other.rows))
    theirs, gallery = other.frozen, searchable(features, np.arange(len(features)), "cosine")
    found = [search_in(theirs[here], gallery, 1) for here in row_blocks(len(theirs), theirs.shape[1])]
    nearest = Neighbours(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    same = nearest.distances[:, 0] < SAME
    if same.any():
        row = int(same.argmax())
        image_ids = other.rows.image_ids[row], rows.image_ids[nearest.rows[row, 0]]
        raise ValueError(
            f"image {str(image_ids[0])!r} is {str(image_ids[1])!r}, which the run is trained on ({int(same.sum())} "
            "such images); name a file of other images, or none"
        )
