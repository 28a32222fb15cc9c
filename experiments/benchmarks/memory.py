"""Time and peak memory where classes are uneven or features are many: ``python -m experiments.benchmarks.memory``.

Every case runs once, in a process of its own, after the files that it reads were written by another one. ``6k`` are
evaluations of 6,000 images, of equal classes and with one class of 4,000; ``45k`` are 45,000 × 16 with one class of
5,000: 18 runs made ready, and the open set; ``200k`` and ``1m`` are feature files of float16: commands that train,
evaluate and search them from the file (``config.train.resident_megabytes=0``), with a limit on queries
(``config.evaluation.queries``). ``100k_metrics`` are the metrics of PyTorch Metric Learning of 100,000 images, and
``50k_metrics`` of half of them, which shows that time grows as queries × gallery and memory with queries alone.
Ends with a JSON line.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.benchmarks import evaluate as many_queries
from experiments.benchmarks import timing
from fgis.base import FeatureSet
from fgis.features.store import Blocks, write_features
from fgis.learning.heads import residual
from fgis.learning.recipe import Strategy, make_runs
from fgis.learning.train import TrainingData
from fgis.retrieval.evaluate import evaluate, protocol
from fgis.retrieval.folds import object_folds
from fgis.retrieval.open_set import nearest_known_and_unknown

DEFAULT = ("ns_score", "accuracy_top4", "recall@1", "map@r", "knn@3", "r_precision", "tied")
WHOLE = ("map", "map_trapezoid", "mrr")
BLOCK = 1 << 14  # rows of a file that are drawn together
STREAMED = "--config.train.resident_megabytes=0"
ONE_RUN = ("--config.seeds=1", "--config.folds=0", "--config.features.backbone=", "--config.evaluation.transfer=")


def uneven(n: int, largest: int, size: int, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of classes of ``size`` around a centre each, with one class of ``largest``, in random order."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.r_[np.zeros(largest, int), 1 + np.arange(n - largest) // size])
    x = rng.standard_normal((labels.max() + 1, dimensions), np.float32)[labels]
    return x + rng.standard_normal(x.shape, np.float32), labels


def evaluation(n: int, largest: int, metrics: tuple[str, ...]) -> Callable[[], Any]:
    """Every image a query among all."""
    x, labels = uneven(n, largest, 10, 256)
    return lambda: evaluate(x, labels, protocol(labels, metrics), metrics)


def open_set(n: int, largest: int) -> Callable[[], Any]:
    """The nearest images of the own and of another object, of every image."""
    x, labels = uneven(n, largest, 10, 16)
    return lambda: nearest_known_and_unknown(x, labels, np.arange(n), np.arange(n))


def class_tables(n: int, largest: int) -> Callable[[], Any]:
    """3 seeds × 5 folds, and 3 runs on all images, up to the first step."""
    x, labels = uneven(n, largest, 10, 16)
    folds = object_folds(labels, 5)
    seen = [(seed, np.flatnonzero(folds != fold)) for fold in range(-1, 5) for seed in range(3)]
    return lambda: make_runs(Strategy(residual(rank=8)), TrainingData(x, labels), seen)


def metrics(n: int) -> Callable[[], Any]:
    """The evaluation of ``experiments.benchmarks.evaluate``, of ``n`` images."""
    return many_queries.ours(n, tuple(many_queries.SAME))


def write_file(path: str, n: int, dimensions: int) -> None:
    """A feature file of float16 with classes of 10, of which no more than a block is ever in memory."""
    labels = np.arange(n) // 10

    def parts() -> Any:
        for start in range(0, n, BLOCK):
            rng = np.random.default_rng(start)
            own = labels[start : start + BLOCK]
            centres = np.repeat(rng.random((own.max() - own.min() + 1, dimensions), np.float32), 10, axis=0)
            yield (centres[: len(own)] + rng.random((len(own), dimensions), np.float32)).astype(np.float16)

    ids = np.array([f"{row:07d}.jpg" for row in range(n)])
    write_features(path, FeatureSet(Blocks((n, dimensions), np.float16, parts()), labels, ids, {}))


def command(folder: str, *flags: str) -> Callable[[], Any]:
    """``python -m fgis.main`` with the features and the work directory in ``folder``."""
    from fgis.main import main

    place = [f"--config.features.path={folder}/features.h5", f"--workdir={folder}/run"]
    config = Path(__file__).parents[2] / "configs" / "ukbench.py"
    return lambda: main([f"--config={config}", *place, *ONE_RUN, *flags])


def search(folder: str) -> Callable[[], Any]:
    """One row of the file as a query among all of them, by the features as they are."""
    from fgis.experiment.config_file import load_config
    from fgis.experiment.run import Run
    from fgis.gallery.search import SearchOptions, rank_picture

    config = load_config("ukbench")
    config.features.path, config.features.backbone = f"{folder}/features.h5", ""
    config.train.resident_megabytes = 0

    def run() -> Any:
        opened = Run.open(config)
        picture = Image.new("RGB", (1, 1))  # described by what the file holds of another one
        described = lambda image: opened.rows.read(np.array([7]))
        return rank_picture(opened.search_gallery, described, picture, SearchOptions()).found.images

    return run


def training_flags(steps: int, queries: int) -> tuple[str, ...]:
    """One run on all images, streamed."""
    return STREAMED, f"--config.train.total_steps={steps}", f"--config.evaluation.queries={queries}"


IN_MEMORY: dict[str, tuple[timing.Make, tuple]] = {
    "6k_equal_classes": (evaluation, (6_000, 10, DEFAULT)),
    "6k_one_class_of_4k": (evaluation, (6_000, 4_000, DEFAULT)),
    "6k_equal_classes_whole_rankings": (evaluation, (6_000, 10, WHOLE)),
    "6k_one_class_of_4k_whole_rankings": (evaluation, (6_000, 4_000, WHOLE)),
    "45k_class_tables_of_18_runs": (class_tables, (45_000, 5_000)),
    "45k_open_set": (open_set, (45_000, 5_000)),
    "50k_metrics": (metrics, (50_000,)),
    "100k_metrics": (metrics, (100_000,)),
}
FROM_FILE: dict[str, tuple[tuple[int, int], timing.Make, tuple]] = {
    "200k_x_512_train_and_evaluate": ((200_000, 512), command, training_flags(200, 2_000)),
    "200k_x_1280_search": ((200_000, 1280), search, ()),
    "1m_x_512_train_and_evaluate": ((1_000_000, 512), command, training_flags(200, 1_000)),
}
CASES = (*IN_MEMORY, *FROM_FILE)


def measure(case: str) -> dict[str, Any]:
    """One row of the report."""
    if case in IN_MEMORY:
        found = timing.run_fresh(_once, IN_MEMORY[case], [None])
    else:
        shape, make, arguments = FROM_FILE[case]
        with tempfile.TemporaryDirectory() as folder:
            timing.apart(write_file, f"{folder}/features.h5", *shape)
            found = timing.run_fresh(_once, (make, (folder, *arguments)), [None])
    return {"case": case, "seconds": round(found.seconds[0], 2), "megabytes": round(found.megabytes)}


def _once(make: timing.Make, arguments: tuple) -> Callable[[None], None]:
    run = make(*arguments)

    def call(nothing: None) -> None:
        found = run()
        if isinstance(found, int) and found:
            raise SystemExit(f"a command ended with exit code {found}")

    return call


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.memory")
    parser.add_argument("--cases", default=",".join(CASES))
    cases = parser.parse_args().cases.split(",")
    for case in cases:
        if case not in CASES:
            parser.error(f"--cases: {case!r} is none of {', '.join(CASES)}")
    timing.report("memory", [measure(case) for case in cases])


if __name__ == "__main__":
    main()
