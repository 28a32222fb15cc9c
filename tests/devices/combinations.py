"""Every miner, loss and memory on several devices against one: the losses, gradients and parameters of five steps.

Plain gradient descent, since Adam hides a wrong scale. Batches of 20 images, or of 5 triplets, which 2, 4 and 8 devices
do not divide into whole triplets: they are padded. ``tests.devices.parity`` runs this in processes with as many devices
and the precision that it wants.
"""

import json
import sys
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs import ukbench
from fgis.base import Batch, BatchInfo
from fgis.experiment import build
from fgis.experiment.config import CHOICES, PAIR_LOSSES, read_settings
from fgis.experiment.differences import to_plain
from fgis.hosts import to_own_host
from fgis.learning import heads, learned, losses, pair_losses
from fgis.learning.layout import DeviceTable, everywhere, lay_out, over_devices, own_share
from fgis.learning.memory import empty_memory
from fgis.learning.step import init_state, make_train_step

LABELS = np.repeat(np.arange(12), 4)
COARSE = LABELS // 3
FEATURES = np.random.default_rng(0).random((48, 6))
STEPS, DIMENSIONS, MEMORY = 5, 5, 40
HEAD = heads.mlp(widths=(8, DIMENSIONS), dropouts=(0.2,), final="normalize")
# A switch after two of five steps. Sharper settings than these only multiply rounding.
OPTIONS = {"miner.schedule.switch_steps": 2, "seeds": 1}


class Found(NamedTuple):
    """What the steps of a training gave, on the host."""

    losses: Any  # [steps]
    gradients: Any  # every leaf [steps, ...]
    end: Any  # parameters and memory after the last step


def combinations() -> list[dict[str, object]]:
    """Overrides of every miner with every loss that goes with it, with and without memory."""
    found: list[dict[str, object]] = []
    for miner in CHOICES["miner"]:
        for loss in CHOICES["loss"]:
            lists = miner == "given"
            pairs = loss in PAIR_LOSSES or loss in pair_losses.PROXY_LOSSES
            listed = pairs and miner in ("given", "all_semi_hard")
            if listed or (loss in pair_losses.PROXY_LOSSES and miner != "batch_all"):
                continue
            one: dict[str, object] = {
                "miner.name": miner,
                "loss.name": loss,
                "sampler.name": "published" if lists else "uniform",
            }
            found += [one] if lists else [one, {**one, "memory.size": MEMORY, "memory.warmup_steps": 1}]
    return found


def named(overrides: dict) -> str:
    """The name of a combination."""
    words = [str(overrides[f"{group}.name"]) for group in ("miner", "loss")]
    return " × ".join(words + ["memory"] * ("memory.size" in overrides))


def draw_rows(overrides: dict) -> np.ndarray:
    """Rows of the batches of all steps, [steps, b], alike for all combinations that draw in the same way."""
    rng = np.random.default_rng(3)
    if overrides["miner.name"] != "given":
        # Two images of each of ten classes, so that every batch has triplets; and one place of padding.
        classes = np.stack([rng.permutation(12)[:10] for _ in range(STEPS)])
        members = rng.permuted(np.tile(np.arange(4), (STEPS, 10, 1)), axis=2)[:, :, :2]
        rows = (4 * classes[:, :, None] + members).reshape(STEPS, -1)
        rows[:, 7] = -1
        return rows
    anchors, others = rng.integers(0, 12, (2, STEPS, 5))
    others = np.where(others == anchors, (others + 1) % 12, others)
    positives = 4 * anchors + 1 + rng.integers(0, 3, (STEPS, 5))
    return np.stack([4 * anchors, positives, 4 * others], axis=-1).reshape(STEPS, -1)


def train_steps(overrides: dict, devices: list, parallel: Any = "shard_map") -> Found:
    """Five steps of one run whose batches all ``devices`` share, in the precision that JAX is set to."""
    config = ukbench.get_config()
    config.update_from_flattened_dict({**OPTIONS, **overrides})
    settings, kind = read_settings(to_plain(config)), jax.dtypes.canonicalize_dtype(np.float64)
    objective = build.build_objective(settings, BatchInfo(None, DIMENSIONS))
    rows = draw_rows(overrides)
    layout = lay_out(1, rows.shape[1], devices, parallel)
    recorded = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradient, state, params=None: (gradient, gradient)
    )
    optimizer = optax.chain(recorded, optax.sgd(0.05))
    step = make_train_step(
        HEAD.apply, objective, losses.mean, optimizer, warmup_steps=settings.memory.warmup_steps,
        axis_name=layout.axis if layout else None, batch_rows=layout.rows if layout and layout.data > 1 else None,
    )  # fmt: skip
    state = init_state(start(settings, kind), optimizer, memory_for(settings.memory.size, kind))
    data = jax.tree.map(np.asarray, (FEATURES.astype(kind), LABELS, COARSE, rows))
    state = jax.tree.map(lambda x: np.asarray(x)[None], state)
    if layout:
        state, data = everywhere(state, layout), everywhere(data, layout)
    program = partial(run_steps, step, layout)
    with jax.default_device(devices[0]):
        found = jax.jit(over_devices(program, layout, [True, False]) if layout else program)(state, data)
        return jax.tree.map(lambda x: to_own_host(x)[0], found)


def run_steps(step: Any, layout: DeviceTable | None, state: Any, data: Any) -> Found:
    """All steps of the one run that the leaves of ``state`` are stacked of."""
    features, labels, coarse, table = data

    def one_step(state: Any, number: Any) -> Any:
        rows = jnp.asarray(table)[number]
        rows = own_share(rows, layout) if layout else rows
        index = jnp.maximum(rows, 0)
        seen, own, above = (jnp.asarray(x)[index] for x in (features, labels, coarse))
        batch = Batch(seen, own, rows, above)
        state, metrics = step(state, batch, jax.random.fold_in(jax.random.key(7), number))
        return state, (metrics["loss"], state.opt_state[0])

    first = jax.tree.map(lambda x: jnp.asarray(x)[0], state)
    last, (values, gradients) = jax.lax.scan(one_step, first, jnp.arange(STEPS))
    return jax.tree.map(lambda x: x[None], Found(values, gradients, (last.params, last.memory)))


def start(settings: Any, kind: Any) -> dict:
    """Parameters of the head and, where the loss has some, of the loss."""
    params = HEAD.init(jax.random.key(0), (FEATURES.shape[1],), {})
    name = settings.loss.name
    if name in learned.LEARNED:
        params["learned"] = learned.LEARNED[name]().init(jax.random.key(1), jnp.ones(12, bool), DIMENSIONS)
    return jax.tree.map(lambda x: x.astype(kind), params)


def memory_for(size: int, kind: Any) -> Any:
    """An empty memory, or none."""
    if not size:
        return ()
    made = empty_memory(size, DIMENSIONS)
    return made._replace(embeddings=made.embeddings.astype(kind))


def deviation(one: Any, other: Any) -> float:
    """The largest difference of any number, relative to the largest number of the tree."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True)]
    pairs = [(a, b) for a, b in pairs if np.issubdtype(a.dtype, np.inexact)]
    apart = max(float(np.abs(a - b).max(initial=0)) for a, b in pairs)
    largest = max(float(np.abs(a).max(initial=0)) for a, _ in pairs)
    return apart / largest if largest else apart


def compare(overrides: dict, several: list[tuple[list, Any]]) -> dict[str, Any]:
    """A row of the table: the worst deviation of (devices, way) from the first device of this process alone."""
    alone = train_steps(overrides, [jax.local_devices()[0]])
    others = [train_steps(overrides, devices, way) for devices, way in several]
    first = lambda found: (found.losses[0], jax.tree.map(lambda x: x[0], found.gradients))
    return {
        "combination": named(overrides),
        "first_loss": max(deviation(first(alone)[0], first(other)[0]) for other in others),
        "first_gradient": max(deviation(first(alone)[1], first(other)[1]) for other in others),
        "losses": max(deviation(alone.losses, other.losses) for other in others),
        "gradients": max(deviation(alone.gradients, other.gradients) for other in others),
        "parameters": max(deviation(alone.end, other.end) for other in others),
        "learns": any(np.any(leaf) for leaf in jax.tree.leaves(alone.gradients)),
        "type": str(alone.losses.dtype),
    }


def main() -> None:
    """Prints a JSON line for each combination; what to do is a JSON argument, which ``tests.devices.parity`` makes."""
    asked = json.loads(sys.argv[1])
    if asked.get("processes"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(asked["coordinator"], asked["processes"], asked["process"])
    several = [(jax.devices()[:count], way) for count, way in asked["several"]]
    for overrides in combinations()[asked["first"] :: asked["every"]]:
        row = compare(overrides, several)
        if jax.process_index() == 0:
            print(json.dumps(row), flush=True)
    if asked.get("processes"):
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
