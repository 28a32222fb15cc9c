"""What a configuration may say: the tables it chooses from, and a refusal, in one line, of whatever else it says.

``check`` needs the configuration alone and compiles nothing, so that a misspelt key fails within seconds.
"""

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import ml_collections
import optax

from fgis.distances import DISTANCES
from fgis.errors import UserError
from fgis.features.collection import COLLECTIONS
from fgis.features.extract import check_settings
from fgis.learning import heads, losses, miners, pair_losses, samplers
from fgis.learning.learned import LEARNED
from fgis.retrieval.metrics import find_metric
from fgis.retrieval.rerank import DIRECTIONS, RERANKERS

OPTIMIZERS = {"adam": optax.adam, "adamw": optax.adamw, "sgd": optax.sgd}


class Schedule(NamedTuple):
    """One miner for the first ``switch_steps`` steps, another one from then on."""

    first: str = "semi_hard"
    second: str = "batch_hard"
    switch_steps: int = 100


def given() -> None:
    """Names the absence of mining in a config: the sampler lists the triplets."""


def none() -> None:
    """Names the absence of re-ranking in a config."""


MINERS: dict[str, Callable[..., Any]] = {**miners.MINERS, **miners.SELECTORS}
PAIR_LOSSES: dict[str, Callable[..., Any]] = {**pair_losses.PAIR_LOSSES, **pair_losses.GRADED_LOSSES}
TABLES: dict[str, dict[str, Any]] = {
    "head": heads.HEADS,
    "sampler": samplers.SAMPLERS,
    "miner": {**MINERS, "schedule": Schedule, "given": given},
    "loss": {**losses.LOSSES, **PAIR_LOSSES, **pair_losses.PROXY_LOSSES},
    "reduction": losses.REDUCTIONS,
    "optimizer": OPTIMIZERS,
    "rerank": {"none": none, **RERANKERS},
}
BESIDE = {"sampler": samplers.POOLS, "loss": LEARNED}  # these share the arguments of a choice
LISTS_TRIPLETS = ("published", "deep_ranking")  # samplers
# The arguments that do not come from a config: data, and what another choice implies.
SUPPLIED = {
    "table", "drawn", "labels", "rows", "seed", "coarse", "step", "key", "distances", "positives", "negatives",
    "opposites", "max_positives", "dimensions", "beta", "d_ap", "d_an", "sums", "parent", "name",
    "queries", "gallery", "neighbours", "distance", "gallery_rows",
}  # fmt: skip
KEYS: dict[str, tuple[str, ...]] = {
    "features": ("path", "images", "collection", "backbone", "weights", "image_size", "fit", "pooling", "on_bad_image"),
    "inputs": ("power", "normalize"),
    "memory": ("size", "warmup_steps"),
    "train": ("total_steps", "record_every_steps", "checkpoint_every_steps", "resident_megabytes"),
    "evaluation": ("metrics", "resamples", "published"),
}  # fmt: skip
NUMBERS = ("seed", "seeds", "folds", "closed_set", "distance")


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """``config`` as JSON types: what is saved, and what two configurations are compared as."""
    return json.loads(config.to_json())


def refuse_other(
    config: ml_collections.ConfigDict, saved: Mapping[str, Any], place: str, but: str | tuple[str, ...] = "\0"
) -> None:
    """Raises ``UserError`` where ``config`` and the ``saved`` one differ, but for keys that start with ``but``."""
    if found := difference(plain(config), saved, place, but):
        raise UserError(f"config.{found}; name another --workdir, or give the same configuration")


def difference(
    wanted: Mapping[str, Any], saved: Mapping[str, Any], place: Any, but: str | tuple[str, ...] = "\0"
) -> str:
    """In words, the first key in which ``wanted`` differs from what ``place`` was made with; "" where none does."""
    here, there = flatten(wanted), flatten(saved)
    differing = [k for k in sorted(here | there) if here.get(k) != there.get(k) and not k.startswith(but)]
    if not differing:
        return ""
    key = differing[0]
    more = f" (and {len(differing) - 1} more keys differ)" if len(differing) > 1 else ""
    return f"{key}: {here.get(key)!r} here, but {place} was made with {there.get(key)!r}{more}"


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
    _check_together(config)
    _check_numbers(config)


def _check_together(config: ml_collections.ConfigDict) -> None:
    """Choices that exclude each other."""
    sampler, miner, loss = config.sampler.name, config.miner.name, config.loss.name
    if (sampler in LISTS_TRIPLETS) != (miner == "given"):
        raise UserError(
            f"config.miner.name: {miner!r} does not go with config.sampler.name={sampler!r}; the samplers "
            f"{' and '.join(LISTS_TRIPLETS)} list their own triplets and take the miner 'given', and no other does"
        )
    if config.rerank.name != "none" and config.distance not in DIRECTIONS:
        raise UserError(
            f"config.rerank.name: {config.rerank.name!r} compares directions, and config.distance={config.distance!r} "
            f"does not; take {' or '.join(DIRECTIONS)}, or 'none'"
        )
    if loss in pair_losses.PROXY_LOSSES and miner != "batch_all":
        raise UserError(
            f"config.miner.name: {miner!r} does not go with config.loss.name={loss!r}, which compares images with "
            "proxies and not with each other; write --config.miner.name=batch_all"
        )
    plan = choose(config, "miner")() if miner == "schedule" else None
    parts = (plan.first, plan.second) if plan else (miner,)
    for part in parts:
        if plan and part not in MINERS:
            raise UserError(f"config.miner.schedule: {part!r} is no miner; {nearest(part, MINERS)}")
        if loss in PAIR_LOSSES and part in ("given", "all_semi_hard"):
            raise UserError(
                f"config.miner.name: {part!r} does not go with config.loss.name={loss!r}, a loss over pairs; "
                "batch_all gives it all pairs, and any miner that lists triplets the pairs in these"
            )
        choose(config, "miner", name=part)
    if config.memory.size and miner == "given":
        raise UserError(
            "config.memory.size: the miner 'given' looks at its own triplets alone; write 0, or take another sampler"
        )


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
        "memory.size": 0, "memory.warmup_steps": 0,
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
    config: ml_collections.ConfigDict,
    group: str,
    beside: Mapping[str, Callable] | None = None,
    name: str | None = None,
    **supplied: Any,
) -> Callable:
    """The function that ``config.GROUP.name`` (or ``name``) names, with its arguments in ``config.GROUP.NAME`` bound.

    ``beside``: another table, whose functions share the arguments of a choice with those of TABLES. Of ``supplied``
    the function takes what it knows.
    """
    table, options = TABLES[group], config[group]
    name = options.get("name", "") if name is None else name
    if name not in table:
        raise UserError(f"config.{group}.name: {name!r} is no {group}; {nearest(str(name), table)}")
    for other in options:
        if other != "name" and other not in table:
            raise UserError(f"config.{group}.{other}: no such {group}; {nearest(other, table)}")
    arguments = dict(options.get(name, {}))
    both = [t[name] for t in (table, BESIDE.get(group, {})) if name in t]
    accepted = set().union(*(inspect.signature(function).parameters for function in both)) - SUPPLIED
    for key in arguments:
        if key not in accepted:
            raise UserError(f"config.{group}.{name}.{key}: no such key; {nearest(key, accepted)}")
    function = (beside or table)[name]
    known = inspect.signature(function).parameters
    return partial(function, **{key: value for key, value in {**arguments, **supplied}.items() if key in known})


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"miner.name": "batch_hard", ...}: every leaf under its dotted key."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat
