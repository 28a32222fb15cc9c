"""Evaluation against PyTorch Metric Learning: ``python -m experiments.benchmarks.evaluate [--cases=10k]
[--instructions=avx2]``.

Shuffled classes of 4, 256 dimensions; every image is a query and is left out of its own list. Cases: ``10k``, the
metrics that the peer has (P@1, R-precision, MAP@R, MRR as it defines it, within the largest class), with
``max_bin_count``;
``10k_all``, all of ours, over whole rankings too, against the same; ``100k`` and ``100k_all``, where the peer, which
needs more than 20 GB, is not run. ``limit`` is XLA's product of all pairs alone, in the blocks of a search. Before it
times them it checks that both sides give the same figures.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.benchmarks import timing
from fgis.retrieval.evaluate import evaluate, protocol

DIMENSIONS, SIZE = 256, 4
SAME = {  # ours -> the peer's
    "recall@1": "precision_at_1", "r_precision": "r_precision", "map@r": "mean_average_precision_at_r",
    "mrr@3": "mean_reciprocal_rank",
}  # fmt: skip
ALL = (
    *SAME, "ns_score", "accuracy_top4", "recall@4", "precision@3", "map", "map_trapezoid", "mrr", "ndcg@10", "knn@5",
    "knn_weighted@5",
)  # fmt: skip
CASES = {
    "10k": (10_000, tuple(SAME)),
    "10k_all": (10_000, ALL),
    "100k": (100_000, tuple(SAME)),
    "100k_all": (100_000, ALL),
}
LARGEST_PEER = 10_000
PEER = "PyTorch Metric Learning 2.9"


def data(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of ``n / 4`` classes in shuffled order, of which about a third have a relevant image nearest."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(n // SIZE), SIZE))
    x = rng.normal(size=(n // SIZE, DIMENSIONS)).astype(np.float32)[labels]
    x += 2 * rng.standard_normal(size=(n, DIMENSIONS), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True), labels


def ours(n: int, metrics: tuple[str, ...]) -> Callable[[], dict[str, float]]:
    """Our evaluation; returns means."""
    x, labels = data(n)
    return lambda: {
        name: float(np.nanmean(values))
        for name, values in evaluate(x, labels, protocol(labels, metrics), metrics, "euclidean").items()
    }


def peer(n: int) -> Callable[[], dict[str, float]]:
    """The peer's ``AccuracyCalculator``."""
    import faiss
    import torch
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    faiss.omp_set_num_threads(2)
    torch.set_num_threads(2)
    x, labels = (torch.tensor(array) for array in data(n))
    calculator = AccuracyCalculator(include=tuple(SAME.values()), k="max_bin_count")
    return lambda: calculator.get_accuracy(x, labels)


def limit(n: int) -> Callable[[], None]:
    """The matrix products alone."""
    x, _ = data(n)
    return timing.products(x, x)


def check(n: int) -> None:
    """Raise SystemExit unless both sides give the same means."""
    found, expected = ours(n, tuple(SAME))(), peer(n)()
    for name, theirs in SAME.items():
        if not abs(found[name] - expected[theirs]) < 1e-6:
            raise SystemExit(f"{name}: {found[name]:.7f}, of the peer {expected[theirs]:.7f}")
        print(f"{name}: {found[name]:.7f}, of the peer {expected[theirs]:.7f}")


def measure(case: str, repeats: int) -> dict[str, Any]:
    """One row of the report."""
    n, metrics = CASES[case]
    if n > LARGEST_PEER:
        own, least = timing.interleave([(ours, (n, metrics)), (limit, (n,))], 1)
        return timing.row(case, own, PEER, None, limit=least)
    own, other, least = timing.interleave([(ours, (n, metrics)), (peer, (n,)), (limit, (n,))], repeats)
    return timing.row(case, own, PEER, other, limit=least)


def main() -> None:
    """Check, measure and report."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.evaluate")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=7)
    timing.add_instructions(parser)
    options = parser.parse_args()
    timing.use_instructions(options.instructions)
    cases = options.cases.split(",")
    for case in cases:
        if case not in CASES:
            parser.error(f"--cases: {case!r} is none of {', '.join(CASES)}")
    if importlib.util.find_spec("faiss") is None or importlib.util.find_spec("pytorch_metric_learning") is None:
        print("PyTorch Metric Learning and faiss are not installed; type: pip install -e '.[oracles]'", file=sys.stderr)
        raise SystemExit(2)
    timing.apart(check, LARGEST_PEER)
    timing.report("evaluate", [measure(case, options.repeats) for case in cases])


if __name__ == "__main__":
    main()
