import base64
import io

import numpy as np
from PIL import Image

from fgis.base import Neighbours
from fgis.report import gallery

LABELS = np.array([0, 0, 1, 1, 2, 2])
IDS = np.array([f"{i}.jpg" for i in range(6)])


def test_worst_and_best_take_one_query_an_object_and_break_ties_by_the_gain():
    values = np.array([[4, 4, 2, 1, 4, np.nan], [4, 4, 2, 2, 4, np.nan]])
    frozen = np.array([4.0, 3.0, 2.0, 2.0, 4.0, 4.0])
    worst, best = gallery.worst_and_best(values, frozen, LABELS, 2)
    assert worst == [3, 0]  # 1.5; then of the 4.0s those without a gain, rows 0 and 4, the lower first
    assert best == [1, 4]


def test_answers_carry_names_hits_and_distances():
    neighbours = Neighbours(np.array([[1, 4, -1]]), np.array([[0.5, 0.75, np.inf]]))
    (found,) = gallery.answers([0], neighbours, LABELS, IDS, None)
    assert found.query.name == "0.jpg"
    assert [(t.name, t.hit, t.distance, t.picture) for t in found.tiles] == [
        ("1.jpg", True, 0.5, ""), ("4.jpg", False, 0.75, ""),
    ]  # fmt: skip


def test_thumbnails_are_small_pictures_within_the_page():
    uri = gallery.thumbnail(Image.new("RGB", (400, 200), (200, 30, 10)))
    head, _, body = uri.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == "data:image/jpeg;base64"
    assert picture.size == (96, 48)
    assert np.abs(np.asarray(picture)[20, 40].astype(int) - (200, 30, 10)).max() < 12
