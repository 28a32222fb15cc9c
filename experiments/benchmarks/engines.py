"""Search engines beside each other: ``python -m experiments.benchmarks.engines [--rows=100000] [--engines=exact]``.

Recall@10 against the exact search, the time of one query (the median of 50), the time until all rows are in and indexed
and the first query is answered, and the peak memory, each engine in a process of its own: ``exact`` (this project's),
and milvus-lite with a FLAT index (``flat``) and with two approximate ones (``ivf``, ``hnsw``). Rows are of 256 numbers,
normally distributed around 1,000 centres, compared by cosine.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks import timing
from experiments.machine import peak_megabytes
from fgis.gallery.engines import Engine, milvus
from fgis.gallery.engines.exact import ExactEngine
from fgis.retrieval.search import search

DIMENSIONS, K, QUERIES, CENTRES = 256, 10, 50, 1000
FILE, COLLECTION = "rows.db", "rows"
INDEXES: dict[str, dict[str, Any]] = {
    "flat": {"index_type": "FLAT", "params": {}},
    "ivf": {"index_type": "IVF_FLAT", "params": {"nlist": 1024}},
    "hnsw": {"index_type": "HNSW", "params": {"M": 16, "efConstruction": 200}},
}
ENGINES = ("exact", *INDEXES)


def data(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and gallery."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CENTRES, DIMENSIONS))
    made = [centres[rng.integers(0, CENTRES, n)] + rng.normal(size=(n, DIMENSIONS)) for n in (QUERIES, rows)]
    return made[0].astype(np.float32), made[1].astype(np.float32)


def expected(rows: int) -> np.ndarray:
    """The rows of the exact search [QUERIES, K]."""
    queries, gallery = data(rows)
    return search(queries, gallery, K, "cosine").rows


def make_engine(name: str, folder: str) -> Engine:
    """An empty engine."""
    if name == "exact":
        return ExactEngine("cosine")
    return milvus.open_milvus(
        str(Path(folder) / FILE), "cosine", DIMENSIONS, collection=COLLECTION, index=INDEXES[name], create=True
    )


def build_index(folder: str) -> None:
    """Milvus-lite builds an index when rows are loaded, and until then compares them all."""
    with closing(milvus.connect(str(Path(folder) / FILE))) as client:
        client.flush(COLLECTION)
        client.release_collection(COLLECTION)
        client.load_collection(COLLECTION)


def measure(name: str, rows: int) -> dict[str, Any]:
    """One row of the report but for the recall, with the rows that were found; to be called in a process of its own."""
    queries, gallery = data(rows)
    before = peak_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(name, folder)
        began = time.perf_counter()
        engine.upsert([f"{row:09}" for row in range(rows)], [""] * rows, gallery)
        if isinstance(engine, milvus.MilvusEngine):
            build_index(folder)
        engine.search(queries[0], K)
        filled = time.perf_counter() - began
        seconds, found = [], []
        for query in queries:
            began = time.perf_counter()
            found.append([int(hit.image_id) for hit in engine.search(query, K)])
            seconds.append(time.perf_counter() - began)
        if isinstance(engine, milvus.MilvusEngine):
            engine.close()
    return {
        "engine": name,
        "rows": rows,
        "fill_s": round(filled, 2),
        "query_ms": round(1000 * statistics.median(seconds), 2),
        "peak_mb": round(peak_megabytes()),
        "data_mb": round(before),
        "found": found,
    }


def recall(found: list[list[int]], wanted: np.ndarray) -> float:
    """The share of the exact neighbours that was found."""
    return float(np.mean([len({*one} & {*other}) / K for one, other in zip(found, wanted.tolist(), strict=True)]))


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.engines")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--engines", default=",".join(ENGINES))
    options = parser.parse_args()
    names = options.engines.split(",")
    for name in names:
        if name not in ENGINES:
            parser.error(f"--engines: {name!r} is none of {', '.join(ENGINES)}")
    if {*names} - {"exact"} and not all(importlib.util.find_spec(one) for one in ("pymilvus", "milvus_lite")):
        print("pymilvus or milvus-lite is not installed; type: pip install -e '.[engines]'", file=sys.stderr)
        raise SystemExit(2)
    wanted, rows = timing.apart(expected, options.rows), []
    for name in names:
        measured = timing.apart(measure, name, options.rows)
        share = recall(measured.pop("found"), wanted)
        rows.append({**measured, "recall@10": round(share, 4)})
    timing.report("engines", rows)


if __name__ == "__main__":
    main()
