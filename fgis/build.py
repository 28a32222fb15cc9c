"""The only reader of a ConfigDict besides its checks: turns it into plain functions and numbers.

``build`` needs a checked configuration (``choices.check``), the labels and the shape of the features.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fgis.base import Batch, Neighbours, Objective, RunPlan, TrainState
from fgis.choices import BESIDE, LISTS_TRIPLETS, PAIR_LOSSES, choose
from fgis.distances import DISTANCES
from fgis.errors import UserError
from fgis.learning import heads, miners, objectives, pair_losses, samplers
from fgis.learning.diagnostics import diagnose
from fgis.learning.learned import LEARNED, Learned
from fgis.learning.memory import empty_memory
from fgis.learning.step import init_state, make_loss, make_train_step
from fgis.learning.train import Recipe, Runs, Validation
from fgis.retrieval.evaluate import object_folds

START_ROWS = 4096  # images that a head's start is fitted to, where a run may see more
MINED_ON = {"distance_weighted": "unit_euclidean"}  # miners that are defined on one distance alone


class Scoring(NamedTuple):
    """How features become embeddings, and embeddings figures."""

    prepare: Callable[[Any], Float[Array, "n f"]]
    embed: Callable[[Any, Float[Array, "n f"]], Float[Array, "n d"]]  # (params of one run, prepared features)
    distance: str
    metrics: tuple[str, ...]
    resamples: int
    seed: int


class Experiment(NamedTuple):
    """A configuration as functions and numbers."""

    recipe: Recipe
    runs: Runs
    plans: tuple[RunPlan, ...]  # plans[r] describes run r
    folds: Int[np.ndarray, " n"]  # the fold of every image; all 0 where there are none
    scoring: Scoring
    total_steps: int
    record_every: int
    checkpoint_every: int


class Source(NamedTuple):
    """Where the features of an experiment lie, what they must be, and how much of them fits on the device."""

    path: str
    images: str
    collection: str
    described: dict[str, Any]  # backbone, weights, image_size, fit, pooling, collection: as extract writes them
    on_bad_image: str
    resident_bytes: int


def source(config: ml_collections.ConfigDict) -> Source:
    """The features that a checked ``config`` describes."""
    features = config.features
    keys = ("backbone", "weights", "image_size", "fit", "pooling", "collection")
    return Source(
        path=features.path,
        images=features.images,
        collection=features.collection,
        described={key: features[key] for key in keys} if features.backbone else {},
        on_bad_image=features.on_bad_image,
        resident_bytes=config.train.resident_megabytes * 2**20,
    )


def build_objective(config: ml_collections.ConfigDict, dimensions: int, miner: str | None = None) -> Objective:
    """The miner (``miner`` instead of the config's, for the parts of a schedule) and the loss of ``config``, joined."""
    name = miner or config.miner.name
    if name == "schedule":
        plan = choose(config, "miner")()
        first, second = (build_objective(config, dimensions, part) for part in (plan.first, plan.second))
        return objectives.scheduled(first, second, plan.switch_steps)
    bounds: dict[str, Any] = {"max_positives": _max_positives(config), "dimensions": dimensions}
    loss, distance = choose(config, "loss", **bounds), DISTANCES[config.distance]
    if config.loss.name in pair_losses.PROXY_LOSSES:
        return objectives.proxied(loss, distance)
    if name == "given":
        return objectives.given(loss, distance)
    graded, chosen = config.loss.name in pair_losses.GRADED_LOSSES, choose(config, "miner", name=name, **bounds)
    mined_on = DISTANCES[MINED_ON[name]] if name in MINED_ON else None
    if config.loss.name in PAIR_LOSSES:
        return objectives.paired(loss, distance, None if name == "batch_all" else chosen, mined_on, graded)
    if name in miners.SELECTORS:
        return objectives.summed(chosen, loss, distance)
    return objectives.mined(chosen, loss, distance, mined_on)


def _max_positives(config: ml_collections.ConfigDict) -> int | None:
    """How many positives an anchor can have at most, where the sampler says so: what lists one triplet per pair."""
    options = config.sampler.get(config.sampler.name, {})
    if "per_class" not in options:
        return None
    batches = 1 + -(-config.memory.size // (options.classes * options.per_class))  # whose candidates are at hand
    return max(batches * options.per_class - 1, 1)


def build_learned(config: ml_collections.ConfigDict) -> Learned:
    """What the loss of ``config`` learns, and how; nothing for most."""
    if config.loss.name in LEARNED:
        return choose(config, "loss", LEARNED)()
    return Learned(lambda key, seen, dimensions: {}, optax.identity())


def build_recipe(config: ml_collections.ConfigDict, feature_size: int) -> Recipe:
    """The functions that ``config`` chooses, joined, for prepared features of size ``feature_size``."""
    head, learned, distance = choose(config, "head")(), build_learned(config), DISTANCES[config.distance]
    fresh = partial(heads.init_head, head, feature_shape=(feature_size,))
    one = jnp.zeros((1, feature_size), jnp.float32)
    dimensions = jax.eval_shape(lambda: head.apply(fresh(jax.random.key(0)), one)).shape[-1]
    by_collection = {
        "params": choose(config, "optimizer")(), "learned": learned.optimizer, "constants": optax.set_to_zero()
    }  # fmt: skip
    optimizer = optax.multi_transform(by_collection, lambda params: {name: name for name in params})
    objective, reduction = build_objective(config, dimensions), choose(config, "reduction")
    warmup_steps, validation = config.memory.warmup_steps, None
    if config.sampler.name == "published":
        loss = make_loss(head.apply, objective, reduction)
        validation = Validation(
            rows=partial(samplers.published_validation, held_out=config.sampler.published.held_out),
            loss=lambda params, batch: loss(params, batch, None)[0],
        )

    def init(seed: Any, start: dict[str, Any]) -> TrainState:
        key = jax.random.key(seed)
        params = fresh(key, start=start["head"])
        if found := learned.init(jax.random.fold_in(key, 5), start["seen"], dimensions):
            params["learned"] = found
        return init_state(params, optimizer, empty_memory(config.memory.size, dimensions) if config.memory.size else ())

    def diagnose_batch(params: Any, batch: Batch) -> dict[str, Array]:
        return diagnose(head.apply(params, batch.features), batch.labels, batch.rows, distance)

    return Recipe(
        init=init,
        sample=choose(config, "sampler"),
        step=make_train_step(head.apply, objective, reduction, optimizer, warmup_steps=warmup_steps),
        validation=validation,
        diagnose=diagnose_batch,
    )


def build_scoring(config: ml_collections.ConfigDict) -> Scoring:
    """The part of an experiment that needs no training."""
    return Scoring(
        prepare=partial(heads.prepare, power=config.inputs.power, normalize=config.inputs.normalize),
        embed=jax.jit(choose(config, "head")().apply),
        distance=config.distance,
        metrics=tuple(config.evaluation.metrics),
        resamples=config.evaluation.resamples,
        seed=config.seed,
    )


def build_rerank(config: ml_collections.ConfigDict) -> Callable[..., Neighbours] | None:
    """The re-ranking of ``config``, if any."""
    return None if config.rerank.name == "none" else choose(config, "rerank")


def head_fits(config: ml_collections.ConfigDict, params: Any, feature_size: int) -> bool:
    """Whether the (stacked) ``params`` belong to the head of ``config`` on features of this size."""
    head = choose(config, "head")()
    fresh = jax.eval_shape(lambda: heads.init_head(head, jax.random.key(0), (feature_size,)))
    own = {name: params.get(name) for name in fresh}
    return [x.shape for x in jax.tree.leaves(fresh)] == [x.shape[1:] for x in jax.tree.leaves(own)]


def plan_runs(config: ml_collections.ConfigDict) -> tuple[RunPlan, ...]:
    """The runs of ``config``, in the order in which parameters are stacked: all objects first, then fold by fold."""
    left_out = ([-1] if config.closed_set else []) + list(range(config.folds))
    return tuple(RunPlan(config.seed + seed, fold) for fold in left_out for seed in range(config.seeds))


def build(
    config: ml_collections.ConfigDict,
    labels: Int[np.ndarray, " n"],
    feature_size: int,
    read: Callable[[Int[np.ndarray, " m"]], np.ndarray],
    coarse: Int[np.ndarray, " n"] | None = None,
) -> Experiment:
    """The experiment of a checked ``config`` on images with these labels; ``read`` gives the features of rows.

    Raises ``UserError`` where the images do not allow it: more folds than objects, or no coarse labels for a loss that
    needs them.
    """
    objects = len(np.unique(labels))
    if config.folds > objects:
        raise UserError(f"config.folds: {config.folds} folds of {objects} objects; write at most {objects}")
    if config.loss.name in pair_losses.GRADED_LOSSES and coarse is None:
        raise UserError(
            f"config.loss.name: {config.loss.name!r} needs coarse labels (opposites are images of another coarse "
            "class), and these features have none; take GroceryStore, or extract from a CSV file of 'path,label,coarse'"
        )
    if 0 < config.memory.size < (batch := batch_size(config)):
        raise UserError(
            f"config.memory.size: {config.memory.size} is less than a batch of {batch}; write at least that"
        )
    folds = object_folds(labels, config.folds, config.seed) if config.folds else np.zeros(len(labels), np.int64)
    plans, scoring = plan_runs(config), build_scoring(config)
    head, draw_pool = choose(config, "head")(), choose(config, "sampler", BESIDE["sampler"])
    seen, starts = {}, {}
    for fold in {plan.fold for plan in plans}:
        seen[fold] = np.flatnonzero(folds != fold)
        sample = np.sort(np.random.default_rng(config.seed).permutation(seen[fold])[:START_ROWS])
        starts[fold] = {
            "head": heads.fit_start(head, np.asarray(scoring.prepare(read(sample)))),
            "seen": np.isin(np.unique(labels), labels[seen[fold]]),
        }
    pools = [draw_pool(labels, seen[plan.fold], plan.seed, coarse) for plan in plans]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    runs = Runs(jnp.asarray([p.seed for p in plans]), stack(pools), stack([starts[p.fold] for p in plans]))
    recipe = build_recipe(config, feature_size)
    _trace(recipe, runs, batch_size(config), feature_size)
    return Experiment(
        recipe=recipe,
        runs=runs,
        plans=plans,
        folds=folds,
        scoring=scoring,
        total_steps=config.train.total_steps,
        record_every=config.train.record_every_steps,
        checkpoint_every=config.train.checkpoint_every_steps,
    )


def _trace(recipe: Recipe, runs: Runs, batch: int, feature_size: int) -> None:
    """Traces one step: what a strategy refuses, it refuses here, before anything is compiled or written."""
    integers = jnp.zeros(batch, jnp.int32)
    one_batch = Batch(jnp.zeros((batch, feature_size)), integers, integers, integers)
    first = jax.tree.map(lambda x: x[0], runs)
    state = jax.eval_shape(recipe.init, first.seeds, first.starts)
    jax.eval_shape(recipe.step, state, one_batch, jax.random.key(0))


def batch_size(config: ml_collections.ConfigDict) -> int:
    """How many images a batch of ``config`` holds."""
    options = config.sampler[config.sampler.name]
    if "per_class" in options:
        return options.classes * options.per_class
    return options.batch * (3 if config.sampler.name in LISTS_TRIPLETS else 1)
