"""From checked settings to plain functions and numbers: what an experiment is made of."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from fgis.base import BatchInfo, Objective, RunPlan
from fgis.distances import DISTANCES
from fgis.errors import UserError
from fgis.experiment.config import PAIR_LOSSES, Choice, ExperimentSettings
from fgis.learning import heads, losses, miners, objectives, pair_losses, samplers
from fgis.learning.train import Recipe, Runs
from fgis.retrieval.evaluate import object_folds
from fgis.retrieval.rerank import RERANKERS, Rerank

MINED_ON = {"distance_weighted": "unit_euclidean"}  # miners that are defined on one distance alone


class Scoring(NamedTuple):
    """How features become embeddings, and what is measured of these."""

    prepare: Callable[[Any], Float[Array, "n f"]]
    embed: Callable[[Any, Float[Array, "n f"]], Float[Array, "n d"]]  # (parameters of one run, prepared features)
    distance: str
    metrics: tuple[str, ...]
    resamples: int
    seed: int


class Images(NamedTuple):
    """The images of an experiment: their labels, and their features on demand."""

    labels: Int[np.ndarray, " n"]
    coarse: Int[np.ndarray, " n"] | None
    feature_size: int
    prepared: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, "m f"]]  # rows -> prepared features


class Experiment(NamedTuple):
    """ExperimentSettings as functions and numbers, for the images of one feature file."""

    recipe: Recipe
    runs: Runs
    plans: tuple[RunPlan, ...]  # plans[r] describes run r
    folds: Int[np.ndarray, " n"]  # the fold of every image; all 0 where there are none


def build_scoring(settings: ExperimentSettings) -> Scoring:
    """The part of an experiment that needs no training."""
    return Scoring(
        prepare=partial(heads.prepare, power=settings.inputs.power, normalize=settings.inputs.normalize),
        embed=jax.jit(build_head(settings).apply),
        distance=settings.distance,
        metrics=settings.evaluation.metrics,
        resamples=settings.evaluation.resamples,
        seed=settings.seed,
    )


def build_head(settings: ExperimentSettings) -> heads.Head:
    """The embedding network of ``settings``."""
    name = settings.head.name
    try:
        return settings.head.bind(heads.HEADS[name])()
    except ValueError as error:
        raise UserError(f"config.head.{name}.{error}") from None


def build_rerank(choice: Choice) -> Rerank | None:
    """The re-ranking of a choice, with its options; None for "none"."""
    return None if choice.name == "none" else choice.bind(RERANKERS[choice.name])


def plan_runs(settings: ExperimentSettings) -> tuple[RunPlan, ...]:
    """The runs, in the order in which parameters are stacked: those on all objects first, then fold by fold."""
    left_out = ([-1] if settings.closed_set else []) + list(range(settings.folds))
    return tuple(RunPlan(settings.seed + seed, fold) for fold in left_out for seed in range(settings.seeds))


def build_folds(settings: ExperimentSettings, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The fold of every image; all 0 where the settings ask for none.

    Raises:
      UserError: there are more folds than objects.
    """
    objects = len(np.unique(labels))
    if settings.folds > objects:
        raise UserError(f"config.folds: {settings.folds} folds of {objects} objects; write at most {objects}")
    return object_folds(labels, settings.folds, settings.seed) if settings.folds else np.zeros(len(labels), np.int64)


def build_sampler(choice: Choice) -> samplers.Sampler:
    """The functions of the chosen sampler, with its options."""
    return samplers.Sampler(*(choice.bind(part) if callable(part) else part for part in samplers.SAMPLERS[choice.name]))


def build_batch_info(settings: ExperimentSettings, dimensions: int) -> BatchInfo:
    """What miners may know of every batch: the size of embeddings, and how many positives an anchor has at most."""
    batch = build_sampler(settings.sampler).batch()
    if batch.per_class is None:
        return BatchInfo(None, dimensions)
    batches = 1 + -(-settings.memory.size // batch.rows)  # those whose images are candidates
    return BatchInfo(max(batches * batch.per_class - 1, 1), dimensions)


def build_objective(settings: ExperimentSettings, info: BatchInfo, miner: str = "") -> Objective:
    """The miner (``miner`` instead of the chosen one, for the parts of a schedule) and the loss, joined."""
    name = miner or settings.miner.name
    if name == "schedule":
        plan = settings.miner.bind(objectives.schedule)()
        first, second = (build_objective(settings, info, part) for part in (plan.first, plan.second))
        return objectives.scheduled(first, second, plan.switch_steps)
    chosen, distance = settings.loss.name, DISTANCES[settings.distance]
    tables: Mapping[str, Callable[..., Any]] = {**losses.LOSSES, **PAIR_LOSSES, **pair_losses.PROXY_LOSSES}
    loss = settings.loss.bind(tables[chosen])
    if chosen in pair_losses.PROXY_LOSSES:
        return objectives.proxied(loss, distance)
    if name == "given":
        return objectives.given(loss, distance)
    if name in miners.SELECTORS and chosen not in PAIR_LOSSES:
        return objectives.summed(settings.miner.bind(miners.SELECTORS[name], name), loss, distance)
    mined_on = DISTANCES[MINED_ON[name]] if name in MINED_ON else None
    listing = None if name == "batch_all" else settings.miner.bind(miners.MINERS[name], name)
    if chosen in PAIR_LOSSES:
        graded = chosen in pair_losses.GRADED_LOSSES
        return objectives.paired(loss, distance, listing, info, mined_on, graded)
    return objectives.mined(listing, loss, distance, info, mined_on)
