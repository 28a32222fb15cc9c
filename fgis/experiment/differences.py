"""Configurations as plain values: how they are saved, read back and compared."""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from fgis.errors import UserError

# Keys that change neither what is trained nor any figure: images and other people's figures decorate a report.
DECORATION = ("features.images", "features.on_bad_image", "evaluation.published")
# Keys in which a resumed training may differ from what began it: its length, and when it records and saves.
OF_LENGTH = (
    "train.total_steps", "train.record_every_steps", "train.checkpoint_every_steps", "train.resident_megabytes",
    "train.devices", "train.parallel",
)  # fmt: skip
# What a key was before there was such a key, where that is not an empty sequence.
BEFORE = {"evaluation.queries": 0, "train.precision": "float32", "train.network_rate": 0.0}
# Keys in which an evaluation may differ from the training of its run.
OF_EVALUATION = ("features.", "evaluation.", "rerank.")


def to_plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """``config`` in JSON's types: what is saved, and what two configurations are compared as."""
    return json.loads(config.to_json())


def from_plain(saved: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """The configuration that ``to_plain`` made; sequences become tuples, as configuration files write them."""
    return ml_collections.ConfigDict(with_tuples(saved))


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every leaf under its dotted key.

    >>> flatten({"miner": {"name": "batch_hard"}, "seed": 0})
    {'miner.name': 'batch_hard', 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def differences(
    wanted: Mapping[str, Any], saved: Mapping[str, Any], ignored: tuple[str, ...] = DECORATION
) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (wanted, saved)} of every difference between two plain configurations.

    Keys that begin with one of ``ignored`` are left out. A key that one of them lacks, having been saved before there
    was such a key, does not differ from an empty sequence or text, or from what ``BEFORE`` says.
    """
    here, there = flatten(wanted), flatten(saved)
    either = here | there
    unsaid = lambda key: not (key in here and key in there) and either[key] in ([], (), "", BEFORE.get(key, ()))
    same = lambda key: here.get(key) == there.get(key) or unsaid(key)
    return {
        key: (here.get(key), there.get(key)) for key in sorted(either) if not same(key) and not key.startswith(ignored)
    }


def describe_difference(found: Mapping[str, tuple[Any, Any]], place: Any) -> str:
    """In words, the first of the ``differences`` to what ``place`` was made with, and how many more there are."""
    key, (here, there) = next(iter(found.items()))
    more = f" (and {len(found) - 1} more keys differ)" if len(found) > 1 else ""
    return f"{key}: {here!r} here, but {place} was made with {there!r}{more}"


def refuse_other(
    wanted: Mapping[str, Any], saved: Mapping[str, Any], place: Any, ignored: tuple[str, ...] = DECORATION
) -> None:
    """Raises ``UserError`` where two plain configurations differ, but for keys that begin with one of ``ignored``."""
    if found := differences(wanted, saved, ignored):
        line = describe_difference(found, place)
        raise UserError(f"config.{line}; name another --workdir, or give the same configuration")


def with_tuples(value: Any) -> Any:
    """``value`` with tuples for all sequences, at any depth."""
    if isinstance(value, Mapping):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list | tuple) else value
