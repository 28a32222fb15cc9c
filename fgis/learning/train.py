"""The one loop: a batch of runs (seeds × folds) advances together, on the device from one record to the next.

Run r is described by ``Runs``: its seed and the pool of rows it may draw from. All runs are one program, so many
seeds and folds cost one compilation. Everything random is a function of (seed, step): a run that is resumed at step s
continues exactly as it would have.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fgis.base import Batch, TrainState
from fgis.errors import UserError
from fgis.hosts import to_own_host
from fgis.learning.layout import DeviceTable, by_runs, everywhere, fill_up, gathered, over_devices, own_share
from fgis.learning.step import Step
from fgis.streams import Stream, stream_key

STEPS_DRAWN = 8  # whose batches are drawn together: what a sampler keeps for a batch, it keeps for so many
Fetch = Callable[[np.ndarray], np.ndarray]  # rows [...] -> features [..., f]; row -1 may hold anything finite
Metrics = dict[str, np.ndarray]  # each [steps, r]


class TrainingData(NamedTuple):
    """The images that runs are trained on."""

    features: Any  # [n, f] on the device, or a function that fetches rows (``Fetch``)
    labels: Any  # [n] integers, of any values
    coarse: Any = None  # [n] integers, where images have coarse labels


class Runs(NamedTuple):
    """Independent trainings, stacked along the first axis of every field."""

    seeds: Int[Array, " r"]
    pools: Any  # what each run samples from: its class table, or its triplets
    starts: Any = ()  # what the runs begin with that depends on the images they may see


class Validation(NamedTuple):
    """What is measured on held-out rows at every record."""

    rows: Callable[[Any, Any], Array]  # (pool, seed) -> rows [v]
    loss: Callable[[Any, Batch], Array]  # (params, batch) -> scalar, without dropout


class Recipe(NamedTuple):
    """The functions of one training; the same for all of its runs. Equal recipes share their compiled programs."""

    init: Callable[[Array, Any], TrainState]  # (seed, start) -> state
    sample: Callable[[Any, Any, Any], Array]  # (pool, seed, step) -> rows [b]
    step: Step
    validation: Validation | None = None
    diagnose: Callable[..., dict[str, Array]] | None = None  # (params, last batch) -> scalars, at every record
    # Runs by ``vmap``, or one after the other inside one program. None: ``vmap`` on accelerators, where a batch of
    # small products fills the device, and in turn on a CPU, whose cores one run fills and whose caches many leave.
    together: bool | None = None
    layout: DeviceTable | None = None  # of the devices; None for one


def train(
    recipe: Recipe,
    runs: Runs,
    data: TrainingData,
    *,
    steps: int,
    record_every: int,
    state: TrainState | None = None,
    on_record: Callable[[int, TrainState, Metrics], None] = lambda step, state, metrics: None,
) -> TrainState:
    """Trains all runs up to ``steps``.

    Args:
      recipe: what is done, see ``make_recipe``.
      runs: the seeds and images of the runs, see ``make_runs``.
      data: features, either resident on the device or streamed by a function, with prefetch; the rows of a given
        (seed, step) are the same. Losses see labels as 0, 1, 2, ... in ascending order.
      steps: the step to stop at; nothing is done where ``state`` is there already.
      record_every: steps from one record to the next.
      state: where to resume; it is given up to the device (donated). None begins anew.
      on_record: called every ``record_every`` steps and at the end with (step, state, metrics): the per-step metrics
        [steps since the last record, r] and, where the recipe has them, ``validation_loss`` and the diagnostics of the
        last batch, [1, r] each.

    Returns:
      The states of all runs, stacked.

    Raises:
      UserError: at a record, parameters are NaN or infinite; the state of that record is passed to nobody.
    """
    if recipe.together is None:
        by_compiler = recipe.layout is not None and recipe.layout.by_compiler
        recipe = recipe._replace(together=by_compiler or jax.default_backend() != "cpu")
    state = init_states(recipe, runs) if state is None else state
    data = data._replace(labels=_dense(data.labels), coarse=None if data.coarse is None else _dense(data.coarse))
    start, placed = int(state.step[0]), runs
    if recipe.layout:
        state, placed = by_runs((state, runs), recipe.layout)
        if not callable(data.features):
            data = everywhere(data, recipe.layout)
    if callable(data.features):
        data = jax.tree.map(lambda x: x if callable(x) else np.asarray(x), data)
    while start < steps:
        stop = min(start - start % record_every + record_every, steps)
        if callable(data.features):
            state, log = _streamed_chunk(recipe, state, runs, placed.seeds, data, start, stop)
        else:
            state, log = _chunk(recipe, state, placed, data, np.int32(start), np.int32(stop), record_every)
        metrics = {name: to_own_host(values)[:, : stop - start].T for name, values in log.items()}
        metrics |= _measure(recipe, state.params, runs, data, stop)
        _refuse_divergence(state.params, stop)
        on_record(stop, state, metrics)
        start = stop
    return state


def _measure(recipe: Recipe, params: Any, runs: Runs, data: TrainingData, stop: int) -> Metrics:
    """What a recipe measures at a record."""
    metrics = {}
    if recipe.validation is not None:
        batch = _take_rows(data, _validation_rows(recipe.validation, runs), recipe.layout)
        metrics["validation_loss"] = to_own_host(_validation_losses(recipe, params, batch))[None]
    if recipe.diagnose is not None:
        batch = _take_rows(data, _sample(recipe, runs, jnp.int32(stop - 1)), recipe.layout)
        metrics |= {name: to_own_host(values)[None] for name, values in _diagnoses(recipe, params, batch).items()}
    return metrics


def _refuse_divergence(params: Any, step: int) -> None:
    """Before anything is saved: miners pass over NaN, and the loss of no triplet is a harmless 0."""
    finite = to_own_host(_finite(params))
    if not finite.all():
        raise UserError(
            f"training diverged: by step {step}, {int((~finite).sum())} of {len(finite)} runs have parameters that are "
            "NaN or infinite; lower the learning rate"
        )


@jax.jit
def _finite(params: Any) -> Bool[Array, " r"]:
    """Whether all parameters of each of the stacked runs are finite."""
    return jnp.stack([jnp.isfinite(x).reshape(len(x), -1).all(axis=1) for x in jax.tree.leaves(params)]).all(axis=0)


def _dense(labels: Any) -> Int[Array, " n"]:
    return jnp.asarray(np.unique(labels, return_inverse=True)[1], jnp.int32)


@partial(jax.jit, static_argnums=0)
def init_states(recipe: Recipe, runs: Runs) -> TrainState:
    """The states of all runs before the first step, stacked."""
    return jax.vmap(recipe.init)(runs.seeds, runs.starts)


def _over_runs(function: Callable, together: bool | None, *stacked: Any) -> Any:
    count = jax.tree.leaves(stacked)[0].shape[0]
    return jax.lax.map(lambda one: function(*one), stacked, batch_size=count if together else None)


def _on_own_runs(recipe: Recipe, function: Callable, *stacked: Any) -> Any:
    """The same on several devices, each for the runs of its row, so that nothing is exchanged."""
    all_runs = lambda *stacked: _over_runs(function, recipe.together, *stacked)
    if recipe.layout:
        all_runs = over_devices(all_runs, recipe.layout, [True] * len(stacked))
    return all_runs(*stacked)


@jax.jit
def _take(data: TrainingData, rows: Array) -> Batch:
    index = jnp.maximum(rows, 0)
    features, labels, coarse = jax.tree.map(lambda x: x[index], data)
    return Batch(features, labels, rows, coarse)


def _take_rows(data: TrainingData, rows: Array, layout: DeviceTable | None, *, shared: bool = False) -> Batch:
    """The batch of ``rows``, whether features are resident or fetched; a process fetches those of its devices alone."""
    if not callable(data.features):
        return _take(data, by_runs(rows, layout) if layout else rows)
    table = np.asarray(rows)

    def placed(take: Callable[[np.ndarray], np.ndarray]) -> Array:
        return gathered(take, table, layout, shared=shared) if layout else jnp.asarray(take(table))

    look_up = lambda values: placed(lambda rows: values[np.maximum(rows, 0)])
    coarse = None if data.coarse is None else look_up(data.coarse)
    features = placed(lambda rows: data.features(np.maximum(rows, 0)))
    return Batch(features, look_up(data.labels), placed(lambda rows: rows), coarse)


def _one_step(recipe: Recipe, state: TrainState, batch: Batch, seed: Array, step: Any) -> tuple[TrainState, Any]:
    return recipe.step(state, batch, stream_key(seed, Stream.STEP, step))


@partial(jax.jit, static_argnums=(0, 6), donate_argnums=1)
def _chunk(
    recipe: Recipe, state: TrainState, runs: Runs, data: TrainingData, start: Array, stop: Array, record_every: int
) -> tuple[TrainState, dict[str, Array]]:
    """Steps [start, stop) of all runs; the bounds are data, so that chunks of any length share one compilation."""

    def one_run(
        state: TrainState, seed: Array, pool: Any, data: TrainingData, start: Array, stop: Array
    ) -> tuple[TrainState, Any]:
        # Drawn for many steps at once: the hundreds of tiny operations of random numbers would delay every step.
        steps = start + jnp.arange(record_every)
        drawn = jax.lax.map(lambda step: recipe.sample(pool, seed, step), steps, batch_size=STEPS_DRAWN)

        def one_step(state: TrainState, step: Array) -> tuple[TrainState, Any]:
            rows = drawn[step - start]
            rows = own_share(rows, recipe.layout) if recipe.layout else rows
            return _one_step(recipe, state, _take(data, rows), seed, step)

        def body(step: Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
            state, metrics = one_step(carry[0], step)
            return state, jax.tree.map(lambda log, new: log.at[step - start].set(new), carry[1], metrics)

        shapes = jax.eval_shape(one_step, state, start)[1]
        log = jax.tree.map(lambda x: jnp.zeros((record_every, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(start, stop, body, (state, log))

    def all_runs(state: TrainState, seeds: Array, pools: Any, *fixed: Any) -> tuple[TrainState, Any]:
        return _over_runs(lambda *one: one_run(*one, *fixed), recipe.together, state, seeds, pools)

    if recipe.layout:
        all_runs = over_devices(all_runs, recipe.layout, [True] * 3 + [False] * 3)
    return all_runs(state, runs.seeds, runs.pools, data, start, stop)


def _streamed_chunk(
    recipe: Recipe, state: TrainState, runs: Runs, seeds: Array, data: TrainingData, start: int, stop: int
) -> tuple[TrainState, dict[str, Array]]:
    """The same, one step per call, while a thread fetches the rows of the next ones; ``seeds`` are on all devices."""

    def load(step: int) -> Batch:
        rows = _sample(recipe, runs, jnp.int32(step))
        return _take_rows(data, fill_up(rows, recipe.layout) if recipe.layout else rows, recipe.layout, shared=True)

    log = []
    for step, batch in zip(range(start, stop), _prefetch(load, start, stop), strict=True):
        state, metrics = _streamed_step(recipe, state, batch, seeds, np.int32(step))
        log.append(metrics)
    return state, jax.tree.map(lambda *values: jnp.stack(values, axis=1), *log)


@partial(jax.jit, static_argnums=0)
def _sample(recipe: Recipe, runs: Runs, step: Array) -> Int[Array, "r b"]:
    return jax.vmap(lambda seed, pool: recipe.sample(pool, seed, step))(runs.seeds, runs.pools)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _streamed_step(
    recipe: Recipe, state: TrainState, batch: Batch, seeds: Array, step: Array
) -> tuple[TrainState, dict[str, Array]]:
    def all_runs(state: TrainState, batch: Batch, seeds: Array, step: Array) -> tuple[TrainState, dict[str, Array]]:
        return _over_runs(lambda s, b, seed: _one_step(recipe, s, b, seed, step), recipe.together, state, batch, seeds)

    if recipe.layout:
        all_runs = over_devices(all_runs, recipe.layout, [True, True, True, False], [False, True, False, False])
    return all_runs(state, batch, seeds, step)


def _prefetch(load: Callable[[int], Batch], start: int, stop: int, ahead: int = 2) -> Iterator[Batch]:
    """``load(step)`` for each step, the next ``ahead`` of them begun beforehand on a thread."""
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load, step) for step in range(start, min(start + ahead, stop))]
        for step in range(start, stop):
            if step + ahead < stop:
                waiting.append(pool.submit(load, step + ahead))
            yield waiting.pop(0).result()


@partial(jax.jit, static_argnums=0)
def _validation_rows(validation: Validation, runs: Runs) -> Int[Array, "r v"]:
    return jax.vmap(lambda seed, pool: validation.rows(pool, seed))(runs.seeds, runs.pools)


@partial(jax.jit, static_argnums=0)
def _validation_losses(recipe: Recipe, params: Any, batch: Batch) -> Float[Array, " r"]:
    assert recipe.validation is not None
    return _on_own_runs(recipe, recipe.validation.loss, params, batch)


@partial(jax.jit, static_argnums=0)
def _diagnoses(recipe: Recipe, params: Any, batch: Batch) -> dict[str, Float[Array, " r"]]:
    assert recipe.diagnose is not None
    return _on_own_runs(recipe, recipe.diagnose, params, batch)
