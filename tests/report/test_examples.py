import base64
import io

import numpy as np
from PIL import Image

from fgis.base import Neighbours
from fgis.report import examples

LABELS = np.array([0, 0, 1, 1, 2, 2])
IDS = np.array([f"{i}.jpg" for i in range(6)])
NOBODY = np.zeros(6, bool)


def test_the_worst_are_one_query_of_an_object_and_ties_go_to_the_greatest_loss():
    values = np.array([[4, 4, 2, 1, 4, np.nan], [4, 4, 2, 2, 4, np.nan]])
    frozen = np.array([4.0, 4.5, 2.0, 2.0, 4.0, 4.0])
    worst, best = examples.worst_and_best(values, frozen, NOBODY, LABELS, 6)
    assert worst == [3, 1, 4]  # mean 1.5; of the 4.0s row 1 lost .5, row 4 nothing; row 5 has no value
    assert best == []


def test_the_best_are_complete_and_ties_go_to_the_greatest_gain():
    values, frozen = np.array([[4.0, 4, 2, 1, 4, np.nan]]), np.array([4.0, 3, 2, 2, 4, 4])
    complete = np.array([True, True, False, False, True, True])
    worst, best = examples.worst_and_best(values, frozen, complete, LABELS, 6)
    assert (worst, best) == ([3], [1, 4])
    assert examples.worst_and_best(values, frozen, complete, LABELS, 1) == ([3], [1])


def test_no_query_is_both_worst_and_best():
    generator = np.random.default_rng(0)
    for _ in range(20):
        values, complete = generator.integers(0, 3, (2, 6)).astype(float), generator.random(6) < 0.5
        worst, best = examples.worst_and_best(values, values[0], complete, LABELS, 6)
        assert not set(worst) & set(best)
        assert complete[best].all()
        assert not complete[worst].any()
        assert all(len(set(LABELS[rows])) == len(rows) for rows in (worst, best))


def test_where_every_query_is_complete_none_is_worst():
    assert examples.worst_and_best(np.ones((1, 6)), np.ones(6), ~NOBODY, LABELS, 2) == ([], [0, 2])


def test_a_panel_has_names_ranks_relevance_and_distances():
    neighbours = Neighbours(np.array([[4, 1, 2, -1]]), np.array([[0.25, 0.5, 0.75, np.inf]]))
    panel = examples.query_panel(0, neighbours, LABELS, IDS, label_names=("apple", "pear"))
    assert panel.query[:3] == ("0.jpg", 0, "apple")
    assert [tile[:-1] for tile in panel.neighbours] == [
        ("4.jpg", 2, "", 1, False, True, 0.25),  # one relevant image: the first rank counts
        ("1.jpg", 0, "apple", 2, True, False, 0.5),
        ("2.jpg", 1, "pear", 3, False, False, 0.75),
    ]


def test_a_panel_has_pictures_where_images_are_at_hand():
    neighbours = Neighbours(np.array([[1, 2]]), np.array([[0.5, 0.75]]))
    images = {0: Image.new("L", (8, 8)), 2: Image.new("RGBA", (8, 8))}
    panel = examples.query_panel(0, neighbours, LABELS, IDS, read_image=images.get)
    pictures = [tile.picture[:15] for tile in (panel.query, *panel.neighbours)]
    assert pictures == ["data:image/jpeg", "", "data:image/jpeg"]


def test_a_thumbnail_is_a_small_picture_within_the_page():
    uri = examples.thumbnail(Image.new("RGB", (400, 200), (200, 30, 10)))
    head, _, body = uri.partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(body)))
    assert head == "data:image/jpeg;base64"
    assert picture.size == (96, 48)
    assert np.abs(np.asarray(picture)[20, 40].astype(int) - (200, 30, 10)).max() < 12
