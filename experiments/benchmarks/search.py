"""Exact search against faiss: ``python -m experiments.benchmarks.search [--cases=10k_x_10k,...] [--repeats=7]
[--instructions=avx2]``.

Cases: ``10k_x_10k`` and ``1k_x_100k`` (queries × gallery, top 10, Euclidean, 256 dimensions, a prepared gallery on
both sides: ``faiss.IndexFlatL2`` with two threads), ``1_x_100k`` (one query, 20 times), and ``1k_x_1m_stream``, a
gallery of a million float16 rows that is read from its file in blocks, which has no peer. ``limit`` is XLA's product
alone, in blocks of the same size. Before it times them it checks that both sides find the same rows.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import timing
from fgis.retrieval.search import prepare_gallery, search, search_stream

DIMENSIONS, K, TIMES = 256, 10, 20
CASES = {"10k_x_10k": (10_000, 10_000), "1k_x_100k": (1000, 100_000), "1_x_100k": (1, 100_000)}
STREAM, ROWS, BLOCK = "1k_x_1m_stream", 1_000_000, 1 << 16
PEER = "faiss IndexFlatL2"


def data(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery, normally distributed."""
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=(n, DIMENSIONS)).astype(np.float32) for n in CASES[case])  # type: ignore[return-value]


def ours(case: str) -> Callable[[], np.ndarray]:
    """Our search of a prepared gallery; returns rows."""
    queries, gallery = data(case)
    prepared = prepare_gallery(gallery, "euclidean")
    return lambda: [search(queries, prepared, K).rows for _ in range(turns(case))][-1]


def peer(case: str) -> Callable[[], np.ndarray]:
    """The same with faiss."""
    import faiss

    faiss.omp_set_num_threads(2)
    queries, gallery = data(case)
    index = faiss.IndexFlatL2(DIMENSIONS)
    index.add(gallery)
    return lambda: [index.search(queries, K)[1] for _ in range(turns(case))][-1]


def limit(case: str) -> Callable[[], None]:
    """The matrix products alone."""
    product = timing.products(*data(case))
    return lambda: [product() for _ in range(turns(case))][-1]


def turns(case: str) -> int:
    """How often a turn repeats the work: a single query is too short to be timed once."""
    return TIMES if case.startswith("1_") else 1


def stream(path: str) -> Callable[[], Any]:
    """A thousand queries against a memory-mapped file of float16 rows."""
    queries = np.random.default_rng(1).normal(size=(1000, DIMENSIONS)).astype(np.float32)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        mapped = np.memmap(path, np.float16, "r", shape=(ROWS, DIMENSIONS))
        for start in range(0, ROWS, BLOCK):
            stop = min(start + BLOCK, ROWS)
            yield np.arange(start, stop), mapped[start:stop].astype(np.float32)

    return lambda: search_stream(queries, blocks(), K, "euclidean")


def write_gallery(path: str) -> None:
    """A million rows, half a gigabyte."""
    rng = np.random.default_rng(0)
    mapped = np.memmap(path, np.float16, "w+", shape=(ROWS, DIMENSIONS))
    for start in range(0, ROWS, BLOCK):
        mapped[start : start + BLOCK] = rng.normal(size=(len(mapped[start : start + BLOCK]), DIMENSIONS))
    mapped.flush()


def check(case: str) -> None:
    """Raise SystemExit unless both sides list rows at the same distances, place by place, up to rounding."""
    queries, gallery = data(case)
    found, expected = ours(case)(), peer(case)()
    distances = [np.linalg.norm(queries[:, None] - gallery[rows], axis=-1) for rows in (found, expected)]
    apart = float(np.abs(distances[0] - distances[1]).max() / distances[0].max())
    if not apart < 1e-5:
        raise SystemExit(f"{case}: distances differ from those of the peer by {apart:.2g} of the largest")
    print(
        f"{case}: {(found != expected).mean():.3%} of the rows differ from the peer's, at distances within {apart:.1g}"
    )


def measure(case: str, repeats: int) -> dict[str, Any]:
    """One row of the report."""
    if case == STREAM:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "gallery.f16")
            timing.apart(write_gallery, path)
            (own,) = timing.interleave([(stream, (path,))], min(repeats, 3))
        return timing.row(case, own, PEER, None)
    measured = timing.interleave([(side, (case,)) for side in (ours, peer, limit)], repeats)
    own, other, least = (one._replace(seconds=one.seconds / turns(case)) for one in measured)
    return timing.row(case, own, PEER, other, limit=least)


def main() -> None:
    """Check, measure and report."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.search")
    parser.add_argument("--cases", default=",".join([*CASES, STREAM]))
    parser.add_argument("--repeats", type=int, default=7)
    timing.add_instructions(parser)
    options = parser.parse_args()
    timing.use_instructions(options.instructions)
    cases = options.cases.split(",")
    for case in cases:
        if case not in (*CASES, STREAM):
            parser.error(f"--cases: {case!r} is none of {', '.join([*CASES, STREAM])}")
    if importlib.util.find_spec("faiss") is None:
        print("faiss is not installed; type: pip install -e '.[oracles]'", file=sys.stderr)
        raise SystemExit(2)
    for case in cases:
        if case in CASES:
            timing.apart(check, case)
    timing.report("search", [measure(case, options.repeats) for case in cases])


if __name__ == "__main__":
    main()
