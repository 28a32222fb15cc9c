"""Everything that wants a GPU, meant for ten minutes: each part beside the limit of the machine that it runs on.

``python -m experiments.benchmarks.accelerator [--out=FILE.json] [--parts=limits,train_step,...]`` writes one JSON file.
On a CPU it refuses to run: its figures would say nothing. ``--allow-cpu`` runs the same code on tiny sizes, to see that
it works, and marks what it writes with ``"small": true``.

* ``limits``: the rate of a matrix product in each precision, and of memory, by copying.
* ``train_step``: an MLP 2048-512-512-256 on batches, 4 images per class, against the products of its layers, forward
  and backward, and that of the distances, alone; in float32 and bfloat16. Many steps are one program.
* ``search``: the exact ten nearest of 1,000 queries among a million rows of 256 numbers, against the products of the
  same blocks alone, and against reading the gallery once for each block.
* ``extraction``: MobileNetV2 and EfficientNet-Lite0 with random weights on images that are in memory.
* ``trainings``: 400 trainings of ``configs/ukbench.py`` under ``vmap`` against one.
* ``parity``: the first loss and gradient of some strategies on all devices here against the CPU, in float32.

Times are the least of several runs; nothing of them is compilation.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.machine import machine
from fgis.base import Batch, BatchInfo, Objective
from fgis.distances import DISTANCES
from fgis.experiment.config_file import load_config
from fgis.experiment.run import Run
from fgis.features.description import Settings, load_extractor
from fgis.learning import heads, losses, miners, objectives
from fgis.learning.products import Precision, round_and_multiply
from fgis.learning.step import init_state, make_train_step
from fgis.learning.train import TrainingData, train
from fgis.retrieval.best_scores import raw_scores
from fgis.retrieval.prepare import prepare_gallery
from fgis.retrieval.search import query_blocks, search


class Sizes(NamedTuple):
    """How much is measured."""

    product: int = 8192  # sides of the matrices whose product is the limit
    copied: int = 1 << 28  # float32 numbers that are copied
    widths: tuple[int, ...] = (2048, 512, 512, 256)
    batches: tuple[int, ...] = (1024, 4096)
    steps: int = 50
    gallery: int = 1_000_000
    queries: int = 1000
    dimensions: int = 256
    images: int = 256
    side: int = 224
    runs: int = 400
    training_steps: int = 100
    every: int = 16  # combinations of miner, loss and memory, one of so many
    repeats: int = 5


SMALL = Sizes(64, 1 << 12, (16, 8, 4), (16,), 2, 2000, 20, 8, 2, 32, 4, 2, 100, 2)


def least_seconds(run: Callable[[], Any], repeats: int) -> float:
    """The least time of some runs, after one that is not timed."""
    jax.block_until_ready(run())
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - began)
    return min(found)


def limits(sizes: Sizes) -> list[dict[str, Any]]:
    """Floating-point operations and bytes a second."""
    rows = []
    for name, kind, precision in (
        ("float32", jnp.float32, "highest"), ("default for float32", jnp.float32, "default"),
        ("bfloat16", jnp.bfloat16, "default"), ("float16", jnp.float16, "default"),
    ):  # fmt: skip
        x = jnp.ones((sizes.product, sizes.product), kind)
        product = jax.jit(partial(jnp.matmul, precision=precision, preferred_element_type=jnp.float32))
        seconds = least_seconds(partial(product, x, x), sizes.repeats)
        rows.append({"case": f"product, {name}", "seconds": seconds, "per_second": 2 * sizes.product**3 / seconds})
    x = jnp.ones(sizes.copied, jnp.float32)
    seconds = least_seconds(partial(jax.jit(lambda x: x + 1), x), sizes.repeats)
    return [*rows, {"case": "memory, bytes", "seconds": seconds, "per_second": 8 * sizes.copied / seconds}]


def train_step(sizes: Sizes) -> list[dict[str, Any]]:
    """Steps of several strategies against their products."""
    distance, hinge = DISTANCES["cosine"], partial(losses.triplet_loss, margin=0.2)
    info = BatchInfo(max_positives=3, dimensions=sizes.widths[-1])
    semi_hard = partial(miners.semi_hard, margin=0.2)
    strategies: dict[str, Objective] = {
        "batch_hard": objectives.mined(miners.batch_hard, hinge, distance, info),
        "semi_hard": objectives.mined(semi_hard, hinge, distance, info),
        "distance_weighted": objectives.mined(
            miners.distance_weighted, hinge, distance, info, DISTANCES["unit_euclidean"]
        ),
        "batch_all": objectives.summed(miners.all_negatives, hinge, distance),
    }
    rows = []
    for size in sizes.batches:
        for precision in ("float32", "bfloat16"):
            limit = least_seconds(products_alone(sizes, size, precision), sizes.repeats) / sizes.steps
            for name, objective in strategies.items():
                run = steps_of(sizes, size, precision, objective)
                seconds = least_seconds(run, sizes.repeats) / sizes.steps
                case = f"{name}, batch {size}, {precision}"
                rows.append({"case": case, "seconds": seconds, "limit": limit, "share": limit / seconds})
    return rows


def steps_of(sizes: Sizes, size: int, precision: Precision, objective: Objective) -> Callable[[], Any]:
    """Some train steps as one program."""
    head = heads.mlp(widths=sizes.widths[1:], dropouts=(), final="normalize")
    optimizer = optax.adam(1e-9)
    step = make_train_step(partial(head.apply, precision=precision), objective, losses.mean, optimizer)
    labels = jnp.arange(size) // 4
    features = jax.random.uniform(jax.random.key(0), (size, sizes.widths[0]))
    state = init_state(head.init(jax.random.key(1), (sizes.widths[0],), {}), optimizer)

    @jax.jit
    def steps(state: Any, features: Any) -> Any:
        batch = Batch(features, labels, jnp.arange(size))
        body = lambda number, state: step(state, batch, jax.random.fold_in(jax.random.key(2), number))[0]
        return jax.lax.fori_loop(0, sizes.steps, body, state)

    return partial(steps, state, features)


def products_alone(sizes: Sizes, size: int, precision: Precision) -> Callable[[], Any]:
    """As many times the products of a step: of its layers, forward and backward, and of its distances."""
    multiply = partial(round_and_multiply, precision=precision)
    weights = [jnp.ones(shape) / shape[0] for shape in zip(sizes.widths, sizes.widths[1:], strict=False)]
    x = jnp.ones((size, sizes.widths[0]))

    def forward(weights: Any, x: Any) -> Any:
        for weight in weights:
            x = multiply(x, weight)
        return x

    @jax.jit
    def steps(weights: Any, x: Any) -> Any:
        def body(_: Any, weights: Any) -> Any:
            z, pull = jax.vjp(lambda weights: forward(weights, x), weights)
            largest = jnp.max(jnp.matmul(z, z.T, precision="highest"))
            (gradient,) = pull(z)
            return jax.tree.map(lambda w, g: w + 1e-20 * g * largest, weights, gradient)

        return jax.lax.fori_loop(0, sizes.steps, body, weights)

    return partial(steps, weights, x)


def exact_search(sizes: Sizes) -> list[dict[str, Any]]:
    """The nearest ten, from queries on the host to rows on the host."""
    rng = np.random.default_rng(0)
    gallery = prepare_gallery(rng.standard_normal((sizes.gallery, sizes.dimensions), np.float32), "cosine")
    queries = rng.standard_normal((sizes.queries, sizes.dimensions), np.float32)
    began = time.perf_counter()
    search(queries, gallery, 10)
    first = time.perf_counter() - began
    seconds = least_seconds(lambda: search(queries, gallery, 10).rows, sizes.repeats)
    (shard,) = gallery.shards
    blocks = [block.stop - block.start for block in query_blocks(len(queries), len(shard.rows))]
    best = jax.jit(lambda block, vectors: raw_scores(block, vectors, "cosine").max(axis=1))
    filled = {size: jnp.zeros((size, sizes.dimensions)) for size in set(blocks)}
    product = least_seconds(lambda: [best(filled[size], shard.centred) for size in blocks], sizes.repeats)
    x = shard.centred
    reading = least_seconds(partial(jax.jit(jnp.sum), x), sizes.repeats) * len(blocks)
    return [{
        "case": f"top 10, {sizes.queries} x {sizes.gallery} x {sizes.dimensions}", "seconds": seconds,
        "first_seconds": first, "products_alone": product, "reading_alone": reading, "blocks": len(blocks),
        "limit": max(product, reading), "share": max(product, reading) / seconds,
    }]  # fmt: skip


def extraction(sizes: Sizes) -> list[dict[str, Any]]:
    """Networks on one batch of images, which come from the host and whose features go back to it."""
    rows = []
    images = np.random.default_rng(0).integers(0, 256, (sizes.images, sizes.side, sizes.side, 3), np.uint8)
    for name in ("mobilenet_v2", "efficientnet_lite0"):
        extractor = load_extractor(Settings(name, (sizes.side, sizes.side), weights="none"))
        seconds = least_seconds(lambda one=extractor: np.asarray(one.run((images,))), sizes.repeats)  # type: ignore[misc]
        rows.append({"case": name, "seconds": seconds, "images_per_second": sizes.images / seconds})
    return rows


def trainings(sizes: Sizes) -> list[dict[str, Any]]:
    """Many trainings as one program against one of them."""
    rows: list[dict[str, Any]] = []
    for runs in (1, sizes.runs):
        seconds = least_seconds(trained_together(runs, sizes.training_steps), sizes.repeats)
        rate = runs * sizes.training_steps / seconds
        case = f"{runs} trainings of {sizes.training_steps} steps"
        rows.append({"case": case, "seconds": seconds, "steps_per_second": rate})
    rows[-1]["times_one"] = rows[-1]["seconds"] / rows[0]["seconds"]
    return rows


def trained_together(runs: int, steps: int) -> Callable[[], Any]:
    """The training of so many heads under ``vmap``."""
    config = load_config("ukbench")
    config.update_from_flattened_dict({"seeds": runs, "folds": 0, "evaluation.transfer": ""})
    opened = Run.open(config)
    data = TrainingData(jnp.asarray(opened.features), opened.rows.labels)
    recipe, every = opened.experiment.recipe._replace(together=True), opened.experiment.runs
    return lambda: train(recipe, every, data, steps=steps, record_every=steps).params


def parity(sizes: Sizes) -> list[dict[str, Any]]:
    """How far the first loss and gradient are from those of the CPU, with products at the highest precision."""
    from tests.devices.combinations import combinations, deviation, named, train_steps

    rows = []
    with jax.default_matmul_precision("highest"):
        for overrides in combinations()[:: sizes.every]:
            expected = train_steps(overrides, jax.devices("cpu")[:1])
            found = train_steps(overrides, jax.devices())
            gradients = ([leaf[0] for leaf in jax.tree.leaves(one.gradients)] for one in (expected, found))
            loss = deviation(expected.losses[0], found.losses[0])
            rows.append({"case": named(overrides), "first_loss": loss, "first_gradient": deviation(*gradients)})
    return rows


PARTS: dict[str, Callable[[Sizes], list[dict[str, Any]]]] = {
    "limits": limits,
    "train_step": train_step,
    "search": exact_search,
    "extraction": extraction,
    "trainings": trainings,
    "parity": parity,
}


def measure(parts: Sequence[str], sizes: Sizes, out: Path) -> None:
    """Runs the parts one after the other; the file is written after each, so that what is done is not lost."""
    found: dict[str, Any] = {
        "benchmark": "accelerator", "small": sizes == SMALL, "machine": machine(), "jax": jax.__version__,
        "devices": [device.device_kind for device in jax.devices()], "backend": jax.default_backend(), "parts": {},
    }  # fmt: skip
    for name in parts:
        began = time.perf_counter()
        rows = PARTS[name](sizes)
        found["parts"][name] = {"wall_seconds": round(time.perf_counter() - began, 1), "rows": rows}
        out.write_text(json.dumps(found, indent=1) + "\n")
        for row in rows:
            print(name, *(f"{key}={value:.4g}" if isinstance(value, float) else value for key, value in row.items()))
            sys.stdout.flush()


def main() -> None:
    """Measures, or refuses a CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("accelerator.json"), help="the JSON file to write")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas between them")
    parser.add_argument("--allow-cpu", action="store_true", help="tiny sizes on a CPU, to test this script alone")
    options = parser.parse_args()
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} found; take some of {', '.join(PARTS)}")
    if jax.default_backend() == "cpu" and not options.allow_cpu:
        print("JAX finds no accelerator here (only a CPU), and this benchmark is of nothing else", file=sys.stderr)
        raise SystemExit(2)
    measure(parts, SMALL if options.allow_cpu else Sizes(), options.out)


if __name__ == "__main__":
    main()
