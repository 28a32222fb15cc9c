"""The page in a real Chromium: what people do with it, and what they see then."""

import importlib.util
import io
import shutil
import socket
import threading
import time
from functools import partial

import pytest
from PIL import Image

from tests.web.galleries import describe_colours, gallery_by_words, loaded_gallery, scene

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
MISSING = [name for name in ("selenium", "starlette", "uvicorn") if importlib.util.find_spec(name) is None]
MISSING += [name for name, found in (("chromium", CHROMIUM), ("chromium-driver", DRIVER)) if not found]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")]

NAMES = ["red", "blue", "lime", "gold", "purple", "teal", "navy", "coral"]
EVIL = "<img src=x onerror=\"document.title='evil'\">.png"
PICTURES = {f"{a}/{b}.png": scene((a, b)) for a in NAMES for b in NAMES} | {f"red/{EVIL}": scene(("red", "white"))}


@pytest.fixture(scope="module")
def address():
    import uvicorn

    from fgis.retrieval.rerank import local_scaling
    from fgis.web.app import make_app

    listening = socket.create_server(("127.0.0.1", 0))
    places = lambda image: describe_colours(image).reshape(1, 1, 1, -1).repeat(2, axis=2)  # two places that are alike
    reranks = {"local_scaling": partial(local_scaling, k=3)}
    loaded = loaded_gallery(PICTURES)
    mirrored = loaded.search._replace(embed=lambda x: -x, words="backwards")  # what is least alike comes first
    heads = {"features": lambda: loaded.search, "runs/backwards": lambda: mirrored}
    words = gallery_by_words(loaded)
    app = make_app(loaded._replace(heads=heads), reranks=reranks, describe_places=places, by_text=words)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def driver():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What tests do with a page: every wait ends in a failure that says what was waited for."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address

    def open(self, path="/"):
        self.driver.get(self.address + path)
        self.settle()
        return self

    def settle(self):
        self.wait("return document.readyState === 'complete' && !document.body.classList.contains('busy')")
        return self

    def wait(self, script):
        end = time.monotonic() + 15
        while not self.driver.execute_script(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def run(self, script, *values):
        return self.driver.execute_script(script, *values)

    def at(self, selector):
        return self.driver.find_element("css selector", selector)

    def click(self, selector):
        self.at(selector).click()
        return self.settle()

    def upload(self, path):
        before = self.driver.current_url
        self.at("#file").send_keys(str(path))
        self.wait(f"return location.href !== {before!r} || !document.getElementById('error').hidden")
        return self.settle()

    def tile(self, image_id):
        return f"#grid li[data-id='{image_id}']"

    @property
    def ids(self):
        return self.run(
            "return [...document.querySelectorAll('#grid li:not([hidden])')].map((item) => item.dataset.id)"
        )

    @property
    def query(self):
        return self.run("return location.search")

    def text(self, selector):
        return self.at(selector).text


@pytest.fixture
def page(driver, address):
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.set_window_size(1280, 900)
    driver.get_log("browser")  # what earlier tests left
    page = Page(driver, address).open()
    yield page
    errors = [entry for entry in driver.get_log("browser") if "/api/pictures" not in entry["message"]]
    assert errors == []  # no violation of the policy, no script error, no file that is missing


@pytest.fixture
def purple(tmp_path):
    path = tmp_path / "a purple one.png"
    scene(("purple", "red")).save(path)
    return path


def test_the_first_view_shows_pictures_of_all_labels(page):
    assert len(page.ids) == 60
    assert page.text("#headline") == "Or begin with a picture of the gallery: 60 pictures of 65"
    page.click("#more")
    assert len(page.ids) == 65
    page.wait("return [...document.querySelectorAll('#grid img')].slice(0, 8).every((one) => one.naturalWidth)")


def test_an_upload_is_searched_with(page, purple):
    page.upload(purple)
    assert page.ids[0] == "purple/red.png"
    assert page.text("#query-name") == "a purple one.png"
    assert page.text("#verdict-words").startswith("The gallery has images like this: nearest at 0.0000, threshold")
    assert "Estimated on this gallery" in page.text("#verdict-rates")
    assert page.at("#grid li .bar").get_attribute("title") == "similarity 1.000, within the threshold"
    assert "search" in page.text("#timing")
    assert len(page.ids) == 24
    page.click("#more")
    assert len(page.ids) == 48
    page.driver.refresh()
    assert page.settle().ids[0] == "purple/red.png"


def test_a_picture_is_pasted_and_dropped(page):
    script = """
      const done = arguments[arguments.length - 1], [kind, colours] = arguments;
      const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
      const drawing = canvas.getContext("2d");
      drawing.fillStyle = colours[0]; drawing.fillRect(0, 0, 32, 48);
      drawing.fillStyle = colours[1]; drawing.fillRect(32, 0, 32, 48);
      canvas.toBlob((blob) => {
        const data = new DataTransfer();
        data.items.add(new File([blob], "image.png", { type: "image/png" }));
        const more = { bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data };
        document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, more) : new DragEvent(kind, more));
        done();
      });"""
    for kind, colours in (("paste", ["teal", "gold"]), ("drop", ["gold", "teal"])):
        page.driver.execute_async_script(script, kind, colours)
        page.wait("return location.search.includes('picture=') && !document.body.classList.contains('busy')")
        expected = f"{colours[0]}/{colours[1]}.png"
        page.wait(f"return document.querySelector('#grid li').dataset.id === '{expected}'")


def test_results_are_clicked_on_and_the_browser_goes_back(page):
    page.run("document.documentElement.dataset.kept = 'yes'")  # lost where the page is loaded again
    page.click(page.tile("blue/lime.png") + " .picture")
    assert page.query == "?image=blue%2Flime.png"
    first = page.ids
    assert "blue/lime.png" not in first
    page.click(page.tile(first[0]) + " .picture")
    assert page.ids != first
    page.driver.back()
    assert page.settle().query == "?image=blue%2Flime.png"
    assert page.ids == first
    page.driver.back()
    assert len(page.settle().ids) == 60
    page.driver.forward()
    assert page.settle().ids == first
    assert page.run("return document.documentElement.dataset.kept") == "yes"


def test_a_box_is_dragged_and_searched_with(page):
    from selenium.webdriver import ActionChains

    page.open("/?image=coral/navy.png")
    width, height = page.at("#frame").rect["width"], page.at("#frame").rect["height"]
    drag = ActionChains(page.driver).move_to_element_with_offset(
        page.at("#frame"), int(0.05 * width), -int(height / 2) + 8
    )
    drag.click_and_hold().move_by_offset(int(0.4 * width), int(height - 20)).release().perform()
    page.wait("return location.search.includes('crop=')")
    page.settle()
    x, y, w, h = map(int, page.run("return new URLSearchParams(location.search).get('crop')").split(","))
    assert (32 <= x <= 36, y <= 3, 22 <= w <= 28, h >= 42) == (True, True, True, True)
    assert page.ids[0] == "navy/navy.png"
    assert page.at("#box").is_displayed()
    page.driver.refresh()
    page.settle()
    assert page.at("#box").is_displayed()
    page.click("#whole")
    assert not page.at("#box").is_displayed()
    assert page.ids[0] != "navy/navy.png"


def test_a_box_is_drawn_by_keys(page):
    from selenium.webdriver.common.keys import Keys

    page.open("/?image=coral/navy.png")
    frame = page.at("#frame")
    frame.send_keys(Keys.ARROW_RIGHT, *[Keys.ARROW_RIGHT] * 9)  # to the right edge
    frame.send_keys(*[Keys.SHIFT + Keys.ARROW_DOWN] * 3, Keys.NULL)
    frame.send_keys(Keys.ENTER)
    page.wait("return location.search.includes('crop=')")
    page.settle()
    frame.send_keys(Keys.ESCAPE)
    page.wait("return !location.search.includes('crop=')")


def test_marks_move_the_query_and_are_taken_back(page):
    page.open("/?image=red/blue.png")
    plain = page.ids
    marked = next(name for name in plain[8:] if "'" not in name)
    page.click(page.tile(marked) + " .yes")
    assert page.ids.index(marked) < plain.index(marked)
    assert page.text("#changes").startswith("1 mark moved the query: ")
    assert page.text(page.tile(marked) + " .moved") == f"▲{plain.index(marked) - page.ids.index(marked)}"
    assert page.at(page.tile(marked) + " .yes").get_attribute("aria-pressed") == "true"
    page.click(page.tile(plain[0]) + " .no")
    assert "2 marks" in page.text("#changes")
    page.click("#marked .yes button")
    assert "1 mark " in page.text("#changes")
    page.click("#clear-marks")
    assert page.ids == plain
    page.driver.back()
    assert "1 mark " in page.settle().text("#changes")


def test_a_head_is_chosen_from_a_list(page):
    from selenium.webdriver.support.ui import Select

    page.open("/?image=red/blue.png")
    plain, verdict = page.ids, page.text("#verdict-words")
    choice = Select(page.at("#head"))
    assert [one.text for one in choice.options] == ["features as they are", "head of backwards"]
    choice.select_by_visible_text("head of backwards")
    page.wait("return location.search.includes('head=runs')")
    assert not {*page.settle().ids[:5]} & {*plain[:5]}
    assert page.text("#verdict-words") == verdict.replace(" is red", "")  # the first one listed is not the nearest
    page.click("#grid .picture")
    page.wait("return !location.search.includes('red%2Fblue')")
    assert "head=runs" in page.settle().run("return location.search")  # kept while clicking on
    page.driver.back()
    page.driver.back()
    assert page.settle().ids == plain


def test_the_gallery_is_filtered_re_ranked_and_cut_off(page):
    from selenium.webdriver.support.ui import Select

    page.open("/?image=red/blue.png")
    Select(page.at("#label")).select_by_value("blue")
    page.wait("return location.search.includes('label=blue')")
    assert {name.split("/")[0] for name in page.settle().ids} == {"blue"}
    assert page.text("#headline") == "8 pictures of 8, nearest first"
    Select(page.at("#rerank")).select_by_value("local_scaling")
    page.wait("return location.search.includes('rerank=')")
    assert page.settle().text("#headline") == "8 pictures of 8, re-ranked by local scaling"
    page.open("/?image=red/blue.png")
    set_cut = (
        "const cut = document.getElementById('cut'); cut.value = arguments[0]; cut.dispatchEvent(new Event('input'))"
    )
    nearest = page.run("return Number(document.querySelector('#grid li').dataset.distance)")
    page.run(set_cut, nearest + 0.002)
    assert 0 < len(page.ids) < 24
    assert f"{len(page.ids)} of them within the cut-off" in page.text("#headline")
    page.driver.refresh()
    assert 0 < len(page.settle().ids) < 24
    page.run(set_cut, 99)
    assert len(page.ids) == 24
    assert "threshold" in page.text("#ticks")


def test_query_and_result_are_shown_side_by_side(page):
    from selenium.webdriver.common.keys import Keys

    page.open("/?image=red/blue.png")
    first, second = page.ids[:2]
    page.click(page.tile(first) + " .beside")
    assert page.at("#compare").is_displayed()
    page.wait("return document.getElementById('left').naturalWidth && document.getElementById('right').naturalWidth")
    assert page.text("#right-name") == first
    assert "rank 1, similarity 0." in page.text("#compare-words")
    page.at("body").send_keys(Keys.ARROW_RIGHT)
    page.settle()
    assert page.text("#right-name") == second
    page.click("#heat")
    page.wait("return !document.getElementById('right-heat').hidden")
    canvas = "const c = document.getElementById('left-heat'); return [c.width, c.height, c.clientWidth]"
    width = page.run("return document.getElementById('left').clientWidth")
    assert page.run(canvas) == [2, 1, width]
    page.click("#heat")
    assert not page.at("#left-heat").is_displayed()
    page.driver.back()
    assert not page.settle().at("#compare").is_displayed()


def test_the_page_is_used_by_keys_alone(page):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    press = lambda *keys: ActionChains(page.driver).send_keys(*keys).perform()
    page.run("document.getElementById('grid').focus()")
    press(Keys.ARROW_RIGHT)
    press(Keys.ARROW_RIGHT)
    assert page.run("return document.activeElement.closest('li').dataset.id") == page.ids[1]
    chosen = page.ids[1]
    press(Keys.ENTER)
    page.wait("return location.search.includes('image=')")
    page.settle()
    assert page.query.endswith(chosen.replace("/", "%2F"))
    page.run("document.querySelector('#grid .picture').focus()")
    first = page.ids[0]
    press("r")
    page.wait("return location.search.includes('relevant=')")
    assert page.settle().run("return document.activeElement.closest('li').dataset.id") == first
    press("c")
    page.wait("return document.getElementById('compare').open")
    press(Keys.ESCAPE)
    page.wait("return !document.getElementById('compare').open && !location.search.includes('compare')")


def test_a_file_that_is_no_picture_is_one_line_and_the_page_goes_on(page, tmp_path, purple):
    path = tmp_path / "notes.jpg"
    path.write_text("hello, world")
    page.upload(path)
    assert page.text("#error span") == (
        "notes.jpg: this file is not a picture that can be read; choose a JPEG, PNG or WebP"
    )
    assert len(page.ids) == 60
    page.upload(purple)
    assert not page.at("#error").is_displayed()
    assert page.ids[0] == "purple/red.png"


def test_an_address_of_a_picture_that_is_gone_says_so(page, driver):
    page.open("/?picture=" + "0" * 64)
    assert "no longer held" in page.text("#error span")
    assert page.ids == []
    page.open("/")
    assert len(page.ids) == 60
    driver.get_log("browser")  # Chromium logs the status of the response


def test_names_are_text(page):
    tile = page.open("/?image=red/red.png&k=60").tile("red/" + EVIL.replace("'", "\\'"))
    assert page.text(f"{tile} .id") == EVIL
    page.click(f"{tile} .picture")
    assert page.text("#query-name") == EVIL
    assert page.run("return document.title") == f"{EVIL} · fgis"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_without_scrolling_sideways(page, scheme, purple):
    size = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    page.open()
    widths = "return [document.documentElement.scrollWidth, innerWidth]"
    assert page.run(widths) == [400, 400]
    page.upload(purple)
    assert page.run(widths) == [400, 400]
    columns = page.run("return getComputedStyle(document.getElementById('grid')).gridTemplateColumns")
    assert len(columns.split()) == 2
    page.click(page.tile(page.ids[0]) + " .beside")
    assert page.run(widths) == [400, 400]
    contrast = page.run(CONTRAST)
    assert min(contrast.values()) >= 4.5, contrast
    picture = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("L")
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert picture.size == (400, 800)


CONTRAST = """
  const light = (text) => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255);
    const [r, g, b] = parts.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
  };
  const found = {};
  for (const name of ["#gallery-words", "#hint", "#verdict-words", "#verdict-rates", "#timing", "#headline",
                      "#grid .id", "#grid .value", "#ticks span", "label.button", "#compare-words", "#keys"]) {
    const element = document.querySelector(name);
    const pair = [light(getComputedStyle(element).color), light(behind(element))];
    found[name] = Math.max(...pair) / Math.min(...pair);
  }
  return found;
"""


def test_words_search_without_a_picture(page):
    """The query is shown as words; tools of pictures are hidden; a result is the next query."""
    page.at("#text").send_keys("blue")
    page.click("#words button")
    assert page.query == "?text=blue"
    assert page.text("#query-name") == "“blue”"
    assert page.text("#verdict-words").startswith("Ordered by likeness to the words")
    for hidden in ("#frame", "#hint", "#rerank-tool", "#head-tool", "#grid .beside"):
        assert not page.at(hidden).is_displayed()
    first = page.ids[0]
    page.click(f"{page.tile(first)} .picture")
    assert page.query.startswith("?image=")
    assert page.at("#frame").is_displayed()
    assert page.run("return document.getElementById('text').value") == ""
    page.driver.back()
    page.wait("return location.search === '?text=blue'")
    page.settle()
    assert page.ids[0] == first
