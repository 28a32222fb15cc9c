"""The only reader of a ConfigDict: turns it into plain functions and numbers, and refuses what it does not understand.

``check`` needs the configuration alone and compiles nothing, so that a misspelt key fails within seconds. ``build``
adds the labels and the shape of the features.
"""

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fgis.distances import DISTANCES, Distance
from fgis.features.collections import COLLECTIONS
from fgis.features.extract import check_settings
from fgis.learning import heads, losses, mining, objectives, sampling
from fgis.learning.step import init_state, make_loss, make_train_step
from fgis.learning.train import Recipe, Runs, Validation
from fgis.retrieval.evaluate import object_folds
from fgis.retrieval.metrics import find_metric
from fgis.types import Objective, RunPlan, UserError

START_ROWS = 4096  # images that a head's start is fitted to, where a run may see more
OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}


def given() -> None:
    """Names the absence of mining in a config: the sampler lists the triplets."""


STRATEGIES: dict[str, Callable[..., Any]] = {**mining.MINERS, **mining.SELECTORS, "given": given}
TABLES: dict[str, dict[str, Any]] = {
    "head": heads.HEADS,
    "sampler": sampling.SAMPLERS,
    "miner": STRATEGIES,
    "loss": losses.LOSSES,
    "reduction": losses.REDUCTIONS,
    "optimizer": OPTIMIZERS,
}
BESIDE = {"sampler": (sampling.POOLS,)}
# The arguments that do not come from a config: data, and what another choice implies.
SUPPLIED = {
    "table", "drawn", "labels", "rows", "seed", "step", "key", "distances", "positives", "negatives", "max_positives",
    "d_ap", "d_an", "sums", "parent", "name",
}  # fmt: skip
KEYS: dict[str, tuple[str, ...]] = {
    "features": ("path", "images", "collection", "backbone", "weights", "image_size", "fit", "pooling", "on_bad_image"),
    "inputs": ("power", "normalize"),
    "train": ("total_steps", "record_every_steps", "checkpoint_every_steps", "resident_megabytes"),
    "evaluation": ("metrics", "resamples", "published"),
}  # fmt: skip
NUMBERS = ("seed", "seeds", "folds", "closed_set", "distance")


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


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """``config`` as JSON types: what is saved, and what two configurations are compared as."""
    return json.loads(config.to_json())


def refuse_other(config: ml_collections.ConfigDict, saved: Mapping[str, Any], place: str, but: str = "\0") -> None:
    """Raises ``UserError`` where ``config`` and the ``saved`` one differ, but for keys that start with ``but``."""
    here, there = flatten(plain(config)), flatten(saved)
    differing = [k for k in sorted(here | there) if here.get(k) != there.get(k) and not k.startswith(but)]
    if differing:
        key = differing[0]
        more = f" (and {len(differing) - 1} more keys differ)" if len(differing) > 1 else ""
        raise UserError(
            f"config.{key}: {here.get(key)!r} here, but {place} was made with {there.get(key)!r}{more}; "
            "name another --workdir, or give the same configuration"
        )


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error line about a wrong ``word``: the nearest right one, and all that are known."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"


def check(config: ml_collections.ConfigDict) -> None:
    """Raises ``UserError`` for whatever is wrong with ``config`` by itself."""
    known = {*KEYS, *TABLES, *NUMBERS}
    for key in config:
        if key not in known:
            raise UserError(f"config.{key}: no such key; {nearest(key, known)}")
    for key in sorted(known - set(config)):
        raise UserError(f"config.{key}: missing; see configs/ukbench.py for its shape")
    for group, keys in KEYS.items():
        for key in config[group]:
            if key not in keys:
                raise UserError(f"config.{group}.{key}: no such key; {nearest(key, keys)}")
        for key in keys:
            if key not in config[group]:
                raise UserError(f"config.{group}.{key}: missing; see configs/ukbench.py for its shape")
    for group in TABLES:
        choose(config, group)
    if config.distance not in DISTANCES:
        raise UserError(f"config.distance: {config.distance!r} is no distance; {nearest(config.distance, DISTANCES)}")
    for name in config.evaluation.metrics:
        find_metric(name)
    _check_features(config.features)
    if (config.sampler.name == "published") != (config.miner.name == "given"):
        raise UserError(
            f"config.miner.name: {config.miner.name!r} does not go with config.sampler.name={config.sampler.name!r}; "
            "the published sampler lists its own triplets, so it takes the miner 'given', and no other sampler does"
        )
    _check_numbers(config)


def _check_features(features: ml_collections.ConfigDict) -> None:
    if features.collection not in COLLECTIONS:
        raise UserError(
            f"config.features.collection: {features.collection!r} is no collection; "
            f"{nearest(features.collection, COLLECTIONS)}"
        )
    if features.backbone:  # "" takes a feature file as it is
        check_settings(features.backbone, features.image_size, features.fit, features.pooling, features.on_bad_image)


def _check_numbers(config: ml_collections.ConfigDict) -> None:
    least = {
        "seed": 0, "seeds": 1, "folds": 0, "train.total_steps": 1, "train.record_every_steps": 1,
        "train.checkpoint_every_steps": 1, "train.resident_megabytes": 0, "evaluation.resamples": 1,
    }  # fmt: skip
    flat = flatten(plain(config))
    for key, bound in least.items():
        value = flat[key]
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            raise UserError(f"config.{key}: {value!r} found; write a whole number of at least {bound}")
    if config.folds == 1:
        raise UserError("config.folds: 1 leaves nothing to train on; write 0 for none or at least 2")
    if not config.folds and not config.closed_set:
        raise UserError("config.closed_set: False with config.folds=0 leaves nothing to train; switch one of them on")
    if config.train.checkpoint_every_steps % config.train.record_every_steps:
        raise UserError(
            f"config.train.checkpoint_every_steps: {config.train.checkpoint_every_steps} is no multiple of "
            f"record_every_steps={config.train.record_every_steps}; a checkpoint is saved with a record"
        )


def choose(
    config: ml_collections.ConfigDict, group: str, beside: Mapping[str, Callable] | None = None, **supplied: Any
) -> Callable:
    """The function that ``config.GROUP.name`` names, with ``config.GROUP.NAME`` and ``supplied`` bound to it.

    ``beside``: another table with the same names, whose functions share the arguments of a choice with those of TABLES.
    """
    table, options = TABLES[group], config[group]
    name = options.get("name", "")
    if name not in table:
        raise UserError(f"config.{group}.name: {name!r} is no {group}; {nearest(str(name), table)}")
    for other in options:
        if other != "name" and other not in table:
            raise UserError(f"config.{group}.{other}: no such {group}; {nearest(other, table)}")
    arguments = dict(options.get(name, {}))
    parameters = [set(inspect.signature(t[name]).parameters) for t in (table, *BESIDE.get(group, ()))]
    accepted = set().union(*parameters) - SUPPLIED
    for key in arguments:
        if key not in accepted:
            raise UserError(f"config.{group}.{name}.{key}: no such key; {nearest(key, accepted)}")
    function = (beside or table)[name]
    own = {key: value for key, value in arguments.items() if key in inspect.signature(function).parameters}
    return partial(function, **own, **supplied)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"miner.name": "batch_hard", ...}: every leaf under its dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def build_objective(config: ml_collections.ConfigDict, distance: Distance) -> Objective:
    """The miner and the loss of ``config``, joined."""
    name, loss = config.miner.name, choose(config, "loss")
    if name == "given":
        return objectives.given(loss, distance)
    if name in mining.SELECTORS:
        return objectives.summed(choose(config, "miner"), loss, distance)
    # A miner that lists one triplet per pair needs a bound on the positives of an anchor: here K - 1 by construction.
    lists_pairs = "max_positives" in inspect.signature(STRATEGIES[name]).parameters
    bound = {"max_positives": max(config.sampler.pk.per_class - 1, 1)} if lists_pairs else {}
    return objectives.mined(choose(config, "miner", **bound), loss, distance)


def build_recipe(config: ml_collections.ConfigDict, feature_size: int) -> Recipe:
    """The functions that ``config`` chooses, joined, for prepared features of size ``feature_size``."""
    head, optimizer = choose(config, "head")(), optax.masked(choose(config, "optimizer")(), heads.trainable)
    objective, reduction = build_objective(config, DISTANCES[config.distance]), choose(config, "reduction")
    loss, validation = make_loss(head.apply, objective, reduction), None
    if config.sampler.name == "published":
        validation = Validation(
            rows=partial(sampling.published_validation, held_out=config.sampler.published.held_out),
            loss=lambda params, batch: loss(params, batch, None)[0],
        )
    return Recipe(
        init=lambda seed, start: init_state(
            heads.init_head(head, jax.random.key(seed), (feature_size,), start), optimizer
        ),
        sample=choose(config, "sampler"),
        step=make_train_step(head.apply, objective, reduction, optimizer),
        validation=validation,
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


def head_fits(config: ml_collections.ConfigDict, params: Any, feature_size: int) -> bool:
    """Whether the (stacked) ``params`` belong to the head of ``config`` on features of this size."""
    head = choose(config, "head")()
    fresh = jax.eval_shape(lambda: heads.init_head(head, jax.random.key(0), (feature_size,)))
    return [x.shape for x in jax.tree.leaves(fresh)] == [x.shape[1:] for x in jax.tree.leaves(params)]


def plan_runs(config: ml_collections.ConfigDict) -> tuple[RunPlan, ...]:
    """The runs of ``config``, in the order in which parameters are stacked: all objects first, then fold by fold."""
    left_out = ([-1] if config.closed_set else []) + list(range(config.folds))
    return tuple(RunPlan(config.seed + seed, fold) for fold in left_out for seed in range(config.seeds))


def build(
    config: ml_collections.ConfigDict,
    labels: Int[np.ndarray, " n"],
    feature_size: int,
    read: Callable[[Int[np.ndarray, " m"]], np.ndarray],
) -> Experiment:
    """The experiment of a checked ``config`` on images with these ``labels``; ``read`` gives the features of rows."""
    objects = len(np.unique(labels))
    if config.folds > objects:
        raise UserError(f"config.folds: {config.folds} folds of {objects} objects; write at most {objects}")
    folds = object_folds(labels, config.folds, config.seed) if config.folds else np.zeros(len(labels), np.int64)
    plans, scoring = plan_runs(config), build_scoring(config)
    head, draw_pool = choose(config, "head")(), choose(config, "sampler", sampling.POOLS)
    seen, starts = {}, {}
    for fold in {plan.fold for plan in plans}:
        seen[fold] = np.flatnonzero(folds != fold)
        sample = np.sort(np.random.default_rng(config.seed).permutation(seen[fold])[:START_ROWS])
        starts[fold] = heads.fit_start(head, np.asarray(scoring.prepare(read(sample))))
    runs = Runs(
        seeds=jnp.asarray([plan.seed for plan in plans]),
        pools=jax.tree.map(lambda *pools: jnp.stack(pools), *(draw_pool(labels, seen[p.fold], p.seed) for p in plans)),
        starts=jax.tree.map(lambda *starts: jnp.stack(starts), *(starts[plan.fold] for plan in plans)),
    )
    return Experiment(
        recipe=build_recipe(config, feature_size),
        runs=runs,
        plans=plans,
        folds=folds,
        scoring=scoring,
        total_steps=config.train.total_steps,
        record_every=config.train.record_every_steps,
        checkpoint_every=config.train.checkpoint_every_steps,
    )
