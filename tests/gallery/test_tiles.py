"""Windows of pictures, and how those that a search finds become boxes; numbers by hand."""

import numpy as np
import pytest

from fgis.base import Neighbours
from fgis.gallery import tiles
from fgis.gallery.tiles import Tiles, Windows, merge_windows, parse_tiles, window_boxes


def test_windows_cover_the_picture():
    assert window_boxes(300, 200, Tiles(200, 100)) == [(0, 0, 200, 200), (100, 0, 200, 200)]
    assert window_boxes(200, 150, Tiles(200, 100)) == []
    boxes = window_boxes(777, 1203, Tiles(256, 192))
    seen = np.zeros((1203, 777), bool)
    for x, y, width, height in boxes:
        seen[y : y + height, x : x + width] = True
    assert seen.all()
    assert {box[2:] for box in boxes} == {(256, 256)}
    assert max(x + w for x, _, w, _ in boxes) == 777
    assert max(y + h for _, y, _, h in boxes) == 1203


def test_too_many_windows_are_refused(monkeypatch):
    monkeypatch.setattr(tiles, "MOST_WINDOWS", 5)
    with pytest.raises(ValueError, match=r"6 windows in 300 x 200 pixels, more than 5; take larger --tiles"):
        window_boxes(300, 200, Tiles(100, 100))


@pytest.mark.parametrize("text", ["256", "256,0", "16,16", "256,300", "256,31", "a,b", "256,128,1", "-256,128"])
def test_tiles_that_make_no_sense_are_refused(text):
    with pytest.raises(ValueError, match="found; write SIZE,STRIDE in pixels"):
        parse_tiles(text)


def neighbours(*rows):
    return Neighbours(np.array([rows]), np.arange(len(rows), dtype=np.float32)[None] / 10)


# Two pictures; the first has windows at x = 0, 20, 40 and 300, each 100 wide, the second one window.
BOXES = [(0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 100, 100), (20, 0, 100, 100), (40, 0, 100, 100), (300, 0, 100, 100),
         (0, 0, 100, 100)]  # fmt: skip
WINDOWS = Windows(np.array([0, 1, 0, 0, 0, 0, 1]), np.array(BOXES))


def test_windows_that_overlap_the_nearest_one_become_one_result():
    """Row 3 is nearest; rows 2 and 4 share four fifths of it; row 5 lies apart, row 6 on another picture."""
    found = merge_windows(WINDOWS, neighbours(3, 2, 6, 4, 5), 9)
    assert found.rows.tolist() == [3, 6, 5]
    assert found.images.tolist() == [0, 1, 0]
    assert found.boxes == [(0, 0, 140, 100), (0, 0, 100, 100), (300, 0, 100, 100)]
    np.testing.assert_allclose(found.distances, [0, 0.2, 0.4])


def test_a_result_grows_by_windows_that_are_nearly_the_nearest_one_alone():
    """Row 2 is nearest: row 3 shares four fifths of it. Row 4 shares three fifths: it adds nothing."""
    assert merge_windows(WINDOWS, neighbours(2, 3, 4), 9).boxes == [(0, 0, 120, 100)]


def test_the_whole_picture_and_its_windows_are_one_result():
    assert merge_windows(WINDOWS, neighbours(0, 3, 5), 9).boxes == [None]
    found = merge_windows(WINDOWS, neighbours(5, 0, 3), 9)
    assert found.boxes == [(300, 0, 100, 100), (20, 0, 100, 100)]


def test_as_many_as_are_wanted_though_later_windows_still_join():
    found = merge_windows(WINDOWS, neighbours(3, 6, 5, 4, -1), 2)
    assert found.boxes == [(20, 0, 120, 100), (0, 0, 100, 100)]
    assert merge_windows(WINDOWS, neighbours(-1), 2).rows.shape == (0,)


def test_without_windows_every_neighbour_is_a_result():
    found = merge_windows(None, neighbours(4, 2, -1), 5)
    assert (found.rows.tolist(), found.images.tolist(), found.boxes) == ([4, 2], [4, 2], [None, None])
    assert merge_windows(None, neighbours(4, 2), 1).rows.tolist() == [4]
