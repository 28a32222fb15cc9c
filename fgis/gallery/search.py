"""Searching a gallery with one picture: its ranking, and whether its object is in the gallery at all."""

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from fgis.base import Neighbours
from fgis.distances import pairwise_distances
from fgis.gallery.tiles import DEEPER, Found, Windows, merge_windows
from fgis.retrieval import open_set
from fgis.retrieval.graph import GalleryGraph
from fgis.retrieval.operating_point import OperatingPoint, choose_operating_point
from fgis.retrieval.rerank import FirstSearch, Rerank
from fgis.retrieval.stored import StoredVectors, row_blocks, search_in

_compiled_distances = jax.jit(pairwise_distances, static_argnums=2)  # one program, not one for each operation
SAMPLED = 2000  # images of the gallery, at most, that an operating point is chosen on


Where = Mapping[str, Sequence[str]]  # a filter, as engines take it
Find = Callable[[Float[np.ndarray, "1 d"], int, Where | None], Neighbours]


class SearchGallery(NamedTuple):
    """A gallery that is ready to be searched: ranked by embeddings, and judged by prepared features."""

    embeddings: Any  # [n, d]: an array, or ``StoredVectors`` where they do not fit into memory
    prepared: Any  # the same as ``Gallery`` or ``StoredGallery``, made ready once for all queries, with the distance
    features: Any  # [n, f], likewise: what embeddings are made of
    judging: Any  # the same, made ready
    labels: Int[np.ndarray, " n"]
    image_ids: np.ndarray  # [n] str
    prepare: Callable[[np.ndarray], Float[np.ndarray, "m f"]]  # features as the file holds them -> prepared features
    embed: Callable[[Float[np.ndarray, "m f"]], Float[np.ndarray, "m d"]]  # prepared features -> embeddings
    point: OperatingPoint | None  # when the object of a query counts as known; None where nothing tells
    words: str  # what is searched, for people
    windows: Windows | None = None  # of its pictures, where they are rows behind these; labels are of pictures
    graph: GalleryGraph | None = None  # what re-rankings need of the embeddings alone
    find: Find | None = None  # an engine elsewhere that finds the nearest embeddings; None: they are searched here
    note: str = ""  # why the head of a run that was named does not embed; "" where it does, or where none was named


class SearchOptions(NamedTuple):
    """What is wanted of a ranking."""

    k: int = 12
    rerank: Rerank | None = None
    farthest: bool = False


class PictureRanking(NamedTuple):
    """The gallery as one picture ranks it."""

    found: Found  # of one query
    nearest: float  # the distance of the nearest image by features, which is what the verdict is about
    judged: Float[np.ndarray, " k"]  # the distances of the ranked images by features
    milliseconds: dict[str, float]  # of each stage


def compute_operating_point(
    embeddings: Float[np.ndarray, "n d"] | StoredVectors, labels: Int[np.ndarray, " n"], distance: str, seed: int
) -> OperatingPoint | None:
    """The operating point of a gallery, from its own images.

    Args:
      embeddings: of the gallery, not by a head that was trained on these images.
      labels: the object of each image.
      distance: what embeddings are compared by.
      seed: which ``SAMPLED`` images are queries, where there are more.

    Returns:
      The operating point; None for a gallery of one object.
    """
    count = len(labels)
    if len(np.unique(labels)) < 2:
        return None
    queries = np.sort(np.random.default_rng(seed).permutation(count)[:SAMPLED])
    known, _, unknown = open_set.nearest_known_and_unknown(embeddings, labels, queries, np.arange(count), distance)
    return choose_operating_point(known[None], unknown[None], labels[queries])


def find_nearest(
    gallery: SearchGallery, query: Float[np.ndarray, "1 d"], k: int, where: Where | None = None
) -> Neighbours:
    """The ``k`` nearest images to one embedded query, by the engine where there is one; ties go to the lowest row.

    Args:
      gallery: what is searched.
      query: its embedding.
      k: at most the images that there are.
      where: a filter; only an engine takes one.

    Returns:
      Rows and distances [1, k].
    """
    if gallery.find:
        return gallery.find(query, k, where)
    return search_in(query, gallery.prepared, k)


def rank_picture(
    gallery: SearchGallery, describe: Callable[[Image.Image], np.ndarray], image: Image.Image, options: SearchOptions
) -> PictureRanking:
    """The gallery ranked for one picture: nearest first, re-ranked, or farthest first. Ties go to the lowest row."""
    milliseconds: dict[str, float] = {}
    began = perf_counter()

    def stage(name: str) -> None:
        nonlocal began
        milliseconds[name], began = 1000 * (perf_counter() - began), perf_counter()

    features = describe(image)
    stage("describe")
    prepared = gallery.prepare(features)
    query = gallery.embed(prepared)
    stage("embed")
    rows, distance = np.arange(len(gallery.embeddings)), gallery.prepared.distance
    k = min(options.k * (DEEPER if gallery.windows else 1), len(rows))
    neighbours = find_nearest(gallery, query, k)
    own = gallery.judging is not gallery.prepared  # otherwise the first search has answered this as well
    nearest = float((search_in(prepared, gallery.judging, 1) if own else neighbours).distances[0, 0])
    if options.rerank:
        neighbours = options.rerank(FirstSearch(query, gallery.embeddings, rows, distance, neighbours, gallery.graph))
    elif options.farthest:
        parts = (gallery.embeddings[here] for here in row_blocks(len(rows), gallery.embeddings.shape[1]))
        distances = np.concatenate([np.asarray(_compiled_distances(query, part, distance)) for part in parts], axis=1)
        order = np.argsort(-distances, axis=1, kind="stable")[:, :k]
        neighbours = Neighbours(order, np.take_along_axis(distances, order, axis=1))
    found = merge_windows(gallery.windows, neighbours, options.k)
    judged = np.asarray(_compiled_distances(prepared, gallery.features[found.rows], distance))[0]
    stage("search")
    return PictureRanking(found, nearest, judged, milliseconds)
