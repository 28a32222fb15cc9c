"""The neighbours of a gallery's own images, which re-rankings read: computed once and kept in ``neighbours.npz``."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fgis import files
from fgis.base import Neighbours
from fgis.retrieval.graph import DEEPEST
from fgis.retrieval.search import prepare_queries, search

NAME = "neighbours.npz"
MOST_WHEN_INDEXED = 10_000  # images of a gallery whose neighbours are computed when it is indexed: some seconds


def keep_graph(gallery: Path, embeddings: Float[np.ndarray, "n d"], key: Mapping[str, Any]) -> Neighbours:
    """The neighbours that are kept for exactly these images, or computed now and, where the folder allows it, kept.

    Args:
      gallery: its folder.
      embeddings: of all images.
      key: what they depend on, in JSON's types.

    Returns:
      The nearest images of each, itself included, by cosine: rows and distances [n, ``DEEPEST``], or all of fewer.
    """
    wanted, path = json.dumps(files.json_types(key), sort_keys=True), gallery / NAME
    # NumPy and zipfile raise almost anything for a damaged file, which is computed again.
    with suppress(Exception), np.load(path, allow_pickle=False) as held:
        if str(held["key"]) == wanted and len(held["rows"]) == len(embeddings):
            return Neighbours(held["rows"].astype(np.int64), held["distances"])
    vectors = prepare_queries(embeddings, "cosine")  # as re-rankings do: the same bits
    found = search(vectors, vectors, min(DEEPEST, len(vectors)))
    with suppress(OSError), files.replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, key=np.array(wanted), rows=found.rows.astype(np.int32), distances=found.distances)
    return Neighbours(found.rows, found.distances)
