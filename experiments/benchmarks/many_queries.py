"""What a large evaluation does besides searching: ``python -m experiments.benchmarks.many_queries [--queries=100000]``.

Cases: the bootstrap of a metric (``bootstrap``), the figures and intervals of an open set (``open_set``), and every
re-ranking, of so many queries in a gallery of 10,000 images of 256 dimensions, four an object, 100 neighbours a query.
``limit`` of a re-ranking is the first search, at the depth that is re-ranked; its gallery is new each time, and nothing
is kept of it. Times are of one run, after one in small that compiles.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from experiments.benchmarks import timing
from fgis.retrieval.intervals import summarize
from fgis.retrieval.measures import to_unit
from fgis.retrieval.open_set import open_set
from fgis.retrieval.rerank import RERANKERS, first_search
from fgis.retrieval.search import search

QUERIES, GALLERY, DIMENSIONS, SIZE, DEPTH, SEEDS = 100_000, 10_000, 256, 4, 100, 3
SMALL = 1024  # queries of the run that compiles


def data(queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of queries and gallery: images of the same objects."""
    rng = np.random.default_rng(0)
    objects = rng.standard_normal((GALLERY // SIZE, DIMENSIONS), np.float32)
    drawn = [objects[np.arange(n) % len(objects)] for n in (queries, GALLERY)]
    return tuple(to_unit(x + rng.standard_normal(x.shape, np.float32)) for x in drawn)  # type: ignore[return-value]


def statistics(case: str, queries: int) -> Callable[[], Any]:
    """Intervals over three seeds, resampled by object."""
    rng, labels = np.random.default_rng(0), np.arange(queries) // SIZE
    values = rng.random((SEEDS, queries))
    if case == "bootstrap":
        return lambda: summarize(values, labels)
    return lambda: open_set(values, values < 0.5, values + rng.random((SEEDS, queries)), labels)


def reranked(name: str, queries: int) -> Callable[[], Any]:
    """The first search and a method."""
    own, gallery = data(queries)

    def run(count: int) -> Any:
        first = first_search(own[:count], gallery, DEPTH)
        return RERANKERS[name](first)

    run(SMALL)
    return partial(run, queries)


def searched(queries: int) -> Callable[[], Any]:
    """The first search alone."""
    own, gallery = data(queries)
    search(own[:SMALL], gallery, DEPTH)
    return lambda: search(own, gallery, DEPTH)


def once(make: Callable[..., Callable[[], Any]], *arguments: Any) -> timing.Measured:
    """One run of a side in a process of its own."""
    side = timing.Side(make, arguments)
    seconds, _ = side.run()
    return timing.Measured(seconds, side.close())


def main() -> None:
    """Measure and report."""
    cases = ("bootstrap", "open_set", *RERANKERS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--cases", default=",".join(cases))
    timing.add_instructions(parser)
    options = parser.parse_args()
    timing.use_instructions(options.instructions)
    chosen = options.cases.split(",")
    if unknown := [case for case in chosen if case not in cases]:
        parser.error(f"--cases: {unknown[0]!r} is none of {', '.join(cases)}")
    least = once(searched, options.queries) if any(case in RERANKERS for case in chosen) else None
    rows = []
    for case in chosen:
        if case in RERANKERS:
            rows.append(timing.row(case, once(reranked, case, options.queries), "", None, limit=least))
        else:
            rows.append(timing.row(case, once(statistics, case, options.queries), "", None))
    timing.report("many_queries", rows)


if __name__ == "__main__":
    main()
