"""The rows of the table of further objects: what their heads learn from, and the commands that make the features."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fgis.base import FeatureSet
from fgis.experiment.config_file import load_config
from fgis.experiment.differences import to_plain
from fgis.features.joined import open_files
from fgis.features.store import write_features

REFERENCE = "mean"
SIZE = "(336,448)"
MEAN = "mobilenet_v2_large"
BUNDLED = {f"ukbench.{MEAN}": "bundled:ukbench", f"ukbench_transfer.{MEAN}": "bundled:ukbench_transfer"}
SETS = {"ukbench": "ukbench", "ukbench_transfer": "ukbench", "grocerystore": "grocerystore"}  # and their collections


class Row(NamedTuple):
    """One head."""

    name: str
    features: tuple[str, ...] = (MEAN,)  # names of ``FEATURES``, whose files are joined
    overrides: Mapping[str, Any] = {}  # of configs/ukbench.py
    also: tuple[str, ...] = ()  # sets that heads learn from besides UKBench


def _network(backbone: str, deep: str) -> dict[str, dict[str, str]]:
    """Features of one network by name; ``deep`` is its last layer of 1/16 of the sides."""
    kinds = {
        "large": {}, "gem": {"pooling": "gem"}, "regional": {"pooling": "regional"},
        "two_sizes": {"image_size": "((336,448),(224,304))"}, "deep_mean": {"layer": deep},
        "deep_gem": {"layer": deep, "pooling": "gem"},
    }  # fmt: skip
    return {f"{backbone}_{kind}": {"backbone": backbone, **keys} for kind, keys in kinds.items()}


FEATURES = {
    **_network("mobilenet_v2", "block_13_expand_relu"),
    **_network("efficientnet_lite2", "_blocks.15._expand_conv"),
}
_m = lambda *kinds: tuple(f"mobilenet_v2_{kind}" for kind in kinds)
_both = lambda *kinds: tuple(f"{name}_{kind}" for name in ("mobilenet_v2", "efficientnet_lite2") for kind in kinds)
ROWS = (
    Row(REFERENCE),
    Row("GeM", _m("gem")),
    Row("GeM, without the root", _m("gem"), {"inputs.power": 1.0}),
    Row("regional maxima", _m("regional")),
    Row("regional maxima, without the root", _m("regional"), {"inputs.power": 1.0}),
    Row("two sizes", _m("two_sizes")),
    Row("block 13", _m("deep_mean")),
    Row("mean + regional maxima", _m("large", "regional")),
    Row("mean + block 13", _m("large", "deep_mean")),
    Row("mean + block 13, GeM", _m("large", "deep_gem")),
    Row("regional maxima + block 13, GeM", _m("regional", "deep_gem")),
    Row("two sizes + regional maxima", _m("two_sizes", "regional")),
    Row("mean, 64 × 4 images a batch", overrides={"sampler.pk.classes": 64}),
    Row("mean, 400 steps", overrides={"train.total_steps": 400}),
    Row("mean, learnt from GroceryStore as well", also=("grocerystore",)),
    Row("two networks", _both("large")),
    Row("two networks, GeM", _both("gem")),
    Row("two networks, two sizes", _both("two_sizes")),
    Row("two networks and block 13, GeM", _both("large", "deep_gem")),
)  # fmt: skip


def path_of(row: Row, dataset: str, folder: Path) -> str:
    """The feature files of a row on a set, with commas."""
    return ",".join(BUNDLED.get(f"{dataset}.{name}", f"{folder}/{dataset}.{name}.h5") for name in row.features)


def commands_of(row: Row, folder: Path) -> list[str]:
    """The commands that make the feature files of a row that are missing."""
    found = []
    for dataset in ("ukbench", "ukbench_transfer", *row.also):
        for name, path in zip(row.features, path_of(row, dataset, folder).split(","), strict=True):
            if path in BUNDLED.values() or Path(path).exists():
                continue
            keys = {"collection": SETS[dataset], "images": dataset, "image_size": SIZE, **FEATURES[name], "path": path}
            flags = [f"--config.features.{key}={value}" for key, value in keys.items()]
            found.append(
                shlex.join(["python", "-m", "fgis.main", "--config=configs/ukbench.py", "--mode=extract", *flags])
            )
    return found


def config_of(row: Row, path: str, seeds: int = 1, folds: int = 0) -> dict[str, Any]:
    """The plain configuration of the heads of a row: of all images of ``path``, or of all but a fold of its objects."""
    config = load_config("ukbench")
    shared = {
        "features.path": path, "features.backbone": "", "seeds": seeds, "folds": folds, "closed_set": not folds,
        "evaluation.transfer": "", "evaluation.published": (),
    }  # fmt: skip
    with config.unlocked():
        config.update_from_flattened_dict({**shared, **row.overrides})
        steps = config.train.total_steps
        config.train.update(record_every_steps=steps, checkpoint_every_steps=steps)
    return to_plain(config)


def write_stacked(path: str, parts: Sequence[tuple[str, Int[np.ndarray, " m"] | None]]) -> None:
    """A feature file of the images of several, one after the other, with labels of their own.

    Args:
      path: where it is written.
      parts: feature files, each of features of the same size, and the rows that are taken; None for all.
    """
    features, labels, image_ids, before = [], [], [], 0
    for name, chosen in parts:
        rows = open_files(name)
        taken = np.arange(len(rows.labels)) if chosen is None else chosen
        features.append(rows.read(taken))
        labels.append(rows.labels[taken] + before)
        image_ids += [f"{len(labels)}/{rows.image_ids[row]}" for row in taken]
        before += int(rows.labels.max()) + 1
    content = FeatureSet(np.concatenate(features), np.concatenate(labels), np.array(image_ids), {"complete": True})
    write_features(path, content)
