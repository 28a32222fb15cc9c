"""From checked settings to plain functions and numbers: what an experiment is made of."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fgis.base import BatchInfo, Objective, RunPlan
from fgis.distances import DISTANCES
from fgis.errors import UserError, naming
from fgis.experiment.config import (
    LOSSES,
    PAIR_LOSSES,
    Choice,
    ExperimentSettings,
    FeatureSettings,
    InputSettings,
    extraction_settings,
    options_of,
)
from fgis.features.description import load_trainable
from fgis.features.pixels import pixel_count
from fgis.learning import heads, learned, losses, miners, objectives, optimizers, pair_losses, samplers
from fgis.learning.layout import DeviceTable, lay_out
from fgis.learning.recipe import Strategy, make_recipe, make_runs, trace_step
from fgis.learning.train import Recipe, Runs, TrainingData
from fgis.learning.trained_network import Network, with_network
from fgis.retrieval.folds import held_out, object_folds, photo_folds
from fgis.retrieval.rerank import RERANKERS, Rerank


class Scoring(NamedTuple):
    """How features become embeddings, and what is measured of these."""

    prepare: Callable[[Any], Float[np.ndarray, "n f"]]  # features of a file; UserError where that is not finite
    embed: Callable[[Any, Any], Float[Array, "n d"]]  # (parameters of one run, prepared features [n, f])
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
    photo_folds: Int[np.ndarray, " n"]  # the fold of photos of every image; all -1 where there are none


def build_scoring(settings: ExperimentSettings, widths: tuple[int, ...] = ()) -> Scoring:
    """The part of an experiment that needs no training; ``widths`` as ``heads.prepare`` takes them, of joined files."""
    return Scoring(
        prepare=partial(
            _prepare_finite,
            power=settings.inputs.power,
            normalize=settings.inputs.normalize,
            tail=pixel_count(settings.features.pixels),
            widths=widths,
            weights=settings.inputs.weights if widths else (),
        ),
        embed=jax.jit(build_head(settings).apply),
        distance=settings.distance,
        metrics=settings.evaluation.metrics,
        resamples=settings.evaluation.resamples,
        seed=settings.seed,
    )


def _prepare_finite(features: Any, *, power: float, **how: Any) -> Float[np.ndarray, "n f"]:
    """``heads.prepare``, on the host.

    Raises:
      UserError: what it makes of finite features is not finite.
    """
    prepared = np.asarray(heads.prepare(features, power=power, **how))
    if not np.isfinite(prepared).all():
        raise UserError(
            f"config.inputs.power: {power:g} makes features infinite; write a number near 1, or extract them again"
        )
    return prepared


def build_head(settings: ExperimentSettings) -> heads.Head:
    """The embedding network of ``settings``, with the deep network below it where that is trained as well."""
    name = settings.head.name
    with naming(f"config.head.{name}."):
        head = settings.head.bind(heads.HEADS[name])()
    return (
        with_network(head, _load_trained(settings.features, settings.inputs)) if settings.train.network_rate else head
    )


@lru_cache(maxsize=1)  # several functions want the head of the same settings, and loading takes a second
def _load_trained(features: FeatureSettings, inputs: InputSettings) -> Network:
    """The deep network, whose features are prepared as stored ones are."""
    side = features.pixels[0]
    with naming("config.features."):
        apply, params = load_trainable(extraction_settings(features), side)
    prepare = partial(heads.prepare, power=inputs.power, normalize=inputs.normalize)
    return Network(lambda params, images: prepare(apply(params, images)), params, side)


def build_rerank(choice: Choice) -> Rerank | None:
    """The re-ranking of a choice, with its options; None for "none"."""
    return None if choice.name == "none" else choice.bind(RERANKERS[choice.name])


def plan_runs(settings: ExperimentSettings) -> tuple[RunPlan, ...]:
    """The runs, in the order in which parameters are stacked: on all images, by fold of objects, by fold of photos."""
    left_out = [(fold, False) for fold in ([-1] if settings.closed_set else []) + list(range(settings.folds))]
    left_out += [(fold, True) for fold in range(settings.photo_folds)]
    return tuple(
        RunPlan(settings.seed + seed, fold, photos) for fold, photos in left_out for seed in range(settings.seeds)
    )


def build_folds(settings: ExperimentSettings, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The fold of every image; all 0 where the settings ask for none.

    Raises:
      UserError: there are more folds than objects.
    """
    objects = len(np.unique(labels))
    if settings.folds > objects:
        raise UserError(f"config.folds: {settings.folds} folds of {objects} objects; write at most {objects}")
    return object_folds(labels, settings.folds, settings.seed) if settings.folds else np.zeros(len(labels), np.int64)


def build_photo_folds(settings: ExperimentSettings, labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The fold of photos of every image; all -1 where the settings ask for none.

    Raises:
      UserError: there are more folds than photos that can be held out.
    """
    counts = np.unique(labels, return_counts=True)[1]
    photos = int(counts[counts > 1].sum())
    if settings.photo_folds > photos:
        raise UserError(
            f"config.photo_folds: {settings.photo_folds} folds of {photos} photos (of objects with more than one); "
            "write fewer, or 0 for no evaluation by new photos"
        )
    return (
        photo_folds(labels, settings.photo_folds, settings.seed) if settings.photo_folds else np.full(len(labels), -1)
    )


def build_sampler(choice: Choice) -> samplers.Sampler:
    """The functions of the chosen sampler, with its options."""
    parts = samplers.SAMPLERS[choice.name]
    bound: list[Any] = [choice.bind(part) if callable(part) else part for part in parts]
    return samplers.Sampler(*bound)


def build_objective(settings: ExperimentSettings, info: BatchInfo, miner: str = "") -> Objective:
    """The miner (``miner`` instead of the chosen one, for the parts of a schedule) and the loss, joined."""
    name = miner or settings.miner.name
    if name == "schedule":
        plan = settings.miner.bind(objectives.schedule)()
        first, second = (build_objective(settings, info, part) for part in (plan.first, plan.second))
        return objectives.scheduled(first, second, plan.switch_steps)
    chosen, distance = settings.loss.name, DISTANCES[settings.distance]
    loss = settings.loss.bind(LOSSES[chosen])
    if chosen in pair_losses.PROXY_LOSSES:
        return objectives.proxied(loss, distance)
    if name == "given":
        return objectives.given(loss, distance)
    if name in miners.SELECTORS and chosen not in PAIR_LOSSES:
        return objectives.summed(settings.miner.bind(miners.SELECTORS[name], name), loss, distance)
    mined_on = DISTANCES[miners.MINED_ON[name]] if name in miners.MINED_ON else None
    if chosen in PAIR_LOSSES:
        listing = None if name == "batch_all" else settings.miner.bind(miners.MINERS[name], name)
        return objectives.paired(loss, distance, listing, info, mined_on, chosen in pair_losses.GRADED_LOSSES)
    return objectives.mined(settings.miner.bind(miners.MINERS[name], name), loss, distance, info, mined_on)


def build_strategy(settings: ExperimentSettings, feature_size: int) -> Strategy:
    """Everything that ``settings`` choose of a training, for prepared features of this size."""
    head, sampler = build_head(settings), build_sampler(settings.sampler)
    one = jnp.zeros((1, feature_size), jnp.float32)
    dimensions = jax.eval_shape(lambda: head.apply(head.init(jax.random.key(0), (feature_size,), {}), one)).shape[-1]
    info = BatchInfo(samplers.most_positives(sampler.batch(), settings.memory.size), dimensions)
    loss, learns = settings.loss, settings.loss.name in learned.LEARNED
    return Strategy(
        head=head,
        sample=sampler.sample,
        objective=build_objective(settings, info),
        optimizer=settings.optimizer.bind(optimizers.OPTIMIZERS[settings.optimizer.name])(),
        reduction=settings.reduction.bind(losses.REDUCTIONS[settings.reduction.name]),
        learned=loss.bind(learned.LEARNED[loss.name])() if learns else learned.NOTHING,
        memory_size=settings.memory.size,
        warmup_steps=settings.memory.warmup_steps,
        validation_rows=sampler.held_out,
        distance=DISTANCES[settings.distance],
        pool=sampler.pool,
        precision=settings.train.precision,
        network_rate=settings.train.network_rate,
    )


def find_devices(wanted: str) -> list[jax.Device]:
    """The devices that ``config.train.devices`` asks for: those of all processes.

    Raises:
      UserError: there are fewer, or several processes were to leave some out.
    """
    there = jax.devices()
    if wanted == "all":
        return there
    if jax.process_count() > 1:
        raise UserError(
            f"config.train.devices: {wanted!r} found, but several processes use all of their devices; write 'all', and "
            "name the GPUs of each process by --local_devices"
        )
    if not wanted.isdigit() or not 1 <= int(wanted) <= len(there):
        raise UserError(
            f"config.train.devices: {wanted!r} found, and there are {len(there)} here; write 'all', or a number up to "
            f"{len(there)}"
        )
    return there[: int(wanted)]


def find_own_devices(wanted: str) -> list[jax.Device]:
    """The devices of this process that ``config.train.devices`` asks for, or all where there are not so many.

    What was trained on four devices is searched and evaluated on one as well.
    """
    try:
        found = find_devices(wanted)
    except UserError:
        found = jax.local_devices()
    return [device for device in found if device.process_index == jax.process_index()]


def find_layout(settings: ExperimentSettings, runs: int, rows: int) -> DeviceTable | None:
    """The table of devices that ``config.train`` asks for; None for one device."""
    parallel = settings.train.parallel
    if parallel == "pmap" and jax.process_count() > 1:
        raise UserError(
            "config.train.parallel: 'pmap' found, which is for one process; write 'shard_map' or 'jit' for several"
        )
    return lay_out(runs, rows, find_devices(settings.train.devices), parallel)


def build_experiment(settings: ExperimentSettings, images: Images) -> Experiment:
    """The runs of an experiment on its images; one step is traced, so that nothing is refused after this.

    Raises:
      UserError: the images do not allow what ``settings`` ask for: more folds than objects, a loss that needs coarse
        labels, a memory that is smaller than a batch; or a strategy refuses its arguments.
    """
    batch = build_sampler(settings.sampler).batch()
    folds, photos = build_folds(settings, images.labels), build_photo_folds(settings, images.labels)
    plans = plan_runs(settings)
    seen = {plan: np.flatnonzero(~held_out(plan, folds, photos)) for plan in plans}
    if settings.loss.name in pair_losses.GRADED_LOSSES and images.coarse is None:
        raise UserError(
            f"config.loss.name: {settings.loss.name!r} needs coarse labels (opposites are images of another coarse "
            "class), and these features have none; take GroceryStore, or extract from a CSV file of 'path,label,coarse'"
        )
    if 0 < settings.memory.size < batch.rows:
        raise UserError(
            f"config.memory.size: {settings.memory.size} is less than a batch of {batch.rows}; write at least that"
        )
    _refuse_unlearnable(settings, images.labels, seen)
    try:
        strategy = build_strategy(settings, images.feature_size)
        recipe = make_recipe(strategy, images.feature_size)
        data = TrainingData(images.prepared, images.labels, images.coarse)
        seen_by_run = [(plan.seed, seen[plan]) for plan in plans]
        runs = make_runs(strategy, data, seen_by_run, pixels=tuple(settings.features.pixels))
        trace_step(recipe, runs, batch.rows, images.feature_size)
        if layout := find_layout(settings, len(plans), batch.rows):
            recipe = make_recipe(strategy, images.feature_size, layout=layout)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.{_group_of(settings, str(error))}{error}") from error
    return Experiment(recipe, runs, plans, folds, photos)


def _refuse_unlearnable(
    settings: ExperimentSettings, labels: Int[np.ndarray, " n"], seen: Mapping[RunPlan, Int[np.ndarray, " m"]]
) -> None:
    """Refuses a training in which no batch could ever hold a triplet.

    A triplet needs two images of one object and an image of another: in the images of every run and, without a memory
    of earlier batches, in one batch.
    """
    sampler, options = settings.sampler.name, build_sampler(settings.sampler)
    for plan, rows in seen.items():
        sizes = np.unique(labels[rows], return_counts=True)[1]
        if len(sizes) < 2 or sizes.max() < 2:
            what = "show one object alone" if len(sizes) < 2 else "show every object once"
            of_fold = f" without fold {plan.fold}" if plan.fold >= 0 else ""
            if plan.photos:
                raise UserError(
                    f"config.photo_folds: the {sizes.sum()} images{of_fold} of {settings.photo_folds} {what}, and a "
                    "triplet needs two images of one object and one of another; write more folds, or 0 for none"
                )
            raise UserError(
                f"config.features.path: the {sizes.sum()} images{of_fold} {what}, and a triplet needs two images of "
                "one object and one of another; add photos, or search without training (--mode=search)"
            )
    if settings.memory.size or options.lists_triplets or settings.loss.name in pair_losses.PROXY_LOSSES:
        return
    batch = options.batch()
    if batch.per_class == 1:
        raise UserError(f"config.sampler.{sampler}.per_class: 1 leaves no positive in any batch; write at least 2")
    if batch.per_class is not None and batch.rows == batch.per_class:
        raise UserError(f"config.sampler.{sampler}.classes: 1 leaves no negative in any batch; write at least 2")
    if batch.rows < 3:
        raise UserError(f"config.sampler.{sampler}.batch: {batch.rows} images hold no triplet; write at least 3")


def _group_of(settings: ExperimentSettings, message: str) -> str:
    """``loss.opposites.`` where a message begins with an argument of the chosen loss; "" where no choice has it."""
    argument = message.partition(":")[0]
    for group in ("miner", "loss", "sampler", "head", "optimizer", "reduction"):
        name = getattr(settings, group).name
        if argument in options_of(group, name):
            return f"{group}.{name}."
    if argument == "precision":
        return "train."
    return ""


def head_fits(settings: ExperimentSettings, params: Any, feature_size: int) -> bool:
    """Whether the stacked ``params`` belong to the head of ``settings`` on features of this size."""
    head = build_head(settings)
    fresh = jax.eval_shape(lambda: head.init(jax.random.key(0), (feature_size,), {}))
    own = {name: params.get(name) for name in fresh}
    return [leaf.shape for leaf in jax.tree.leaves(fresh)] == [leaf.shape[1:] for leaf in jax.tree.leaves(own)]
