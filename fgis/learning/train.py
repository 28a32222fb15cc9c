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
from fgis.learning.step import Step

Fetch = Callable[[np.ndarray], np.ndarray]  # rows [...] -> features [..., f]; row -1 may hold anything finite
Metrics = dict[str, np.ndarray]  # each [steps, r]


class Runs(NamedTuple):
    """Independent trainings, stacked along the first axis of every field."""

    seeds: Int[Array, " r"]
    pools: Any  # what each run samples from: its class table, or its triplets
    starts: Any = ()  # what the runs begin with that depends on the images they may see


class Known(NamedTuple):
    """The labels of all images on the device: 0 ≤ label < classes, and the coarse ones where there are any."""

    labels: Int[Array, " n"]
    coarse: Int[Array, " n"] | None


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


def train(
    recipe: Recipe,
    runs: Runs,
    features: Float[Array, "n ..."] | Fetch,
    labels: Int[np.ndarray, " n"],
    *,
    steps: int,
    record_every: int,
    coarse: Int[np.ndarray, " n"] | None = None,
    state: TrainState | None = None,
    on_record: Callable[[int, TrainState, Metrics], None] = lambda step, state, metrics: None,
    together: bool | None = None,
) -> TrainState:
    """Trains all runs up to ``steps`` and returns their states, stacked.

    ``features`` are resident on the device, or a function that fetches rows (streamed with prefetch); the rows of a
    given (seed, step) are the same. ``labels`` and ``coarse`` may be any integers; losses see them as 0, 1, 2, ... in
    ascending order. ``on_record(step, state, metrics)`` is called every ``record_every`` steps and at the end, with the
    per-step metrics [steps since the last record, r] and, where the recipe has them, ``validation_loss`` and the
    diagnostics of the last batch, [1, r] each. ``state`` resumes, and is given up to the device (donated).
    ``together``: by ``vmap``, or run after run inside one program. Without it ``vmap`` on accelerators, where a batch
    of small products fills the device, and in turn on a CPU, whose cores one run fills and whose caches many leave.

    Raises:
      UserError: at a record, parameters are NaN or infinite; the state is given to nobody.
    """
    together = jax.default_backend() != "cpu" if together is None else together
    state = init_states(recipe, runs) if state is None else state
    known = Known(_dense(labels), None if coarse is None else _dense(coarse))
    start = int(state.step[0])
    while start < steps:
        stop = min(start - start % record_every + record_every, steps)
        if callable(features):
            state, log = _streamed_chunk(recipe, state, runs, features, known, start, stop, together)
        else:
            bounds = jnp.int32(start), jnp.int32(stop)
            state, log = _chunk(recipe, state, runs, features, known, *bounds, record_every, together)
        metrics = {name: np.asarray(values)[:, : stop - start].T for name, values in log.items()}
        if recipe.validation is not None:
            losses = _validate(recipe.validation, state.params, runs, features, known, together)
            metrics["validation_loss"] = np.asarray(losses)[None]
        if recipe.diagnose is not None:
            found = _diagnose(
                recipe, recipe.diagnose, state.params, runs, features, known, jnp.int32(stop - 1), together
            )
            metrics |= {name: np.asarray(values)[None] for name, values in found.items()}
        if lost := int((~np.asarray(_finite(state.params))).sum()):
            # Said here, before anything is saved: miners pass over NaN, and the loss of no triplet is a harmless 0.
            raise UserError(
                f"training diverged: by step {stop}, {lost} of {len(runs.seeds)} runs have parameters that are NaN or "
                "infinite; lower the learning rate (config.optimizer), and name another --workdir"
            )
        on_record(stop, state, metrics)
        start = stop
    return state


@jax.jit
def _finite(params: Any) -> Bool[Array, " r"]:
    """Whether all parameters of each of the stacked runs are finite."""
    return jnp.stack([jnp.isfinite(x).reshape(len(x), -1).all(axis=1) for x in jax.tree.leaves(params)]).all(axis=0)


def _dense(labels: Int[np.ndarray, " n"]) -> Int[Array, " n"]:
    return jnp.asarray(np.unique(labels, return_inverse=True)[1], jnp.int32)


@partial(jax.jit, static_argnums=0)
def init_states(recipe: Recipe, runs: Runs) -> TrainState:
    """The states of all runs before the first step, stacked."""
    return jax.vmap(recipe.init)(runs.seeds, runs.starts)


def _over_runs(function: Callable, together: bool, *stacked: Any) -> Any:
    count = jax.tree.leaves(stacked)[0].shape[0]
    return jax.lax.map(lambda one: function(*one), stacked, batch_size=count if together else None)


@jax.jit
def _take(features: Array, known: Known, rows: Array) -> Batch:
    index = jnp.maximum(rows, 0)
    labels, coarse = jax.tree.map(lambda x: x[index], known)
    return Batch(features[index], labels, rows, coarse)


def _fetch_batch(fetch: Fetch, known: Known, rows: Array) -> Batch:
    index = np.maximum(np.asarray(rows), 0)
    labels, coarse = jax.tree.map(lambda x: x[index], known)
    return Batch(jnp.asarray(fetch(index)), labels, rows, coarse)


def _batch(features: Array | Fetch, known: Known, rows: Array) -> Batch:
    return _fetch_batch(features, known, rows) if callable(features) else _take(features, known, rows)


def _one_step(recipe: Recipe, state: TrainState, batch: Batch, seed: Array, step: Any) -> tuple[TrainState, Any]:
    return recipe.step(state, batch, jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 4), step))


@partial(jax.jit, static_argnums=(0, 7, 8), donate_argnums=1)
def _chunk(
    recipe: Recipe, state: TrainState, runs: Runs, features: Array, known: Known, start: Array, stop: Array,
    record_every: int, together: bool,
) -> tuple[TrainState, dict[str, Array]]:  # fmt: skip
    """Steps [start, stop) of all runs; the bounds are data, so that chunks of any length share one compilation."""

    def one_run(state: TrainState, seed: Array, pool: Any) -> tuple[TrainState, Any]:
        def one_step(state: TrainState, step: Array) -> tuple[TrainState, Any]:
            batch = _take(features, known, recipe.sample(pool, seed, step))
            return _one_step(recipe, state, batch, seed, step)

        def body(step: Array, carry: tuple[TrainState, Any]) -> tuple[TrainState, Any]:
            state, metrics = one_step(carry[0], step)
            return state, jax.tree.map(lambda log, new: log.at[step - start].set(new), carry[1], metrics)

        shapes = jax.eval_shape(one_step, state, start)[1]
        log = jax.tree.map(lambda x: jnp.zeros((record_every, *x.shape), x.dtype), shapes)
        return jax.lax.fori_loop(start, stop, body, (state, log))

    return _over_runs(one_run, together, state, runs.seeds, runs.pools)


def _streamed_chunk(
    recipe: Recipe, state: TrainState, runs: Runs, fetch: Fetch, known: Known, start: int, stop: int, together: bool
) -> tuple[TrainState, dict[str, Array]]:
    """The same, one step per call, while a thread fetches the rows of the next ones."""

    def load(step: int) -> Batch:
        return _fetch_batch(fetch, known, _sample(recipe, runs, jnp.int32(step)))

    log = []
    for step, batch in zip(range(start, stop), _prefetch(load, start, stop), strict=True):
        state, metrics = _streamed_step(recipe, state, batch, runs.seeds, jnp.int32(step), together)
        log.append(metrics)
    return state, jax.tree.map(lambda *values: jnp.stack(values, axis=1), *log)


@partial(jax.jit, static_argnums=0)
def _sample(recipe: Recipe, runs: Runs, step: Array) -> Int[Array, "r b"]:
    return jax.vmap(lambda seed, pool: recipe.sample(pool, seed, step))(runs.seeds, runs.pools)


@partial(jax.jit, static_argnums=(0, 5), donate_argnums=1)
def _streamed_step(
    recipe: Recipe, state: TrainState, batch: Batch, seeds: Array, step: Array, together: bool
) -> tuple[TrainState, dict[str, Array]]:
    return _over_runs(lambda s, b, seed: _one_step(recipe, s, b, seed, step), together, state, batch, seeds)


def _prefetch(load: Callable[[int], Batch], start: int, stop: int, ahead: int = 2) -> Iterator[Batch]:
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load, step) for step in range(start, min(start + ahead, stop))]
        for step in range(start, stop):
            if step + ahead < stop:
                waiting.append(pool.submit(load, step + ahead))
            yield waiting.pop(0).result()


def _validate(
    validation: Validation, params: Any, runs: Runs, features: Array | Fetch, known: Known, together: bool
) -> Float[Array, " r"]:
    batch = _batch(features, known, _validation_rows(validation, runs))
    return _validation_losses(validation, params, batch, together)


@partial(jax.jit, static_argnums=0)
def _validation_rows(validation: Validation, runs: Runs) -> Int[Array, "r v"]:
    return jax.vmap(lambda seed, pool: validation.rows(pool, seed))(runs.seeds, runs.pools)


@partial(jax.jit, static_argnums=(0, 3))
def _validation_losses(validation: Validation, params: Any, batch: Batch, together: bool) -> Float[Array, " r"]:
    return _over_runs(validation.loss, together, params, batch)


def _diagnose(
    recipe: Recipe, diagnose: Callable, params: Any, runs: Runs, features: Array | Fetch, known: Known, step: Array,
    together: bool,
) -> dict[str, Float[Array, " r"]]:  # fmt: skip
    batch = _batch(features, known, _sample(recipe, runs, step))
    return _diagnoses(diagnose, params, batch, together)


@partial(jax.jit, static_argnums=(0, 3))
def _diagnoses(diagnose: Callable, params: Any, batch: Batch, together: bool) -> dict[str, Float[Array, " r"]]:
    return _over_runs(diagnose, together, params, batch)
