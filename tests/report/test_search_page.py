import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgis.report import search_page
from fgis.report.fonts import choose_font
from fgis.report.rates import rates_words
from fgis.report.search_page import Match, SearchResult
from fgis.retrieval.operating_point import OperatingPoint

RED, BLUE, GREY = (200, 30, 10), (20, 40, 220), (240, 240, 240)
NEAR, FAR, OPEN = (42, 157, 92), (209, 73, 91), (150, 150, 150)


POINT = OperatingPoint(threshold=0.25, limit=0.5, detection=0.86, false_alarms=0.09, missed=0.05)


def result(point=POINT, nearest=0.125, pictures=True, count=2):
    picture = Image.new("RGB", (400, 100), BLUE) if pictures else None
    matches = [
        Match(1, "cups/<b>1.jpg", 7, "<i>cup</i>", 0.125, picture, None if point is None else True),
        Match(2, "cups/2.jpg", 8, "", 0.5, None, None if point is None else False),
    ]
    query = Image.new("RGB", (50, 100), RED)
    milliseconds = {"decode": 1.234, "search": 20.0}
    return SearchResult("in/my.png", query, nearest, point, matches[:count], "nearest first", "2 images", milliseconds)


@pytest.mark.parametrize(
    ("point", "nearest", "verdict", "words"),
    [
        (POINT, 0.125, "known", "the gallery has images like this: nearest at 0.1250, threshold 0.2500"),
        (POINT, 0.25, "known", "the gallery has images like this: nearest at 0.2500, threshold 0.2500"),
        (POINT._replace(threshold=0.1), 0.125, "uncertain", "not sure: the nearest is <i>cup</i> at 0.1250, between "
         "the threshold 0.1000 and the limit 0.5000"),
        (POINT._replace(threshold=0.1, limit=float("inf")), 0.125, "uncertain", "not sure: the nearest is <i>cup</i> "
         "at 0.1250, between the threshold 0.1000"),
        (POINT, 0.6, "absent", "nothing like this in the gallery: nearest at 0.6000, limit 0.5000"),
        (None, 0.125, "uncertain", "the gallery holds one object, which tells nothing about others: nearest at "
         "0.1250"),
    ],
)  # fmt: skip
def test_the_verdict_is_where_the_nearest_lies_between_threshold_and_limit(point, nearest, verdict, words):
    found = result(point, nearest)
    assert search_page.verdict(found) == verdict
    assert search_page.verdict_words(found) == words
    assert html.escape(words[1:]) in search_page.search_html(found)
    document = search_page.document(found)
    assert (document["known"], document["verdict"], document["nearest"]) == (verdict == "known", verdict, nearest)
    json.dumps(document, allow_nan=False)


def test_the_rates_stand_beside_the_verdict():
    words = rates_words(POINT)
    assert "86 % of new photos of its objects" in words
    assert "9 % of photos of other objects would be within the threshold; 5 % of the former beyond" in words
    assert words in search_page.search_html(result())
    assert words in search_page.search_text(result())
    lone = rates_words(POINT._replace(detection=float("nan"), missed=float("nan")))
    assert lone == ("Estimated on this gallery: 9 % of photos of other objects would be taken for one of its objects.")
    assert rates_words(None) == ""


def test_the_page_needs_no_other_file_and_shows_names_where_there_are_no_pictures():
    page = search_page.search_html(result())
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("data:image/jpeg") == 2  # the query and the first match
    assert page.index("my.png") < page.index("cups/&lt;b&gt;1.jpg") < page.index("cups/2.jpg")
    assert "cups/<b>" not in page
    assert ("tile good" in page, "tile bad" in page) == (True, True)
    assert "&lt;i&gt;cup&lt;/i&gt;" in page
    assert "label 8" in page
    assert "label 7" not in page  # it has a name
    assert "0.5000" in page
    assert search_page.search_html(result(pictures=False)).count("data:image/jpeg") == 1


def test_a_page_without_a_threshold_marks_no_tile():
    page = search_page.search_html(result(point=None))
    assert not re.search(r'class="tile (good|bad)"', page)
    assert "threshold of" not in page
    assert 'class="verdict box"' in page


def test_the_montage_shows_the_query_at_the_left_and_the_matchs_in_order():
    pixels = np.asarray(search_page.montage(result()))
    assert pixels.shape == (12 + 2 * 218, (2 * 208 + 24) + 2 * 208 + 12, 3)
    assert tuple(pixels[12 + 150, 12 + 200]) == RED  # the middle of the query
    assert tuple(pixels[12 + 150, 12 + 20]) == GREY  # beside it: the query is narrow, its aspect is kept
    assert tuple(pixels[12 + 75, 440 + 100]) == BLUE
    assert tuple(pixels[12 + 30, 440 + 100]) == GREY  # above the wide picture
    assert tuple(pixels[12 + 75, 648 + 100]) == GREY  # the second match has no picture, but a place
    assert [tuple(pixels[12, x]) for x in (12, 440, 648)] == [NEAR, NEAR, FAR]
    assert (pixels[12 + 153 : 12 + 205, 440:640] < 100).any()  # rank, distance, name


def test_the_montage_is_grey_without_a_threshold_and_has_rows_of_four():
    pixels = np.asarray(search_page.montage(result(point=None)))
    assert [tuple(pixels[12, x]) for x in (12, 440)] == [OPEN, OPEN]
    twelve = result()._replace(matches=[result().matches[0]] * 12)
    pixels = np.asarray(search_page.montage(twelve))
    assert pixels.shape == (12 + 3 * 218, 440 + 4 * 208 + 12, 3)
    assert all(
        tuple(pixels[12 + 218 * row + 75, 440 + 208 * column + 100]) == BLUE for row in range(3) for column in range(4)
    )
    assert search_page.montage(result(count=1)).size == (440 + 208 + 12, 12 + 2 * 218)


def test_a_long_name_keeps_its_end_within_the_tile():
    wide = result()._replace(matches=[result().matches[0]._replace(image_id="x" * 100 + "/end.jpg")])
    pixels = np.asarray(search_page.montage(wide))
    assert (pixels[:, 440 + 200 :] == 255).all()
    shown = search_page._shorten(*choose_font("x" * 100 + "/end.jpg", 13), 200)
    assert re.fullmatch(r"\.\.\.x+/end\.jpg", shown)


def test_files_are_the_page_and_with_pictures_the_montage(tmp_path):
    page, montage = search_page.write_files(tmp_path / "my.photo", result())
    assert (page.name, montage.name) == ("my.photo.html", "my.photo.png")
    assert Image.open(montage).size == search_page.montage(result()).size
    assert search_page.write_files(tmp_path / "my.photo", result(pictures=False)) == [page]
    assert [path.name for path in tmp_path.iterdir()] == ["my.photo.html"]  # the montage of another search is gone


def test_the_document_and_the_text_say_the_same():
    document = json.loads(json.dumps(search_page.document(result())))
    assert document == {
        "query": "in/my.png",
        "known": True,
        "verdict": "known",
        "nearest": 0.125,
        **POINT._asdict(),
        "results": [
            {"rank": 1, "image_id": "cups/<b>1.jpg", "label": 7, "label_name": "<i>cup</i>", "distance": 0.125},
            {"rank": 2, "image_id": "cups/2.jpg", "label": 8, "label_name": "", "distance": 0.5},
        ],
        "milliseconds": {"decode": 1.23, "search": 20.0},
    }
    assert search_page.document(result(point=None))["threshold"] is None
    lines = search_page.search_text(result()).splitlines()
    assert lines[0] == "in/my.png: the gallery has images like this: nearest at 0.1250, threshold 0.2500"
    assert [line.split() for line in lines[5:7]] == [
        ["1", "cups/<b>1.jpg", "<i>cup</i>", "0.1250"], ["2", "cups/2.jpg", "label", "8", "0.5000"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.jpg", "x/b.jpg"], ["a", "b"]),
        (["x/a.jpg", "x/a.png"], ["a.jpg", "a.png"]),
        (["x/a.jpg", "y/a.jpg"], ["a.jpg", "a.jpg-2"]),
        (["a.jpg", "A.JPG"], ["a.jpg", "A.JPG-2"]),  # one file on some file systems
        (["a.jpg", "a.png", "a.jpg.gif"], ["a.jpg", "a.png", "a.jpg-2"]),
        (["a.jpg", "a.jpg"], ["a"]),
        (["x" * 300 + "1.jpg", "x" * 300 + "2.jpg"], ["x" * 200, "x" * 200 + "-2"]),
    ],
)
def test_each_query_has_a_page_name_of_its_own(paths, names):
    found = search_page.page_names([Path(path) for path in paths])
    assert list(found) == list(dict.fromkeys(map(Path, paths)))
    assert list(found.values()) == names


def test_names_of_files_that_are_no_text_are_written(tmp_path):
    odd = result()._replace(path="in/b\udcff\n写.png")
    name = search_page.page_names([Path(odd.path)])[Path(odd.path)]
    page, _ = search_page.write_files(tmp_path / name, odd)
    assert "b\\udcff\\n写.png" in page.read_text("utf-8")
    assert search_page.search_text(odd).startswith("in/b\\udcff\\n写.png: ")
