import numpy as np
import pytest

from fgis.gallery.own_point import own_operating_point


def two_photos_of_each_object(objects=30):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(objects, 16))
    photos = np.repeat(centres, 2, axis=0) + 0.1 * rng.normal(size=(2 * objects, 16))
    return photos.astype(np.float32)


def point_of(photos, labels):
    return own_operating_point(lambda: [(0, photos)], labels, np.arange(len(photos)), "cosine", 0)


def test_labels_that_name_objects_give_the_threshold():
    photos = two_photos_of_each_object()
    point = point_of(photos, np.arange(60) // 2)
    assert point.detection > 0.9
    assert 0.1 < point.threshold < 0.9


def test_labels_that_are_years_do_not_count_as_objects():
    photos = two_photos_of_each_object()  # one photo of each object is of the first year, the other of the second
    years, alone = point_of(photos, np.arange(60) % 2), point_of(photos, np.arange(60))
    assert np.isnan(years.detection)
    assert years == pytest.approx(alone, nan_ok=True)
