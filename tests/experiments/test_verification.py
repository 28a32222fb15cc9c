"""Spatial verification by hand, and on photographs of which two show the same."""

import numpy as np
import pytest
from PIL import Image
from skimage import data

from experiments.verification import count_matches, spatially_verified
from fgis.base import Neighbours
from fgis.retrieval.first_search import FirstSearch

FOUND = np.array([[0, 1, 2, 3], [1, 0, 3, 2]])
COUNTS = {(5, 5): 90, (5, 6): 7, (5, 7): 30, (6, 6): 80, (6, 5): 8, (6, 8): 8}


def verified(**options):
    first = FirstSearch(np.zeros((2, 1)), np.zeros((4, 1)), np.arange(4), "cosine", Neighbours(FOUND, FOUND * 1.0))
    return spatially_verified(first, np.array([5, 6, 7, 8]), lambda *pair: COUNTS[pair], **options)


def test_the_first_answers_by_verified_key_points():
    """7 are too few, 8 are enough; equal numbers and answers that are not verified keep their order."""
    found = verified(candidates=3)
    assert found.rows.tolist() == [[0, 2, 1, 3], [1, 0, 3, 2]]
    assert found.distances.tolist() == [[0, 1, 2, 3]] * 2
    assert verified(candidates=3, least=7).rows.tolist() == [[0, 2, 1, 3], [1, 0, 3, 2]]
    assert verified(candidates=2).rows.tolist() == FOUND.tolist()
    assert verified(candidates=3, least=100).rows.tolist() == FOUND.tolist()
    with pytest.raises(ValueError, match="candidates"):
        verified(candidates=0)


def test_key_points_of_photographs(tmp_path):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    photo = Image.fromarray(data.coffee())
    for number, image in enumerate((photo, photo.rotate(8), Image.fromarray(data.chelsea()))):
        image.save(tmp_path / f"ukbench{number:05d}.jpg")
    names = np.array([f"ukbench{number:05d}.jpg" for number in (2, 0, 1)])
    images = {"collection": "ukbench", "images": str(tmp_path)}
    matches = count_matches(images, names, (160, 240))
    assert matches(1, 2) > 30
    assert matches(0, 1) < 8
    with pytest.raises(ValueError, match=r"no image 'ukbench00009.jpg', or a damaged one"):
        count_matches(images, np.array(["ukbench00009.jpg"]), (160, 240))
