"""The example that stores UKBench as a data set of TensorFlow Datasets."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fgis.features.collection import load_collection
from tests.tiny import ROOT


@pytest.mark.slow
def test_the_images_are_kept_byte_by_byte(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    rng = np.random.default_rng(0)
    for number in (1, 2, 5, 9):
        pixels = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"ukbench{number:05d}.jpg")
    command = [sys.executable, str(ROOT / "examples" / "ukbench_tfds.py"), str(tmp_path), str(tmp_path / "tfds")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    folder = tmp_path / "tfds" / "ukbench" / "1.0.0"
    assert done.stdout.splitlines()[-1] == f"{folder}: 4 images"
    stored, files = load_collection("tfds", f"{folder}@train"), load_collection("ukbench", str(tmp_path))
    assert stored.label_names == ("object 0", "object 1", "object 2")
    assert stored.labels.tolist() == [0, 0, 1, 2]
    for row in range(4):
        np.testing.assert_array_equal(np.asarray(stored.read(row)), np.asarray(files.read(row)))
