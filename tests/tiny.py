"""Small things that tests share: what an objective sees, and an experiment that trains in a second.

Its feature file holds 12 objects of 4 images, 16 features.
"""

from functools import partial
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from fgis.base import Comparison

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT / 'configs' / 'ukbench.py'}"
SMALL = (
    "--config.features.backbone=", "--config.seeds=2", "--config.folds=3", "--config.train.total_steps=12",
    "--config.train.record_every_steps=2", "--config.train.checkpoint_every_steps=4", "--config.head.residual.rank=4",
    "--config.sampler.pk.classes=6", "--config.evaluation.resamples=50",
)  # fmt: skip


def write_features(path: Path, objects: int = 12, seed: int = 0) -> Path:
    """The three published datasets and nothing else."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(objects), 4)
    features = np.abs(rng.normal(size=(objects, 16))[labels] + 0.8 * rng.normal(size=(len(labels), 16)))
    with h5py.File(path, "w") as file:
        file["image_ids"] = [f"{i:03d}.jpg" for i in range(len(labels))]
        file["features"] = features.astype(np.float32)
        file["labels"] = labels
    return path


def arguments(features: Path, workdir: Path, *more: str) -> list[str]:
    """The command line of a small experiment; later arguments win."""
    return [CONFIG, f"--config.features.path={features}", f"--workdir={workdir}", *SMALL, *more]


def comparison(anchors, positives, negatives, candidates=None, opposites=None, key=None, labels=None, rows=None):
    """What an objective sees, from embeddings and masks; the anchors are the candidates unless others are given."""
    anchors = jnp.asarray(anchors)
    candidates = anchors if candidates is None else candidates
    none = jnp.zeros(len(candidates), jnp.int32)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0) if key is None else key))(jnp.arange(len(anchors)))
    return Comparison(
        anchors=anchors,
        candidates=candidates,
        labels=none if labels is None else jnp.asarray(labels),
        rows=none if rows is None else jnp.asarray(rows),
        positives=positives,
        negatives=negatives,
        opposites=jnp.zeros_like(negatives) if opposites is None else opposites,
        keys=keys,
    )
