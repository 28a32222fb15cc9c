"""Trains one head on the bundled features and evaluates it on objects that it has not seen.

python examples/train_and_evaluate.py
"""

from functools import partial

import jax
import numpy as np

import fgis

data = fgis.load_features()  # 1,000 photos of 250 objects, described by MobileNetV2
features = fgis.prepare(data.features, power=0.5, normalize=True)
unseen = fgis.object_folds(data.labels, 5) == 0  # a fifth of the objects is kept for evaluation

loss = partial(fgis.losses.soft_margin, temperature=0.1)
strategy = fgis.Strategy(
    head=fgis.heads.residual(rank=128, whiten=0.1),
    sample=partial(fgis.sample_pk, classes=32, per_class=4),
    objective=fgis.objectives.mined(fgis.batch_hard, loss, fgis.distances.DISTANCES["cosine"]),
)
recipe = fgis.make_recipe(strategy, feature_size=features.shape[-1])
training_data = fgis.TrainingData(features, data.labels)
runs = fgis.make_runs(strategy, training_data, [(0, np.flatnonzero(~unseen))])  # one run: its seed and its images
state = fgis.train(recipe, runs, training_data, steps=100, record_every=50)
params = jax.tree.map(lambda x: x[0], state.params)  # of the first run, which is the only one

metrics = ["ns_score", "map@r"]
protocol = fgis.protocol(data.labels, metrics, queries=unseen)  # searched among all images
for name, embeddings in (("frozen", features), ("trained", strategy.head.apply(params, features))):
    values = fgis.evaluate(embeddings, data.labels, protocol, metrics)
    print(name, {metric: f"{np.mean(value):.3f}" for metric, value in values.items()})
