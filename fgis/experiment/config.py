"""What a configuration may say: names, types and ranges, and every refusal of what it must not say.

``read_settings`` turns a configuration into one checked record of plain values. It needs no data and compiles nothing,
so that a wrong key or value is refused within seconds. The options of a choice (a miner, a loss) are the keyword-only
parameters of its function: there is no second list of them.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

from fgis.distances import DISTANCES
from fgis.errors import UserError, naming
from fgis.experiment.differences import with_tuples
from fgis.features import description
from fgis.features.collection import COLLECTIONS
from fgis.learning import heads, learned, losses, miners, objectives, optimizers, pair_losses, samplers
from fgis.learning.layout import Parallel
from fgis.learning.products import Precision
from fgis.ranges import (
    LARGEST,
    Count,
    NonNegative,
    Parameter,
    Positive,
    Range,
    Whole,
    conform,
    hyperparameters,
    nearest,
)
from fgis.retrieval.metrics import find_metric
from fgis.retrieval.rerank import DIRECTIONS, RERANKERS

Seed = Annotated[int, Range(0, LARGEST)]


class FeatureSettings(NamedTuple):
    """``config.features``: the feature file, and how its features are made."""

    path: str  # "": the file that the package ships; several files of the same images with commas between them
    images: str
    collection: str
    backbone: str  # "": take the file as it is
    weights: str
    image_size: Any  # (height, width), or several
    fit: str
    pooling: str
    on_bad_image: Literal["stop", "skip"]
    pixels: tuple[Count, ...] = ()  # sides of copies of the images that a head sees besides the features
    shrink: Literal["mean", "max"] = "mean"  # how these are made
    layer: str = ""  # of the backbone, whose output is pooled; "": the last


class InputSettings(NamedTuple):
    """``config.inputs``: what happens to features before any head."""

    power: Positive
    normalize: bool
    weights: tuple[Positive, ...] = ()  # of the files of ``features.path``, where these are several; (): equal ones


class MemorySettings(NamedTuple):
    """``config.memory``: the cross-batch memory."""

    size: Whole
    warmup_steps: Whole


class TrainSettings(NamedTuple):
    """``config.train``: durations, and what may stay on the device."""

    total_steps: Count
    record_every_steps: Count
    checkpoint_every_steps: Count
    resident_megabytes: Whole
    devices: str = "all"  # or how many of those that there are
    parallel: Parallel = "shard_map"
    precision: Precision = "float32"
    network_rate: NonNegative = 0.0  # of the backbone, times that of the head; 0: it is frozen


class EvaluationSettings(NamedTuple):
    """``config.evaluation``: what is reported."""

    metrics: tuple[str, ...]
    resamples: Count
    published: tuple[Any, ...]  # (source, evaluation, metric, value): figures of others
    transfer: str = ""  # a feature file of other objects that the report evaluates the heads on as well; "": none
    queries: Whole = 0  # at most so many images, drawn by the seed, are queries; 0: all


class Choice(NamedTuple):
    """One strategy of a group such as ``config.miner``: its name, and the options of every name of the group."""

    name: str
    options: Mapping[str, Mapping[str, Any]]

    def bind(self, function: Callable[..., Any], name: str = "") -> Callable[..., Any]:
        """``function`` with those of the options of ``name`` (the chosen one without it) that it takes."""
        known = hyperparameters(function)
        own = self.options.get(name or self.name, {})
        return partial(function, **{key: value for key, value in own.items() if key in known})


class ExperimentSettings(NamedTuple):
    """A checked configuration in plain values."""

    seed: Seed
    seeds: Count
    folds: Whole  # of objects
    closed_set: bool
    distance: str
    features: FeatureSettings
    inputs: InputSettings
    memory: MemorySettings
    train: TrainSettings
    evaluation: EvaluationSettings
    head: Choice
    sampler: Choice
    miner: Choice
    loss: Choice
    reduction: Choice
    optimizer: Choice
    rerank: Choice
    photo_folds: Whole = 0  # of the photos of each object; 0: no ``new_photos``


# For each group, the functions whose keyword-only parameters are the options of a name.
MINERS: dict[str, Callable[..., Any]] = {**miners.MINERS, **miners.SELECTORS}
PAIR_LOSSES: dict[str, Callable[..., Any]] = {**pair_losses.PAIR_LOSSES, **pair_losses.GRADED_LOSSES}
LOSSES: dict[str, Callable[..., Any]] = {**losses.LOSSES, **PAIR_LOSSES, **pair_losses.PROXY_LOSSES}
CHOICES: dict[str, dict[str, tuple[Callable[..., Any], ...]]] = {
    "head": {name: (factory,) for name, factory in heads.HEADS.items()},
    "sampler": {
        name: tuple(function for function in sampler if callable(function))
        for name, sampler in samplers.SAMPLERS.items()
    },
    "miner": {**{name: (miner,) for name, miner in MINERS.items()}, "schedule": (objectives.schedule,), "given": ()},
    "loss": {
        name: (loss, learned.LEARNED[name]) if name in learned.LEARNED else (loss,) for name, loss in LOSSES.items()
    },
    "reduction": {name: (reduction,) for name, reduction in losses.REDUCTIONS.items()},
    "optimizer": {name: (optimizer,) for name, optimizer in optimizers.OPTIMIZERS.items()},
    "rerank": {"none": (), **{name: (method,) for name, method in RERANKERS.items()}},
}
RECORDS: dict[str, Any] = {
    "features": FeatureSettings, "inputs": InputSettings, "memory": MemorySettings, "train": TrainSettings,
    "evaluation": EvaluationSettings,
}  # fmt: skip
SHAPE = "see configs/ukbench.py for its shape"


def read_settings(config: Mapping[str, Any]) -> ExperimentSettings:
    """The checked values of a plain configuration (``to_plain``); whole numbers become floats where these belong.

    Raises:
      UserError: a key is unknown or missing, a value has another type or lies outside of its range, a name is not in
        its table, or two choices exclude each other. The line names the key, what was found and what to write.
    """
    config, hints = with_tuples(config), get_type_hints(ExperimentSettings, include_extras=True)
    _check_keys("", config, hints, ExperimentSettings._field_defaults)
    values: dict[str, Any] = {}
    for key, annotation in hints.items():
        if key not in config:  # saved before there was such a key
            continue
        if key in RECORDS:
            values[key] = _read_group(f"{key}.", config[key], RECORDS[key])
        elif key in CHOICES:
            values[key] = _read_choice(key, config[key])
        else:
            values[key] = _read_value(key, annotation, config[key])
    settings = ExperimentSettings(**values)
    _check_names(settings)
    _check_numbers(settings)
    _check_together(settings)
    return settings


def options_of(group: str, name: str) -> dict[str, Parameter]:
    """The options that ``config.GROUP.NAME`` may set, with their annotations and defaults."""
    return {key: one for function in CHOICES[group][name] for key, one in hyperparameters(function).items()}


def _check_keys(prefix: str, config: Mapping[str, Any], known: Iterable[str], optional: Iterable[str] = ()) -> None:
    known = list(known)
    for key in config:
        if key not in known:
            raise UserError(f"config.{prefix}{key}: no such key; {nearest(key, known)}")
    for key in known:
        if key not in config and key not in optional:
            raise UserError(f"config.{prefix}{key}: missing; {SHAPE}")


def _read_value(key: str, annotation: Any, value: Any) -> Any:
    with naming(f"config.{key}: "):
        return conform(annotation, value)


def _read_group(prefix: str, config: Any, record: Any) -> Any:
    if not isinstance(config, Mapping):
        raise UserError(f"config.{prefix[:-1]}: {config!r} found, where a group of keys belongs; {SHAPE}")
    hints = get_type_hints(record, include_extras=True)
    _check_keys(prefix, config, hints, record._field_defaults)
    present = {key: hint for key, hint in hints.items() if key in config}
    return record(**{key: _read_value(prefix + key, hint, config[key]) for key, hint in present.items()})


def _read_choice(group: str, config: Any) -> Choice:
    """The choice of a group; the options of names that were not chosen are checked as well."""
    if not isinstance(config, Mapping):
        raise UserError(f"config.{group}: {config!r} found, where a group of keys belongs; write config.{group}.name")
    table, name = CHOICES[group], config.get("name", "")
    if not isinstance(name, str) or name not in table:
        raise UserError(f"config.{group}.name: {name!r} is no {group}; {nearest(str(name), table)}")
    read: dict[str, dict[str, Any]] = {}
    for other, given in config.items():
        if other == "name":
            continue
        if other not in table:
            raise UserError(f"config.{group}.{other}: no such {group}; {nearest(other, table)}")
        if not isinstance(given, Mapping):
            raise UserError(f"config.{group}.{other}: {given!r} found, where its options belong; write dict(...)")
        known = options_of(group, other)
        for key in given:
            if key not in known:
                raise UserError(f"config.{group}.{other}.{key}: no such key; {nearest(key, known)}")
        read[other] = {
            key: _read_value(f"{group}.{other}.{key}", known[key].annotation, value) for key, value in given.items()
        }
    return Choice(name, read)


def _check_names(settings: ExperimentSettings) -> None:
    """Names that stand in tables of other packages."""
    if settings.distance not in DISTANCES:
        raise UserError(
            f"config.distance: {settings.distance!r} is no distance; {nearest(settings.distance, DISTANCES)}"
        )
    if not settings.evaluation.metrics:
        raise UserError("config.evaluation.metrics: () found; name at least one metric, such as ('map@r',)")
    for name in settings.evaluation.metrics:
        with naming("config.evaluation.metrics: "):
            find_metric(name)
    for entry in settings.evaluation.published:
        right = isinstance(entry, tuple | list) and len(entry) == 4 and isinstance(entry[3], int | float)
        if not right or not all(isinstance(word, str) for word in entry[:3]):
            raise UserError(
                f"config.evaluation.published: {entry!r} found; write (source, evaluation, metric, value) for each"
            )
    _check_pixels(settings)
    features = settings.features
    if features.collection not in COLLECTIONS:
        raise UserError(
            f"config.features.collection: {features.collection!r} is no collection; "
            f"{nearest(features.collection, COLLECTIONS)}"
        )
    if features.backbone:  # "" takes a feature file as it is
        with naming("config.features."):
            description.check_settings(extraction_settings(features))
            if settings.train.network_rate:
                description.check_trainable(extraction_settings(features), features.pixels[0])


def _check_pixels(settings: ExperimentSettings) -> None:
    """The head and the features have to agree about the copies of images."""
    head, found, trained = settings.head, tuple(settings.features.pixels), settings.train.network_rate > 0
    known = options_of("head", head.name)
    default = known["pixels"].default if "pixels" in known else ()
    wanted = tuple(head.options.get(head.name, {}).get("pixels", default))
    if trained and not settings.features.backbone:
        raise UserError("config.features.backbone: '' found, but config.train.network_rate trains a network; name it")
    if trained and (not found or found[1:] != wanted):
        raise UserError(
            f"config.features.pixels: {found!r} found, but config.train.network_rate trains the network on copies of "
            f"its own; write the side of these before {wanted!r}, such as {(96, *wanted)!r}"
        )
    if not trained and wanted != found:
        raise UserError(
            f"config.features.pixels: {found!r} found, but head {head.name!r} takes copies of "
            f"{wanted!r}; write the same in config.head.{head.name}.pixels"
            if "pixels" in known
            else f"config.features.pixels: {found!r} found, but head {head.name!r} takes no copies; write ()"
        )


def extraction_settings(features: FeatureSettings) -> description.Settings:
    """How images are described, in the words of ``fgis.features``."""
    return description.Settings(
        backbone=features.backbone, image_size=features.image_size, weights=features.weights, fit=features.fit,
        pooling=features.pooling, on_bad_image="skip" if features.on_bad_image == "skip" else "stop",
        pixels=features.pixels, shrink=features.shrink, layer=features.layer,
    )  # fmt: skip


def _check_numbers(settings: ExperimentSettings) -> None:
    """Numbers that exclude each other."""
    if settings.folds == 1:
        raise UserError("config.folds: 1 leaves nothing to train on; write 0 for none or at least 2")
    if settings.photo_folds == 1:
        raise UserError("config.photo_folds: 1 leaves nothing to train on; write 0 for none or at least 2")
    if not settings.folds and not settings.closed_set and not settings.photo_folds:
        raise UserError("config.closed_set: False with config.folds=0 leaves nothing to train; switch one of them on")
    train = settings.train
    if train.checkpoint_every_steps % train.record_every_steps:
        raise UserError(
            f"config.train.checkpoint_every_steps: {train.checkpoint_every_steps} is no multiple of "
            f"record_every_steps={train.record_every_steps}; a checkpoint is saved with a record"
        )


def _check_together(settings: ExperimentSettings) -> None:
    """Choices that exclude each other."""
    sampler, miner, loss = settings.sampler.name, settings.miner.name, settings.loss.name
    listing = [name for name, one in samplers.SAMPLERS.items() if one.lists_triplets]
    if (sampler in listing) != (miner == "given"):
        raise UserError(
            f"config.miner.name: {miner!r} does not go with config.sampler.name={sampler!r}; the samplers "
            f"{' and '.join(listing)} list their own triplets and take the miner 'given', and no other does"
        )
    if settings.rerank.name != "none" and settings.distance not in DIRECTIONS:
        raise UserError(
            f"config.rerank.name: {settings.rerank.name!r} compares directions, and "
            f"config.distance={settings.distance!r} does not; take {' or '.join(DIRECTIONS)}, or 'none'"
        )
    if loss in pair_losses.PROXY_LOSSES and miner != "batch_all":
        raise UserError(
            f"config.miner.name: {miner!r} does not go with config.loss.name={loss!r}, which compares images with "
            "proxies and not with each other; write --config.miner.name=batch_all"
        )
    schedule = settings.miner.bind(objectives.schedule)() if miner == "schedule" else None
    for part in (schedule.first, schedule.second) if schedule else (miner,):
        if schedule and part not in MINERS:
            raise UserError(f"config.miner.schedule: {part!r} is no miner; {nearest(part, MINERS)}")
        if loss in PAIR_LOSSES and part in ("given", "all_semi_hard"):
            raise UserError(
                f"config.miner.name: {part!r} does not go with config.loss.name={loss!r}, a loss over pairs; "
                "batch_all gives it all pairs, and any miner that lists triplets the pairs in these"
            )
    if settings.memory.size and miner == "given":
        raise UserError(
            "config.memory.size: the miner 'given' takes its own triplets alone; write 0, or choose another sampler"
        )
