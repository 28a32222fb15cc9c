"""Where embeddings lie and are searched: in memory by this project, or in a database that serves many machines.

An engine is what has the methods of ``Engine``. ``exact.ExactEngine`` is the project's own exact search,
``milvus.MilvusEngine`` a collection of Milvus. Both give the same answer, row for row, where Milvus compares every
vector (a FLAT index). ``exports`` writes the same embeddings to files for other programs.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from fgis.ranges import nearest
from fgis.retrieval.prepare import prepare_queries

FIELDS = ("image_id", "label", "folder")  # what a filter may name; an image lies in every folder above it


class Hit(NamedTuple):
    """One image that was found."""

    image_id: str
    label: str  # "" of an image without a label
    distance: float


@runtime_checkable
class Engine(Protocol):
    """What a search engine does. ``where`` is {field: the values that are wanted}; all fields have to agree."""

    def upsert(self, image_ids: Sequence[str], labels: Sequence[str], embeddings: Float[np.ndarray, "n d"]) -> None:
        """Adds images, or replaces those of the same ids."""

    def delete(self, image_ids: Sequence[str]) -> None:
        """Removes images; ids that are not there are passed over."""

    def search(
        self, vector: Float[np.ndarray, " d"], k: int, where: Mapping[str, Collection[str]] | None = None
    ) -> list[Hit]:
        """The ``k`` nearest images, or fewer where there are not so many; of equally near ones the first id first."""

    def image_ids(self) -> list[str]:
        """The ids of all images, in order."""

    def count(self) -> int:
        """How many images there are."""


def prepare_entries(
    image_ids: Sequence[str], labels: Sequence[str], embeddings: Float[np.ndarray, "n d"], distance: str
) -> Float[np.ndarray, "n d"]:
    """Embeddings as a distance compares them, for ``upsert``; checked.

    Args:
      image_ids: [n], each once.
      labels: [n].
      embeddings: [n, d].
      distance: a key of ``fgis.distances.DISTANCES``.

    Returns:
      Vectors [n, d], float32.

    Raises:
      ValueError: lengths differ, an id comes twice, or an embedding is NaN or infinite.
    """
    if not len(image_ids) == len(labels) == len(embeddings):
        raise ValueError(
            f"image_ids: {len(image_ids)} ids, {len(labels)} labels and {len(embeddings)} embeddings found; write as "
            "many of each"
        )
    if len(set(image_ids)) < len(image_ids):
        raise ValueError(f"image_ids: {len(image_ids) - len(set(image_ids))} come twice; write each once")
    return prepare_queries(embeddings, distance, "embeddings")


def check_search(k: int, where: Mapping[str, Collection[str]] | None) -> Mapping[str, Collection[str]]:
    """The filter of a search, {} of None; ``ValueError`` where ``k`` is below 1 or a field is unknown."""
    if k < 1:
        raise ValueError(f"k: {k} found; write a whole number of at least 1")
    for name, values in (where or {}).items():
        if name not in FIELDS:
            raise ValueError(f"where: field {name!r} found; {nearest(name, FIELDS)}")
        if isinstance(values, str):
            raise ValueError(f"where: {name} is one string; write a list of the values that are wanted")
    return where or {}
