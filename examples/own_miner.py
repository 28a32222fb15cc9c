"""Trains with a miner of one's own: any function with the signature of a miner will do.

python examples/own_miner.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import fgis
from fgis.base import Triplets


def far_positive(keys, distances, positives, negatives, info=None):
    """The farthest positive of each anchor and a random negative."""
    positive = jnp.argmax(jnp.where(positives, distances, -1), axis=1)
    negative = jax.vmap(jax.random.categorical)(keys, jnp.where(negatives, 0.0, -jnp.inf))  # one key per anchor
    weight = positives.any(axis=1) & negatives.any(axis=1)  # 0 where an anchor has no triplet
    return Triplets(np.arange(len(distances)), positive, negative, weight.astype(distances.dtype))


rng = np.random.default_rng(0)
labels = np.repeat(np.arange(20), 4)
features = fgis.prepare(np.abs(rng.normal(size=(20, 64))[labels] + 0.7 * rng.normal(size=(80, 64))), normalize=True)

strategy = fgis.Strategy(
    head=fgis.heads.residual(rank=16, whiten=0.1),
    sample=partial(fgis.sample_pk, classes=8, per_class=4),
    objective=fgis.objectives.mined(
        far_positive, partial(fgis.triplet_loss, margin=0.2), fgis.distances.DISTANCES["cosine"]
    ),
)
data = fgis.TrainingData(features, labels)
runs = fgis.make_runs(strategy, data, [(0, np.arange(80))])
state = fgis.train(
    fgis.make_recipe(strategy, feature_size=64), runs, data, steps=40, record_every=10,
    on_record=lambda step, state, metrics: print(f"step {step}: loss {metrics['loss'].mean():.3f}"),
)  # fmt: skip
