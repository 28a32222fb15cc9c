"""The page of a map is read back as its script reads it: arrays in base64 within one JSON document."""

import base64
import importlib.util
import io
import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from fgis.base import Neighbours
from fgis.report import map_atlas, map_page, map_points
from fgis.report.map_atlas import Atlas, make_atlas
from fgis.report.map_page import MapImages, MapView, fit_square, map_html
from fgis.retrieval.search import search

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SELENIUM = importlib.util.find_spec("selenium")
NAMES = ["a.jpg", "</script><script>alert(1)</script>", 'b"\u2028<!--.jpg', "c\nd\udcff.jpg"]
COLOURS = [(250, 10, 10), (10, 200, 10), (10, 10, 240)]


def two_blobs(count, size=6, seed=0):
    """Odd rows around one direction, even rows around another."""
    rng = np.random.default_rng(seed)
    return (4 * np.eye(size)[np.arange(count) % 2] + 0.3 * rng.normal(size=(count, size))).astype(np.float32)


def neighbours_of(embeddings, k=3):
    return search(embeddings, embeddings, k, "cosine", query_rows=np.arange(len(embeddings)))


def no_pictures(count):
    return Atlas([], 48, np.full(count, -1), np.zeros((count, 2), np.uint8))


def page(names=NAMES, labels=(0, 1, 0, -1), label_names=("</script>cup", "é"), **changes):
    embeddings = two_blobs(len(names))
    layouts = {"PCA": map_points.project_pca(embeddings)}
    views = [
        MapView("frozen features", "as they are", layouts, neighbours_of(embeddings, 2)),
        MapView("head", "", layouts, neighbours_of(embeddings, 2), np.arange(len(names)) == 1),
    ]
    images = MapImages(list(names), np.array(labels), list(label_names), changes.pop("atlas", no_pictures(len(names))))
    return map_html(images, views, title="<i>cups</i>", notes=["A <b>sample</b>."], distance="cosine", **changes)


def data_of(html):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found)


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def test_names_and_texts_are_data_and_no_markup():
    html = page()
    assert html.count("<script") == html.count("</script>") == 2
    assert "<i>cups" not in html
    assert "<b>sample" not in html
    assert "\u2028" not in html
    data = data_of(html)
    assert data["names"] == ["a.jpg", "</script><script>alert(1)</script>", 'b"\\u2028<!--.jpg', "c\\nd\\udcff.jpg"]
    assert data["labelNames"] == ["</script>cup", "é"]
    assert unpacked(data["labels"], "<u2").tolist() == [0, 1, 0, map_page.NONE]
    html.encode()


def test_the_page_needs_no_other_file_and_its_bytes_depend_on_its_content_alone():
    html = page()
    assert html == page()
    assert html != page(labels=(0, 0, 0, -1))
    assert re.findall(r"""(?:https?:|\bsrc=|\bhref=|@import|url\()""", html) == []
    for word in ("prefers-color-scheme: dark", 'name="viewport"', "<noscript>"):
        assert word in html


def test_neighbours_and_unseen_objects_are_those_that_were_given():
    first, second = data_of(page())["views"]
    expected = neighbours_of(two_blobs(4), 2)
    assert unpacked(first["rows"], "<u2").reshape(4, 2).tolist() == expected.rows.tolist()
    np.testing.assert_array_equal(unpacked(first["distances"], "<f4").reshape(4, 2), expected.distances)
    assert expected.rows[:, 0].tolist() == [2, 3, 0, 1]  # of the same blob
    assert (first["depth"], first["unseen"]) == (2, "")
    assert unpacked(second["unseen"], "u1").tolist() == [0, 1, 0, 0]


def test_fewer_images_than_neighbours_leave_places_empty():
    view = MapView("one", "", {"PCA": np.zeros((1, 2))}, neighbours_of(np.ones((1, 3), np.float32), 3))
    images = MapImages(["a"], np.array([-1]), [], no_pictures(1))
    (found,) = data_of(map_html(images, [view], title="", notes=[], distance="cosine"))["views"]
    assert unpacked(found["rows"], "<u2").tolist() == [map_page.NONE] * 3
    assert unpacked(found["distances"], "<f4").tolist() == [0, 0, 0]
    assert unpacked(found["layouts"][0]["points"], "<u2").tolist() == [32768, 32768]  # the middle


@pytest.mark.parametrize("count", [0, map_page.MOST + 1])
def test_a_page_has_room_for_so_many_images(count):
    empty = Neighbours(np.zeros((count, 1), int), np.zeros((count, 1), np.float32))
    view = MapView("none", "", {"PCA": np.zeros((count, 2))}, empty)
    images = MapImages([""] * count, np.full(count, -1), [], no_pictures(count))
    with pytest.raises(ValueError, match=f"images: {count} found; a map shows 1 to 20000"):
        map_html(images, [view], title="", notes=[], distance="cosine")


def test_coordinates_fill_the_longer_axis_and_keep_their_proportions():
    points = np.array([[0.0, 10.0], [4.0, 10.0], [1.0, 12.0]])
    assert fit_square(points).tolist() == [[0, 16384], [65535, 16384], [16384, 49151]]
    assert data_of(page())["views"][0]["layouts"][0]["name"] == "PCA"


@pytest.mark.parametrize("shape", [(40, 5), (5, 40), (6, 6)])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_pca_is_that_of_a_singular_value_decomposition(shape, distance, monkeypatch):
    monkeypatch.setattr(map_points, "BLOCK", 7)
    x = np.random.default_rng(1).normal(size=shape) + 1
    vectors = x / np.linalg.norm(x, axis=1, keepdims=True) if distance == "cosine" else x
    u, s, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    expected = u[:, :2] * s[:2]
    found = map_points.project_pca(x.astype(np.float32), distance)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-5)
    assert (found.max(axis=0) >= -found.min(axis=0)).all()  # the sign does not depend on the library


def test_pca_of_next_to_nothing_is_zero():
    assert map_points.project_pca(np.ones((1, 4), np.float32)).tolist() == [[0, 0]]
    assert map_points.project_pca(np.zeros((3, 2), np.float32)).tolist() == [[0, 0]] * 3
    one = map_points.project_pca(np.array([[1.0], [2.0], [6.0]], np.float32), "euclidean")
    np.testing.assert_allclose(one, [[-2, 0], [-1, 0], [3, 0]])


def test_a_layout_is_turned_and_mirrored_towards_another_but_not_bent():
    points = np.random.default_rng(2).normal(size=(9, 2))
    angle = np.deg2rad(110)
    turned = (points @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])) * [1, -1] + 5
    np.testing.assert_allclose(map_points.align(turned, points), points - points.mean(axis=0), atol=1e-12)


def test_tsne_keeps_neighbours_together_and_repeats_itself():
    pytest.importorskip("openTSNE", reason="openTSNE is not installed; pip install -e '.[map]'")
    embeddings = two_blobs(40)
    ranked, start = neighbours_of(embeddings, map_points.tsne_depth(40)), map_points.project_pca(embeddings)
    assert ranked.rows.shape[1] == 39
    found = map_points.project_tsne(ranked, start, "cosine", seed=3)
    assert found.shape == (40, 2)
    np.testing.assert_array_equal(found, map_points.project_tsne(ranked, start, "cosine", seed=3))
    gaps = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (gaps.argmin(axis=1) % 2 == np.arange(40) % 2).all()


@pytest.mark.parametrize("distance", ["euclidean", "inner_product"])
def test_tsne_takes_distances_of_any_kind(distance):
    pytest.importorskip("openTSNE", reason="openTSNE is not installed; pip install -e '.[map]'")
    embeddings = two_blobs(12)
    ranked = search(embeddings, embeddings, map_points.tsne_depth(12), distance, query_rows=np.arange(12))
    found = map_points.project_tsne(ranked, map_points.project_pca(embeddings, distance), distance)
    assert np.isfinite(found).all()


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,"))))


def test_every_picture_has_its_place_in_the_atlas(monkeypatch):
    monkeypatch.setattr(map_atlas, "COLUMNS", 2)  # four to a sheet
    done = []
    atlas = make_atlas(
        lambda row: None if row == 1 else Image.new("RGB", (200, 100) if row else (50, 50), COLOURS[row % 3]),
        6, side=16, progress=done.append,
    )  # fmt: skip
    assert done == [1, 2, 3, 4, 5, 6]
    assert atlas.tiles.tolist() == [0, -1, 1, 2, 3, 4]
    assert atlas.sizes.tolist() == [[16, 16], [0, 0], [16, 8], [16, 8], [16, 8], [16, 8]]
    first, second = map(decoded, atlas.sheets)
    assert (first.size, second.size) == ((32, 32), (16, 16))
    for row, sheet, corner in ((0, first, (0, 0)), (2, first, (16, 0)), (3, first, (0, 16)), (5, second, (0, 0))):
        found = np.array(sheet.convert("RGB").getpixel((corner[0] + 4, corner[1] + 3)), int)
        assert np.abs(found - COLOURS[row % 3]).max() < 25, row


def test_the_page_holds_the_atlas():
    atlas = make_atlas(lambda row: Image.new("L", (30, 60), 50) if row else None, 4)
    held = data_of(page(atlas=atlas))["atlas"]
    assert (held["side"], held["columns"], held["sheets"]) == (48, 32, atlas.sheets)
    assert unpacked(held["tiles"], "<u2").tolist() == [map_page.NONE, 0, 1, 2]
    assert unpacked(held["sizes"], "u1").tolist() == [0, 0, 24, 48, 24, 48, 24, 48]


def test_few_images_have_large_thumbnails():
    assert [map_atlas.tile_side(count) for count in (1, 2000, 2001, 20000)] == [96, 96, 48, 48]
    assert map_atlas.make_atlas(lambda row: Image.new("RGB", (9, 1)), 1, 48).sizes.tolist() == [[48, 5]]


@pytest.fixture
def browser():
    if not (SELENIUM and CHROMIUM and DRIVER):
        pytest.skip("selenium, chromium or chromium-driver is not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    driver.quit()


def wait(browser, condition):
    for _ in range(100):
        if browser.execute_script(f"return Boolean({condition})"):
            return
        time.sleep(0.05)
    pytest.fail(f"the page never had: {condition}")


@pytest.mark.slow
def test_what_people_do_with_the_page_in_a_browser(browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    path = tmp_path / "explore.html"
    atlas = make_atlas(lambda row: Image.new("RGB", (60, 40), COLOURS[row % 3]), 4, 96)
    path.write_text(page(names=[*NAMES[:3], "d.jpg"], labels=(0, 1, 0, 1), atlas=atlas))
    browser.get(path.as_uri())
    wait(browser, "panels[0].drawn.length")
    first = browser.find_elements("css selector", ".stage canvas")[0]
    shown = browser.execute_script("return [panels[0].screenX(1), panels[0].screenY(1)].map(Math.round)")
    centre = [round(first.size["width"] / 2), round(first.size["height"] / 2)]
    offset = [at - middle for at, middle in zip(shown, centre)]

    ActionChains(browser).move_to_element_with_offset(first, *offset).perform()
    assert browser.find_element("css selector", ".tip").text.startswith("</script><script>alert(1)</script>")
    ActionChains(browser).click().perform()
    listed = [one.text for one in browser.find_elements("css selector", "#chosen li")]
    assert neighbours_of(two_blobs(4), 2).rows[1].tolist() == [3, 2]
    assert [text.split("\n")[0] for text in listed[:2]] == ["d.jpg", 'b"\\u2028<!--.jpg']
    assert ["✓" in text for text in listed[:2]] == [True, False]
    assert len(listed) == 4  # two neighbours in each of two panels
    assert "This head was not trained on the object." in browser.find_element("id", "chosen").text
    assert browser.current_url.endswith("#image=%3C%2Fscript%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E")

    first.send_keys("+", Keys.ARROW_LEFT)
    assert browser.execute_script("return [panels[0].camera.zoom, panels[0].camera.x < 0.5]") == [1.4, True]
    first.send_keys("0", Keys.ESCAPE)
    assert browser.execute_script("return [panels[0].camera.zoom, chosen]") == [1, -1]
    ActionChains(browser).move_to_element(first).click_and_hold().move_by_offset(40, 0).release().perform()
    assert browser.execute_script("return [panels[0].camera.x < 0.5, chosen]") == [True, -1]

    browser.find_element("id", "search").send_keys("script>cup")
    assert browser.find_element("id", "found").text == "2 images found"
    assert browser.execute_script("return [...matching]") == [1, 0, 1, 0]
    browser.find_element("id", "search").send_keys(Keys.ESCAPE)
    browser.find_elements("css selector", "#legend button")[1].click()
    assert browser.execute_script("return [...matching]") == [0, 1, 0, 1]

    browser.get(f"{path.as_uri()}?#image=d.jpg")
    wait(browser, "chosen === 3")
    browser.set_window_size(400, 800)
    wait(browser, "document.documentElement.scrollWidth <= innerWidth")
