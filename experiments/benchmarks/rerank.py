"""Re-ranking one query in a gallery that is searched again and again: ``python -m experiments.benchmarks.rerank``.

10,000 images of 1,280 dimensions, 24 results. ``peer`` is the same method without what is kept of the gallery, as every
search was once; ``limit`` is the first search, which every method begins with. ``first_s`` is the first search with the
method after the neighbours of the images were read from disk. All give the same rows and distances.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from experiments.benchmarks import timing
from fgis.experiment.start import prepare_jax
from fgis.retrieval.graph import DEEPEST, GalleryGraph
from fgis.retrieval.measures import to_unit
from fgis.retrieval.rerank import RERANKERS, FirstSearch
from fgis.retrieval.search import prepare_gallery, prepare_queries, search

IMAGES, DIMENSIONS, LISTED, REPEATS = 10_000, 1280, 24, 5


def seconds(function: Callable[[], Any], repeats: int = REPEATS) -> float:
    """The least of some turns."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    """Prints the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES)
    images = parser.parse_args().images
    prepare_jax()
    rng = np.random.default_rng(0)
    objects = np.abs(rng.normal(size=(images // 4 + 1, DIMENSIONS))).repeat(4, axis=0)[:images]
    gallery = to_unit((objects + 0.5 * np.abs(rng.normal(size=objects.shape))).astype(np.float32))
    prepared, rows, query = prepare_gallery(gallery, "cosine"), np.arange(images), gallery[5:6]
    began = time.perf_counter()
    vectors = prepare_queries(gallery, "cosine")  # as methods do
    known = search(vectors, vectors, DEEPEST)
    print(f"the neighbours of {images:,} images: {time.perf_counter() - began:.1f} s, once")
    first = FirstSearch(query, gallery, rows, "cosine", search(query, prepared, LISTED))
    limit = seconds(lambda: search(query, prepared, LISTED))
    table = []
    for name, method in RERANKERS.items():
        graph = GalleryGraph(lambda: known)
        began = time.perf_counter()
        found = method(first._replace(graph=graph))
        first_s = time.perf_counter() - began
        expected = method(first)
        assert np.array_equal(found.rows, expected.rows)
        assert np.array_equal(found.distances, expected.distances)
        ours = seconds(partial(method, first._replace(graph=graph)))
        peer = seconds(partial(method, first), 1)
        table.append({
            "case": name, "ours_s": ours, "peer": "nothing kept", "peer_s": peer, "ratio": peer / ours,
            "limit_s": limit, "over_limit": ours / limit, "first_s": first_s,
        })  # fmt: skip
    timing.report("rerank", table)


if __name__ == "__main__":
    main()
