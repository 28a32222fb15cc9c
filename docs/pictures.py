"""The pictures on the first page, of photographs that scikit-image ships: a search, and the search page.

    python -m docs.pictures

Each photograph becomes an object with four views (cut, turned, lit in another way) in a gallery, and for some of them a
fifth view is searched with. Needs `pip install -e '.[test]'`, and Chromium for the picture of the page.
"""

import contextlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from skimage import data

from fgis.main import main

PICTURES = Path(__file__).parent / "pictures"
PAGE_SIZE, PAGE_SHOWN = (1280, 830), (1040, 674)
OBJECTS = ["brick", "camera", "chelsea", "clock", "coffee", "coins", "grass", "gravel", "hubble_deep_field"]
OBJECTS += ["immunohistochemistry", "retina", "rocket"]
QUERIES = ["chelsea", "coffee", "rocket"]
SHOWN = 5
WIDTH, HEIGHT, GAP, CAPTION = 156, 117, 8, 20
RIGHT, WRONG, INK, PAPER = "#2e8b57", "#c0504d", "#222222", "#ffffff"


class View(NamedTuple):
    """How a photograph is changed: the part of each side that is kept, where it lies, degrees, and light."""

    share: float
    left: float  # 0 … 1: the place of the part
    top: float
    degrees: float
    brightness: float
    saturation: float


VIEWS = [View(0.9, 0.5, 0.5, 0, 1, 1), View(0.7, 0.2, 0.4, 8, 0.7, 1), View(0.6, 0.8, 0.6, -6, 1.25, 0.7)]
VIEWS += [View(0.75, 0.5, 0.2, 12, 1.1, 1.2)]
QUERY = View(0.65, 0.45, 0.55, -15, 0.85, 0.9)


def view_of(photograph: Image.Image, view: View) -> Image.Image:
    """The photograph as ``view`` says, without black corners."""
    angle = math.radians(abs(view.degrees))
    width, height = photograph.size
    turned = photograph.rotate(view.degrees, Image.Resampling.BICUBIC)
    inner = min(width, height) / (min(width, height) * math.cos(angle) + max(width, height) * math.sin(angle))
    w, h = width * inner * view.share, height * inner * view.share
    left = (width - width * inner) / 2 + (width * inner - w) * view.left
    top = (height - height * inner) / 2 + (height * inner - h) * view.top
    part = turned.crop((round(left), round(top), round(left + w), round(top + h)))
    part = ImageEnhance.Color(part).enhance(view.saturation)
    return ImageEnhance.Brightness(part).enhance(view.brightness)


def write_photos() -> None:
    """``photos/OBJECT/VIEW.jpg``, and ``queries/OBJECT.jpg``, in the current folder."""
    for name in OBJECTS:
        photograph = Image.fromarray(getattr(data, name)()).convert("RGB")
        photograph.thumbnail((640, 640))
        Path("photos", name).mkdir(parents=True)
        for number, view in enumerate(VIEWS):
            view_of(photograph, view).save(Path("photos", name, f"{number}.jpg"), quality=92)
        if name in QUERIES:
            Path("queries").mkdir(exist_ok=True)
            view_of(photograph, QUERY).save(Path("queries", f"{name}.jpg"), quality=92)


def call(*arguments: str) -> str:
    """What a command of fgis prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["--config=photos", "--config.features.images=photos", *arguments])
    assert code == 0, arguments
    return printed.getvalue()


def tile(path: str) -> Image.Image:
    """The middle of a photograph, in the size of a tile."""
    return ImageOps.fit(Image.open(path), (WIDTH, HEIGHT))


def draw(documents: list[dict]) -> Image.Image:
    """A row for each query: the query, and the nearest photographs with their distances."""
    font = ImageFont.load_default(13)
    step = HEIGHT + CAPTION + GAP
    size = ((SHOWN + 1) * (WIDTH + GAP) + 3 * GAP, CAPTION + len(documents) * step)
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    offset = WIDTH + 4 * GAP
    pen.text((GAP, 2), "query", INK, font)
    pen.text((offset, 2), "nearest photographs, with their cosine distances", INK, font)
    for row, document in enumerate(documents):
        name, top = Path(document["query"]).stem, CAPTION + row * step
        picture.paste(tile(document["query"]), (GAP, top))
        for column, result in enumerate(document["results"][:SHOWN]):
            left = offset + column * (WIDTH + GAP)
            colour = RIGHT if result["image_id"].startswith(f"{name}/") else WRONG
            picture.paste(tile(f"photos/{result['image_id']}"), (left, top))
            pen.rectangle((left, top, left + WIDTH - 1, top + HEIGHT - 1), outline=colour, width=3)
            pen.text((left + 2, top + HEIGHT + 2), f"{result['distance']:.3f}", colour, font)
    return picture


def photograph_page() -> Image.Image:
    """The search page of the photographs, searched with one of them, as Chromium draws it."""
    assert main(["--mode=index", "--images=photos", "--gallery=gallery"]) == 0
    command = [sys.executable, "-m", "fgis.main", "--mode=serve", "--gallery=gallery", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.:]+", line)))
        try:
            subprocess.run([
                "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--virtual-time-budget=8000", f"--window-size={PAGE_SIZE[0]},{PAGE_SIZE[1]}", "--screenshot=page.png",
                f"{address}/?image={OBJECTS[4]}%2F0.jpg",
            ], check=True, capture_output=True)  # fmt: skip
        finally:
            server.terminate()
    return Image.open("page.png").convert("RGB").resize(PAGE_SHOWN, Image.Resampling.LANCZOS)


def render() -> None:
    """Extracts, indexes, searches and writes the pictures."""
    here, pictures = os.getcwd(), {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            write_photos()
            call("--mode=extract")
            documents = json.loads(call("--mode=search", "--image=queries", f"--k={SHOWN}", "--json"))
            pictures["search"] = draw(documents)
            if shutil.which("chromium"):
                pictures["page"] = photograph_page()
        finally:
            os.chdir(here)
    PICTURES.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        path = PICTURES / f"{name}.webp"
        picture.save(path, quality=82, method=6)
        print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    render()
