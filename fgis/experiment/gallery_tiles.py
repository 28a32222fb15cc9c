"""The windows of a gallery's pictures: how they are divided, and their features behind those of the pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from fgis.errors import UserError
from fgis.experiment.build import Scoring
from fgis.gallery.store import ImageRecord, Store, damaged
from fgis.gallery.tiles import Tiles, Windows


def read_tiles(store: Store) -> Tiles | None:
    """How the pictures of a gallery are divided; None where they are not."""
    held = store.meta("tiles")
    if not held:
        return None
    if not isinstance(held, list) or len(held) != len(Tiles._fields) or not all(type(one) is int for one in held):
        raise damaged(store.path, "how its pictures are divided")
    return Tiles(*held)


def settle_tiles(store: Store, tiles: Tiles | None, gallery: Path) -> Tiles | None:
    """The tiles of a gallery: those of its first images, also where none are named; others are refused."""
    if not store.count():
        return tiles
    known = read_tiles(store)
    refuse_other_tiles(known, tiles or known, gallery)
    return known


def refuse_other_tiles(known: Tiles | None, tiles: Tiles | None, gallery: Path) -> None:
    """Refuses windows that differ from those of a gallery or shard."""
    if known != tiles:
        wanted, says = (f"--tiles={one.size},{one.stride}" if one else "no --tiles" for one in (tiles, known))
        raise UserError(f"{wanted}: {gallery} was indexed with {says}; leave it so, or name another --gallery")


def add_windows(
    store: Store, records: Sequence[ImageRecord], features: Float[np.ndarray, "n f"], scoring: Scoring
) -> tuple[Float[np.ndarray, "m f"], Windows | None]:
    """The features of all pictures and, behind them, of their windows; None where there are no windows."""
    ids, boxes, vectors = store.windows()
    if not ids:
        return features, None
    row_of = {one.image_id: row for row, one in enumerate(records)}
    image_of = np.concatenate([np.arange(len(records)), np.array([row_of[image_id] for image_id in ids])])
    boxes = np.concatenate([np.zeros((len(records), 4), int), boxes])
    return np.concatenate([features, scoring.prepare(vectors)]), Windows(image_of, boxes)
