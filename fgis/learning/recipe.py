"""From the parts of a strategy to a ``Recipe`` and ``Runs``, which ``train`` takes: one head, trained from Python.

>>> from fgis.learning import heads, losses, miners, objectives, optimizers, samplers
>>> from fgis.learning.train import TrainingData, train
>>> labels = np.repeat(np.arange(8), 4)
>>> features = heads.prepare(np.random.default_rng(0).random((32, 16), np.float32), power=0.5, normalize=True)
>>> strategy = Strategy(
...     head=heads.residual(rank=4, whiten=0.1),
...     sample=partial(samplers.sample_pk, classes=4, per_class=4),
...     objective=objectives.mined(miners.batch_hard, losses.soft_margin, DISTANCES["cosine"]),
...     optimizer=optimizers.adam(learning_rate=1e-3),
... )
>>> recipe, data = make_recipe(strategy, feature_size=16), TrainingData(features, labels)
>>> runs = make_runs(strategy, data, [(0, np.arange(32)), (1, np.arange(24))])  # the second never sees two classes
>>> state = train(recipe, runs, data, steps=2, record_every=2)
>>> first = jax.tree.map(lambda x: x[0], state.params)
>>> strategy.head.apply(first, features).shape
(32, 16)
"""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from fgis.base import Batch, Objective, Reduction, TrainState
from fgis.distances import DISTANCES, Distance
from fgis.learning import losses, miners, objectives, optimizers
from fgis.learning.diagnostics import diagnose
from fgis.learning.heads import Head
from fgis.learning.layout import DeviceTable
from fgis.learning.learned import NOTHING, LossParameters
from fgis.learning.memory import empty_memory
from fgis.learning.pools import RunImages, class_table
from fgis.learning.products import Precision
from fgis.learning.samplers import sample_pk
from fgis.learning.step import Apply, init_state, make_loss, make_train_step
from fgis.learning.train import Recipe, Runs, TrainingData, Validation
from fgis.learning.trained_network import NETWORK
from fgis.streams import Stream, stream_generator, stream_key

START_ROWS = 4096  # images that a head's start is fitted to, where a run may see more


class Strategy(NamedTuple):
    """What a training is made of: functions with their hyperparameters bound. Only the head has to be chosen."""

    head: Head
    sample: Callable[..., Array] = sample_pk  # (pool, seed, step) -> rows [b]
    objective: Objective = objectives.mined(
        miners.batch_hard, partial(losses.soft_margin, temperature=0.1), DISTANCES["cosine"]
    )
    optimizer: optax.GradientTransformation = optimizers.adam()
    reduction: Reduction = losses.mean
    learned: LossParameters = NOTHING  # the parameters of the loss
    memory_size: int = 0  # embeddings of earlier batches that are candidates as well
    warmup_steps: int = 0  # steps that such a memory is filled before it is used
    validation_rows: Callable[..., Array] | None = None  # (pool, seed) -> held-out triplets [v]
    distance: Distance = DISTANCES["cosine"]  # of the diagnostics
    pool: Callable[[RunImages, int], Any] = class_table  # (images, seed) -> what ``sample`` draws from
    precision: Precision = "float32"  # of the factors of the head's products in training
    network_rate: float = 0.0  # of the weights of a network below the head (``with_network``), times that of the head


def make_recipe(
    strategy: Strategy, feature_size: int, *, together: bool | None = None, layout: DeviceTable | None = None
) -> Recipe:
    """The functions of one training.

    Args:
      strategy: its parts.
      feature_size: of the prepared features.
      together: whether runs are trained by ``vmap``; None for what suits the device, see ``Recipe``.
      layout: of several devices, from ``lay_out``; None for one.

    Returns:
      A recipe for ``train``. At every record it gives the diagnostics of the last batch and, with ``validation_rows``,
      the loss of these triplets without dropout.

    Raises:
      ValueError: the head knows no other precision than float32.
    """
    head, learned = strategy.head, strategy.learned
    apply = _in_precision(head, strategy.precision)
    one = jnp.zeros((1, feature_size), jnp.float32)
    dimensions = jax.eval_shape(lambda: head.apply(head.init(jax.random.key(0), (feature_size,), {}), one)).shape[-1]
    by_collection = {
        "params": strategy.optimizer, "learned": learned.optimizer, "constants": optax.set_to_zero(),
        NETWORK: optax.chain(strategy.optimizer, optax.scale(strategy.network_rate)),
    }  # fmt: skip
    optimizer = optax.multi_transform(by_collection, lambda params: {name: name for name in params})
    loss = make_loss(apply, strategy.objective, strategy.reduction)
    validation = None
    if strategy.validation_rows is not None:
        validation = Validation(strategy.validation_rows, lambda params, batch: loss(params, batch, None)[0])

    def init(seed: Any, start: dict[str, Any]) -> TrainState:
        params = head.init(jax.random.key(seed), (feature_size,), start["head"])
        if found := learned.init(stream_key(seed, Stream.LEARNED), start["seen"], dimensions):
            params["learned"] = found
        memory = empty_memory(strategy.memory_size, dimensions) if strategy.memory_size else ()
        return init_state(params, optimizer, memory)

    def diagnose_batch(params: Any, batch: Batch) -> dict[str, Array]:
        return diagnose(head.apply(params, batch.features), batch.labels, batch.rows, strategy.distance)

    step = make_train_step(
        apply, strategy.objective, strategy.reduction, optimizer, warmup_steps=strategy.warmup_steps,
        axis_name=layout.axis if layout else None, batch_rows=layout.rows if layout and layout.data > 1 else None,
    )  # fmt: skip
    return Recipe(init, strategy.sample, step, validation, diagnose_batch, together, layout)


def _in_precision(head: Head, precision: Precision) -> Apply:
    if precision == "float32":
        return head.apply
    if "precision" not in inspect.signature(head.apply).parameters:
        raise ValueError(f"precision: {precision!r} found, but this head is computed in float32 alone; write 'float32'")
    return partial(head.apply, precision=precision)


def make_runs(
    strategy: Strategy, data: TrainingData, runs: Sequence[tuple[int, Any]], *, pixels: tuple[int, ...] = ()
) -> Runs:
    """The runs of a training: what each draws from, and what each begins with.

    Args:
      strategy: the parts of the training.
      data: prepared features, on the device or by a function that fetches rows, and labels.
      runs: (seed, rows [m]) of each run: the images that it may see, in any order.
      pixels: sides of the copies of pixels that follow the features of an image, for pools that look at these.

    Returns:
      The runs, stacked. A head that begins with a fit is fitted to at most ``START_ROWS`` images of each run, drawn
      with the seed of the first run: runs that see the same images begin with the same fit.
    """
    seed, starts = runs[0][0], {}
    runs = [(own_seed, np.sort(np.asarray(rows))) for own_seed, rows in runs]
    for _, rows in runs:
        if rows.tobytes() not in starts:
            starts[rows.tobytes()] = _start(strategy.head, data, rows, seed)
    labels, coarse = np.asarray(data.labels), None if data.coarse is None else np.asarray(data.coarse)
    images = RunImages(labels, np.zeros(0, int), coarse, partial(_fetch, data), pixels)
    pools = [strategy.pool(images._replace(rows=rows), own_seed) for own_seed, rows in runs]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    seeds = jnp.asarray([own_seed for own_seed, _ in runs])
    return Runs(seeds, stack(pools), stack([starts[rows.tobytes()] for _, rows in runs]))


def _start(head: Head, data: TrainingData, rows: np.ndarray, seed: int) -> dict[str, Any]:
    """What a run begins with: the variables that its head is fitted to have, and the labels that it may see."""
    sample = np.sort(stream_generator(seed).permutation(rows)[:START_ROWS])
    labels = np.asarray(data.labels)
    return {"head": head.fit(_fetch(data, sample)), "seen": np.isin(np.unique(labels), labels[rows])}


def _fetch(data: TrainingData, rows: np.ndarray) -> np.ndarray:
    """The features of some rows, wherever they lie."""
    return np.asarray(data.features(rows) if callable(data.features) else data.features[rows])


def trace_step(recipe: Recipe, runs: Runs, batch_rows: int, feature_size: int) -> None:
    """Traces one step: what a strategy refuses, it refuses here, before anything is compiled or written.

    Args:
      recipe: from ``make_recipe``.
      runs: from ``make_runs``.
      batch_rows: images of a batch.
      feature_size: of the prepared features.

    Raises:
      ValueError: by a part of the strategy, about its own arguments.
    """
    integers = jnp.zeros(batch_rows, jnp.int32)
    one_batch = Batch(jnp.zeros((batch_rows, feature_size)), integers, integers, integers)
    first = jax.tree.map(lambda x: x[0], runs)
    state = jax.eval_shape(recipe.init, first.seeds, first.starts)
    jax.eval_shape(recipe.step, state, one_batch, jax.random.key(0))
