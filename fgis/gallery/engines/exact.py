"""The engine of one machine: all embeddings in memory, searched exactly."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from fgis.gallery.engines import Hit, check_search, prepare_entries
from fgis.retrieval.measures import find_measure
from fgis.retrieval.prepare import Gallery, prepare_gallery, prepare_queries
from fgis.retrieval.search import search

BLOCK = 1 << 14  # filtered images that are compared at a time


class ExactEngine:
    """The project's own exact search behind the protocol of engines; changes are gathered until the next search."""

    def __init__(self, distance: str = "cosine") -> None:
        """Takes a key of ``fgis.distances.DISTANCES``."""
        self._measure, self._distance = find_measure(distance), distance
        self._entries: dict[str, tuple[str, np.ndarray]] = {}  # image id -> label, embedding
        self._gallery: Gallery | None = None  # of the entries by image id; None after a change
        self._ids: list[str] = []

    def upsert(self, image_ids: Sequence[str], labels: Sequence[str], embeddings: Float[np.ndarray, "n d"]) -> None:
        """Adds images, or replaces those of the same ids.

        Raises:
          ValueError: as ``prepare_entries``, or embeddings of another size than those that are there.
        """
        size = prepare_entries(image_ids, labels, embeddings, self._distance).shape[1]
        held = next((len(embedding) for _, embedding in self._entries.values()), size)
        if held != size:
            raise ValueError(f"embeddings: {size} numbers found; those of the engine have {held}")
        self._entries.update(zip(image_ids, zip(labels, np.asarray(embeddings, np.float32), strict=True), strict=True))
        self._gallery = None

    def delete(self, image_ids: Sequence[str]) -> None:
        """Removes images; ids that are not there are passed over."""
        for image_id in image_ids:
            self._entries.pop(image_id, None)
        self._gallery = None

    def image_ids(self) -> list[str]:
        """The ids of all images, in order."""
        return sorted(self._entries)

    def count(self) -> int:
        """How many images there are."""
        return len(self._entries)

    def search(
        self, vector: Float[np.ndarray, " d"], k: int, where: Mapping[str, Collection[str]] | None = None
    ) -> list[Hit]:
        """The ``k`` nearest images that pass the filter; of equally near ones the first id first.

        Raises:
          ValueError: ``k`` below 1, an unknown field, or a vector of another size.
        """
        wanted = check_search(k, where)
        if not self._entries:
            return []
        if self._gallery is None:
            self._ids = self.image_ids()
            embeddings = np.stack([self._entries[image_id][1] for image_id in self._ids])
            self._gallery = prepare_gallery(embeddings, self._distance)
        if wanted:
            rows, distances = self._search_filtered(vector, k, wanted)
        else:
            found = search(np.asarray(vector)[None], self._gallery, min(k, len(self._ids)))
            rows, distances = found.rows[0], found.distances[0]
        ids = [self._ids[row] for row in rows]
        return [
            Hit(image_id, self._entries[image_id][0], float(distance))
            for image_id, distance in zip(ids, distances, strict=True)
        ]

    def _search_filtered(
        self, vector: np.ndarray, k: int, wanted: Mapping[str, Collection[str]]
    ) -> tuple[Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """By comparing with every image that passes: a product for each filter would be compiled for its size."""
        sets = {name: set(values) for name, values in wanted.items()}
        ids, labels = sets.get("image_id"), sets.get("label")
        folders = None if "folder" not in sets else tuple(f"{folder}/" for folder in sets["folder"])
        rows = np.array([
            row for row, image_id in enumerate(self._ids)
            if (ids is None or image_id in ids) and (labels is None or self._entries[image_id][0] in labels)
            and (folders is None or image_id.startswith(folders))
        ], int)  # fmt: skip
        (query,) = prepare_queries(np.asarray(vector)[None], self._distance)
        (shard,) = self._gallery.shards if self._gallery else ()
        if len(query) != shard.vectors.shape[1]:
            raise ValueError(f"vector: {len(query)} numbers found; those of the engine have {shard.vectors.shape[1]}")
        keys = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), BLOCK):
            here = slice(start, start + BLOCK)
            keys[here] = self._measure.exact(query, shard.vectors[rows[here]])
        distances = self._measure.finish(keys)
        order = np.argsort(distances, kind="stable")[:k]
        return rows[order], distances[order]
