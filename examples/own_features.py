"""Writes a feature file from one's own arrays, which every command then takes.

    python examples/own_features.py features/own.h5
    python -m fgis.main --config=photos --config.features.backbone= --config.features.path=features/own.h5

The "photos" here are random vectors of 20 objects with four views each; put your own arrays in their place.
"""

import sys

import numpy as np

from fgis.base import FeatureSet
from fgis.features.store import write_features

path = sys.argv[1] if len(sys.argv) > 1 else "features/own.h5"
rng = np.random.default_rng(0)
labels = np.repeat(np.arange(20), 4)  # [n]: images of the same object have the same label
objects = rng.normal(size=(20, 64))
features = np.abs(objects[labels] + 0.7 * rng.normal(size=(80, 64)))  # [n, f]

write_features(
    path,
    FeatureSet(
        features=features.astype(np.float32),
        labels=labels,
        image_ids=np.array([f"object{i // 4}/{i % 4}.jpg" for i in range(80)]),
        source={"backbone": "my network"},  # how the features were made, in words of your own
        label_names=tuple(f"object {label}" for label in range(20)),
    ),
)
print(f"{path}: {len(labels)} images, {features.shape[1]} features")
