"""UKBench as a data set of TensorFlow Datasets, stored as array_record; TensorFlow is not needed.

    python examples/ukbench_tfds.py ukbench features/tfds
    python -m fgis.main --config=ukbench --mode=extract --config.features.collection=tfds \
        --config.features.images=features/tfds/ukbench/1.0.0@train --config.features.path=features/ukbench_tfds.h5

The first argument is the folder of ``ukbench00000.jpg`` ..., the second the data directory. The files are stored as
they are, byte by byte; the label is the object (number // 4), as a name, since a copy may hold any part of the 2,550.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from fgis.features.collection import load_collection


class Ukbench(tfds.core.GeneratorBasedBuilder):
    """The images of a folder, in the order of their numbers."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, images: str, data_dir: str) -> None:
        """Takes the folder of the images and the data directory."""
        self.collection, self.folder = load_collection("ukbench", images), Path(images)
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        objects = [f"object {label}" for label in sorted(set(self.collection.labels.tolist()))]
        features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=objects)}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, _: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, (image_id, label) in enumerate(zip(self.collection.image_ids, self.collection.labels, strict=True)):
            yield row, {"image": str(self.folder / image_id), "label": f"object {label}"}


if __name__ == "__main__":
    builder = Ukbench(sys.argv[1], sys.argv[2])
    builder.download_and_prepare()
    print(f"{builder.data_dir}: {builder.info.splits['train'].num_examples} images")
