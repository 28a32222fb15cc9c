"""One train step on a CPU: ours against PyTorch Metric Learning on torch, both on two cores.

``python -m experiments.benchmarks.train_step [--repeats=5] [--cases=semi_hard_1024,...]``, about three minutes. The
peer is an extra: ``pip install -e '.[oracles]'``.

A step is forward, mining, loss, backward and Adam, of an MLP 2048-512-512-256 (ReLU, unit output) on a batch of 128 or
1024 rows, 4 per class, already on the device. Ours is one compiled program that is given its state (donated). A turn is
five steps in a row, as in training; times are of one step. The rate is too small to move a weight, so that all turns do
the same work. Of the 3.1 million triplets of 1024 rows, 2 million are semi-hard.

* ``batch_hard``: ``BatchHardMiner`` and the triplet hinge.
* ``semi_hard``: all semi-hard triplets, by ``TripletMarginMiner(type_of_triplets="semihard")``, and the hinge.
* ``distance_weighted``: ``DistanceWeightedMiner`` and the margin loss with a learned boundary. The peer draws 4
  triplets per anchor, with replacement; ours draws a negative for each of its 3 pairs.
* ``one_semi_hard``: the nearest semi-hard negative of each pair, as FaceNet mines; ours alone.
* ``network``: no mining, and a loss that costs nothing. What it takes is part of every other case, on both sides; ours
  is the ``limit`` of every case, timed in turn with it.
* ``semi_hard_4096`` is ours alone: the peer lists 50 million triplets, in about 20 s and 4.1 GB a step.

Before a case is timed, both sides must compute the same loss and gradient norm on the same batch with the same weights;
for ``distance_weighted`` on the same triplets, and the same mean loss over many draws of their own.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from experiments.benchmarks import timing

NAMES = ("network", "batch_hard", "one_semi_hard", "semi_hard", "distance_weighted")
ALONE = ("one_semi_hard",)  # no miner of the peer's does this
CASES = (*(f"{name}_{size}" for name in NAMES for size in (128, 1024)), "semi_hard_4096")
PEER, PEER_ROWS = "PyTorch Metric Learning 2.9", 2048  # and the largest batch that it is timed on
WIDTHS, PER_CLASS = (2048, 512, 512, 256), 4
MARGIN, BETA, RATE = 0.2, 0.9, 1e-12  # at this boundary both kinds of pairs have a loss
STEPS = 5
Step = Callable[..., tuple[float, float]]  # (whether the second is wanted) -> the loss and its gradient's norm


def batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return features [size, 2048], not negative, and labels: views differ from their object as objects do."""
    generator = np.random.default_rng(0)
    labels = np.arange(size) // PER_CLASS
    objects = generator.standard_normal((labels[-1] + 1, WIDTHS[0]), np.float32)
    return np.maximum(objects[labels] + generator.standard_normal((size, WIDTHS[0]), np.float32), 0), labels


def kernels() -> list[np.ndarray]:
    """Return the initial weights of both sides, [in, out] per layer (Glorot); biases are 0."""
    generator = np.random.default_rng(1)
    return [
        (generator.uniform(-1, 1, shape) * np.sqrt(6 / sum(shape))).astype(np.float32) for shape in pairwise(WIDTHS)
    ]


def ours(name: str, size: int, triplets: np.ndarray | None = None) -> Step:
    """Return our step; ``triplets`` [t, 3] take the miner's place."""
    from functools import partial

    import jax
    import jax.numpy as jnp
    import optax

    from fgis import EmbeddingHead, make_train_step
    from fgis.base import Batch, BatchInfo, LossSum, Miner, Objective, Triplets
    from fgis.distances import DISTANCES
    from fgis.learning import losses, miners, objectives
    from fgis.learning.step import init_state

    distance, one = DISTANCES["euclidean"], jnp.float32(1)
    info = BatchInfo(max_positives=PER_CLASS - 1, dimensions=WIDTHS[-1])
    hinge, margin = (partial(loss, margin=MARGIN) for loss in (losses.triplet_loss, losses.margin_loss))
    miner: Miner = miners.distance_weighted
    if triplets is not None:
        anchor, positive, negative = jnp.asarray(triplets.T)
        miner = lambda *_: Triplets(anchor, positive, negative, jnp.ones(len(anchor)))
    all_semi_hard = partial(miners.all_semi_hard_negatives, margin=MARGIN)
    objective: Objective = {
        "network": lambda seen, learned: LossSum(jnp.mean(seen.anchors[:, 0]), one, one),
        "batch_hard": objectives.mined(miners.batch_hard, hinge, distance, info),
        "one_semi_hard": objectives.mined(partial(miners.semi_hard, margin=MARGIN), hinge, distance, info),
        "semi_hard": objectives.summed(all_semi_hard, hinge, distance),
        "distance_weighted": objectives.mined(miner, margin, distance, info),
    }[name]
    apply: Any = EmbeddingHead(widths=WIDTHS[1:], dropouts=(0.0, 0.0), final="normalize").apply
    layers = {f"Dense_{i}": {"kernel": x, "bias": np.zeros(x.shape[1:], x.dtype)} for i, x in enumerate(kernels())}
    learned = {"learned": {"beta": np.float32(BETA)}} if name == "distance_weighted" else {}
    optimizer = optax.adam(RATE)
    state = init_state(jax.device_put({"params": layers, **learned}), optimizer)
    features, labels = map(jnp.asarray, batch(size))
    data = Batch(features, labels, jnp.arange(size))
    train_step = jax.jit(make_train_step(apply, objective, losses.mean_active, optimizer), donate_argnums=0)
    key = jax.random.key(0)

    def step(norm: bool = True) -> tuple[float, float]:
        nonlocal state, key
        key = jax.random.fold_in(key, 1)
        state, metrics = jax.block_until_ready(train_step(state, data, key))
        return float(metrics["loss"]), float(metrics["gradient_norm"])  # computed in any case

    return step


def peer(name: str, size: int, triplets: np.ndarray | None = None) -> Step:
    """Return the peer's step; ``triplets`` [t, 3] take the miner's place."""
    import torch
    from pytorch_metric_learning import losses, miners

    torch.set_num_threads(2)
    torch.manual_seed(0)
    features, labels = map(torch.from_numpy, batch(size))
    layers: list[torch.nn.Module] = []
    for kernel in kernels():
        layer = torch.nn.Linear(*kernel.shape)
        layer.weight.data, layer.bias.data = torch.from_numpy(kernel.T.copy()), torch.zeros(kernel.shape[1])
        layers += [layer, torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1])
    hinge = losses.TripletMarginLoss(MARGIN)
    miner, loss = {
        "network": (lambda *_: None, lambda embeddings, *_: embeddings[:, 0].mean()),
        "batch_hard": (miners.BatchHardMiner(), hinge),
        "semi_hard": (miners.TripletMarginMiner(MARGIN, type_of_triplets="semihard"), hinge),
        "distance_weighted": (
            miners.DistanceWeightedMiner(), losses.MarginLoss(MARGIN, beta=BETA, learn_beta=True)
        ),
    }[name]  # fmt: skip
    if triplets is not None:
        miner = lambda *_: tuple(torch.tensor(triplets.T, dtype=torch.long))
    learned = [*network.parameters(), *(loss.parameters() if name == "distance_weighted" else ())]
    optimizer = torch.optim.Adam(learned, RATE)

    def step(norm: bool = False) -> tuple[float, float]:
        optimizer.zero_grad()
        embeddings = torch.nn.functional.normalize(network(features))
        value = loss(embeddings, labels, miner(embeddings, labels))
        value.backward()
        optimizer.step()
        if not norm:
            return value.item(), float("nan")
        return value.item(), sum(x.grad.double().square().sum().item() for x in learned) ** 0.5  # its own rounds

    return step


def make_turn(make: Callable[..., Step], name: str, size: int) -> Callable[[], None]:
    """Return five steps in a row."""
    step = make(name, size)

    def turn() -> None:
        for _ in range(STEPS):
            step()

    return turn


def check(name: str, size: int) -> None:
    """Stop unless both sides do the same work."""
    triplets = draw_triplets(size) if name == "distance_weighted" else None
    found, expected = (make(name, size, triplets)(True) for make in (ours, peer))
    for quantity, one, other in zip(("loss", "gradient norm"), found, expected, strict=True):
        print(f"{name}_{size}: {quantity} {one:.7f}, of the peer {other:.7f}", flush=True)
        if not abs(one - other) <= 1e-4 * abs(other):
            raise SystemExit(f"{name}_{size}: the {quantity} differs, so the two sides do not do the same work")
    if triplets is not None:
        steps = (ours(name, size), 100), (peer(name, size), np.clip(8192 // size, 8, 64))
        check_draws(*(np.array([step()[0] for _ in range(draws)]) for step, draws in steps))


def check_draws(found: np.ndarray, expected: np.ndarray) -> None:
    """Stop where the mean losses of random triplets, ours and the peer's, differ by more than their noise."""
    difference = found.mean() - expected.mean()
    noise = np.sqrt(sum(losses.var(ddof=1) / len(losses) for losses in (found, expected)))
    print(
        f"mean loss of {len(found)} draws {found.mean():.6f}, of {len(expected)} draws of the peer "
        f"{expected.mean():.6f}, difference {difference:+.6f} with a standard error of {noise:.6f}",
        flush=True,
    )
    if not abs(difference) <= 4 * noise:
        raise SystemExit("the mean losses differ by more than noise, so the two sides do not draw alike")


def draw_triplets(size: int) -> np.ndarray:
    """Return triplets [t, 3] that our distance-weighted miner draws with the initial weights."""
    import jax
    import jax.numpy as jnp

    from fgis.base import BatchInfo
    from fgis.distances import pairwise_distances
    from fgis.learning import miners

    x, labels = batch(size)
    for kernel in kernels():
        x = np.maximum(x, 0) @ kernel
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    masks = miners.relations(*2 * (jnp.asarray(labels), jnp.arange(size)))
    found = miners.distance_weighted(
        jax.random.key(0), pairwise_distances(x, x), *masks, BatchInfo(PER_CLASS - 1, WIDTHS[-1])
    )
    return np.stack(found[:3], axis=1)[np.asarray(found.weight) > 0]


def measure(case: str, repeats: int) -> dict[str, Any]:
    """Check and time one case; return its row of the report."""
    name, size = split(case)
    sides = (ours, peer) if size <= PEER_ROWS and name not in ALONE else (ours,)
    if len(sides) == 2:
        timing.apart(check, name, size)
    timed = [(make_turn, (side, name, size)) for side in sides] + [(make_turn, (ours, "network", size))]
    found = [one._replace(seconds=one.seconds / STEPS) for one in timing.interleave(timed, repeats)]
    return timing.row(case, found[0], PEER, found[1] if len(sides) == 2 else None, limit=found[-1])


def split(case: str) -> tuple[str, int]:
    """Return name and batch size of a case."""
    name, _, size = case.rpartition("_")
    if name not in NAMES or not size.isdecimal() or int(size) < 2 * PER_CLASS or int(size) % PER_CLASS:
        raise ValueError(f"{case!r} is none of {', '.join(CASES)}, nor one of them at another multiple of {PER_CLASS}")
    return name, int(size)


def main() -> None:
    """Check, measure and report the chosen cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--cases", default=",".join(CASES), help="which, and in which order; other sizes will do")
    timing.add_instructions(parser)
    options = parser.parse_args()
    timing.use_instructions(options.instructions)
    cases = options.cases.split(",")
    try:
        sizes = [split(case)[1] for case in cases]
    except ValueError as error:
        parser.error(f"--cases: {error}")
    if min(sizes) <= PEER_ROWS and not all(map(importlib.util.find_spec, ("torch", "pytorch_metric_learning"))):
        print(f"{PEER} is not installed; type: pip install -e '.[oracles]'", file=sys.stderr)
        raise SystemExit(2)
    # Every process that is started inherits both.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    timing.report("train_step", [measure(case, options.repeats) for case in cases])


if __name__ == "__main__":
    main()
