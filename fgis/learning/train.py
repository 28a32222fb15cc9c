"""The one loop: a batch of runs (seeds × folds) advances together, on the device from one record to the next.

Run r is described by ``Runs``: its seed and the table of the rows it may train on. The step of every run is the same
program, so many seeds and folds cost one compilation and one pass over the step count. Everything random is a function of
(seed, step): a run that is resumed at step s continues exactly as it would have.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fgis.learning.sampling import ClassTable
from fgis.learning.step import Step
from fgis.types import Batch, TrainState

Fetch = Callable[[np.ndarray], np.ndarray]  # rows [...] -> features [..., f]; row -1 may hold anything finite
Metrics = dict[str, np.ndarray]  # each [steps, r]


class Runs(NamedTuple):
    """Independent trainings, stacked along the first axis of every field."""

    seeds: Int[Array, " r"]
    tables: ClassTable


class Recipe(NamedTuple):
    """The functions of one training; the same for all of its runs."""

    init: Callable[[Array], TrainState]  # seed -> state
    sample: Callable[[ClassTable, Any, Any], Array]  # (table, seed, step) -> rows [b]
    step: Step
    validation_rows: Callable[[ClassTable, Any], Array] | None = None  # (table, seed) -> rows [v]
    validation_loss: Callable[[Any, Batch], Array] | None = None  # (params, batch) -> scalar


def init_states(recipe: Recipe, runs: Runs) -> TrainState:
    """The states of all runs before the first step, stacked."""
    return jax.jit(jax.vmap(recipe.init))(runs.seeds)


def over_runs(function: Callable, *stacked: Any, together: bool | None = None) -> Any:
    """``function`` applied to each run: at once by ``vmap``, or in turn inside the same program.

    On accelerators a batch of small matrix products fills the device. On a CPU one run's products fill the cores already,
    and a batch of runs only leaves the caches (measured in ``experiments/benchmarks/runs.py``).
    """
    if together is None:
        together = jax.default_backend() != "cpu"
    count = jax.tree.leaves(stacked)[0].shape[0]
    return jax.lax.map(lambda one: function(*one), stacked, batch_size=count if together else None)


def train(
    recipe: Recipe,
    runs: Runs,
    features: Float[Array, "n ..."] | Fetch,
    labels: Int[np.ndarray, " n"],
    *,
    steps: int,
    record_every: int,
    state: TrainState | None = None,
    on_record: Callable[[int, TrainState, Metrics], None] = lambda step, state, metrics: None,
    together: bool | None = None,
) -> TrainState:
    """Trains all runs up to ``steps`` and returns their states, stacked.

    ``features`` are resident on the device, or a function that fetches rows (streamed with prefetch); the rows of a given
    (seed, step) are the same. ``on_record(step, state, metrics)`` is called every ``record_every`` steps and at the end,
    with the per-step metrics [steps since the last record, r] and, where the recipe validates, ``validation_loss`` [1, r].
    ``state`` resumes.
    """
    state = init_states(recipe, runs) if state is None else state
    labels = jnp.asarray(labels, jnp.int32)
    resident = not callable(features)
    advance = _resident_advance if resident else _streamed_advance
    chunk = advance(recipe, runs, features, labels, record_every, together)
    validate = _validator(recipe, runs, features, labels, together)
    start = int(state.step[0])
    while start < steps:
        stop = min(start - start % record_every + record_every, steps)
        state, metrics = chunk(state, start, stop)
        metrics = {name: np.asarray(values)[: stop - start] for name, values in metrics.items()}
        on_record(stop, state, metrics | validate(state))
        start = stop
    return state


def _one_step(recipe: Recipe, state: TrainState, batch: Batch, seed: Array, step: Any) -> tuple[TrainState, Any]:
    return recipe.step(state, batch, jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 4), step))


def _take(features: Array, labels: Array, rows: Array) -> Batch:
    return Batch(features[jnp.maximum(rows, 0)], labels[jnp.maximum(rows, 0)], rows)


def _resident_advance(
    recipe: Recipe, runs: Runs, features: Array, labels: Array, record_every: int, together: bool | None
) -> Callable[[TrainState, int, int], tuple[TrainState, Metrics]]:
    """Steps [start, stop) in one call; the bounds are arguments, so that chunks of any length share one compilation."""

    def one(state: TrainState, seed: Array, table: ClassTable, step: Array, features: Array, labels: Array) -> Any:
        return _one_step(recipe, state, _take(features, labels, recipe.sample(table, seed, step)), seed, step)

    def all_runs(state: TrainState, step: Array, runs: Runs, features: Array, labels: Array) -> Any:
        return over_runs(lambda s, seed, table: one(s, seed, table, step, features, labels), state, *runs, together=together)

    @partial(jax.jit, donate_argnums=0)
    def chunk(
        state: TrainState, start: Array, stop: Array, runs: Runs, features: Array, labels: Array
    ) -> tuple[TrainState, Any]:
        shapes = jax.eval_shape(all_runs, state, start, runs, features, labels)[1]
        log = jax.tree.map(lambda x: jnp.zeros((record_every, *x.shape), x.dtype), shapes)

        def body(step: Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
            state, log = carry
            state, metrics = all_runs(state, step, runs, features, labels)
            return state, jax.tree.map(lambda old, new: old.at[step - start].set(new), log, metrics)

        return jax.lax.fori_loop(start, stop, body, (state, log))

    return lambda state, start, stop: chunk(state, jnp.int32(start), jnp.int32(stop), runs, features, labels)


def _streamed_advance(
    recipe: Recipe, runs: Runs, fetch: Fetch, labels: Array, record_every: int, together: bool | None
) -> Callable[[TrainState, int, int], tuple[TrainState, Metrics]]:
    """One step per call, while a thread fetches the rows of the next ones."""
    del record_every

    @partial(jax.jit, donate_argnums=0)
    def step_all(state: TrainState, batch: Batch, step: Array, runs: Runs) -> tuple[TrainState, Any]:
        return over_runs(
            lambda s, b, seed: _one_step(recipe, s, b, seed, step), state, batch, runs.seeds, together=together
        )

    sample_all = jax.jit(lambda step, runs: jax.vmap(lambda seed, table: recipe.sample(table, seed, step))(*runs))

    def load(step: int) -> Batch:
        rows = sample_all(jnp.int32(step), runs)
        return Batch(jnp.asarray(fetch(np.maximum(rows, 0))), labels[jnp.maximum(rows, 0)], rows)

    def advance(state: TrainState, start: int, stop: int) -> tuple[TrainState, Metrics]:
        log = []
        for step, batch in zip(range(start, stop), _prefetch(load, start, stop), strict=True):
            state, metrics = step_all(state, batch, jnp.int32(step), runs)
            log.append(metrics)
        return state, jax.tree.map(lambda *values: np.stack(values), *log)

    return advance


def _prefetch(load: Callable[[int], Batch], start: int, stop: int, ahead: int = 2) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load, step) for step in range(start, min(start + ahead, stop))]
        for step in range(start, stop):
            if step + ahead < stop:
                waiting.append(pool.submit(load, step + ahead))
            yield waiting.pop(0).result()


def _validator(
    recipe: Recipe, runs: Runs, features: Array | Fetch, labels: Array, together: bool | None
) -> Callable[[TrainState], Metrics]:
    """``state -> {"validation_loss": [1, r]}``, or nothing where the recipe does not validate."""
    if recipe.validation_rows is None or recipe.validation_loss is None:
        return lambda state: {}
    validation_loss = recipe.validation_loss
    rows = jax.vmap(lambda seed, table: recipe.validation_rows(table, seed))(*runs)
    if callable(features):
        batch = Batch(jnp.asarray(features(np.maximum(rows, 0))), labels[rows], rows)
    else:
        batch = jax.vmap(partial(_take, features, labels))(rows)

    @jax.jit
    def losses(params: Any, batch: Batch) -> Array:
        return over_runs(validation_loss, params, batch, together=together)

    return lambda state: {"validation_loss": np.asarray(losses(state.params, batch))[None]}
