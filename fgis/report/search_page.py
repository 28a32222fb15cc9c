"""What a search with a picture shows: the verdict in words, a self-contained page, and a montage as one picture."""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from PIL import Image, ImageDraw, ImageFont
from tabulate import tabulate

from fgis.report.gallery import thumbnail
from fgis.report.records import write_text

SIDE = 320  # pixels, the longer side of the query on a page and of any picture that is kept for one
COLUMNS = 4  # of answers, in a montage: with three rows of them the published 4 × 3
TILE, PICTURE, GAP = (208, 200), (200, 150), 12  # sizes in a montage, (width, height)
COLOURS = {True: (42, 157, 92), False: (209, 73, 91), None: (150, 150, 150)}  # borders: within the threshold or not


class Answer(NamedTuple):
    """One image of the gallery, as it answers: its place, and its picture where the images are at hand."""

    rank: int
    image_id: str
    label: int
    distance: float
    picture: Image.Image | None
    near: bool | None  # within the threshold; None where the distance is not one that the threshold is about


class Found(NamedTuple):
    """A picture and what was found with it."""

    path: str  # of the query, as it was given
    picture: Image.Image
    nearest: float  # the distance of the nearest image of the gallery, whatever is listed
    threshold: float | None  # None where there is none: a gallery of one object
    answers: Sequence[Answer]
    order: str  # in words: "nearest first"
    gallery: str  # in words: what was searched, and by which embedding
    milliseconds: Mapping[str, float]  # of each stage

    @property
    def query(self) -> str:
        """The name of the query's file."""
        return Path(self.path).name


def is_known(found: Found) -> bool:
    """nearest ≤ threshold; true without a threshold."""
    return found.threshold is None or found.nearest <= found.threshold


def verdict(found: Found) -> str:
    """Whether the gallery knows what is on the picture, in words."""
    if found.threshold is None:
        return f"the gallery holds one object, so there is no threshold to judge by: nearest at {found.nearest:.4f}"
    words = "the gallery knows this" if is_known(found) else "nothing like this in the gallery"
    return f"{words}: nearest at {found.nearest:.4f}, threshold {found.threshold:.4f}"


def html(found: Found) -> str:
    """The page of one query: it needs no other file, and shows names where there are no pictures."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fgis.report", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("search.html").render(
        found=found,
        known=is_known(found),
        verdict=verdict(found),
        query=thumbnail(found.picture, SIDE),
        answers=[(answer, thumbnail(answer.picture, 160) if answer.picture else "") for answer in found.answers],
    )


def montage(found: Found) -> Image.Image:
    """The query, twice as large, and its answers to the right of it, four in a row, each with rank, name and distance.

    Borders are green within the threshold and red beyond it, grey where the distances are not those of the threshold.
    An answer without a picture keeps its place.
    """
    columns = max(1, min(COLUMNS, len(found.answers)))
    rows = max(2, -(-len(found.answers) // columns))  # the query is two tiles high
    left = 2 * TILE[0] + 2 * GAP
    canvas = Image.new("RGB", (left + columns * TILE[0] + GAP, GAP + rows * TILE[1]), "white")
    large = (2 * PICTURE[0], 2 * PICTURE[1])
    colour = COLOURS[None if found.threshold is None else is_known(found)]
    _draw_tile(canvas, (GAP, GAP), large, found.picture, ["query", found.query], colour)
    for place, answer in enumerate(found.answers):
        row, column = divmod(place, columns)
        lines = [f"{answer.rank}   {answer.distance:.4f}   label {answer.label}", answer.image_id]
        corner = (left + column * TILE[0], GAP + row * TILE[1])
        _draw_tile(canvas, corner, PICTURE, answer.picture, lines, COLOURS[answer.near])
    return canvas


def _draw_tile(
    canvas: Image.Image, corner: tuple[int, int], size: tuple[int, int], picture: Image.Image | None,
    lines: Sequence[str], colour: tuple[int, int, int],
) -> None:  # fmt: skip
    draw, (x, y) = ImageDraw.Draw(canvas), corner
    box = (x, y, x + size[0] - 1, y + size[1] - 1)
    draw.rectangle(box, fill=(240, 240, 240))
    if picture:
        scale = min(size[0] / picture.width, size[1] / picture.height)
        width, height = (max(1, round(side * scale)) for side in picture.size)
        resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        canvas.paste(resized, (x + (size[0] - width) // 2, y + (size[1] - height) // 2))
    draw.rectangle(box, outline=colour, width=3)
    font = ImageFont.load_default(13)
    for number, line in enumerate(lines):
        draw.text((x, y + size[1] + 3 + 18 * number), _shorten(line, font, size[0]), "black", font)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """``text``, or its end where it is too wide: paths differ at the end."""
    text = text[-200:]
    shown = text
    while font.getlength(shown) > width and text:
        text = text[1:]
        shown = "..." + text
    return shown


def write_png(path: Path, image: Image.Image) -> None:
    """Writes a file that is whole or absent, never half-written."""
    buffer, partial = io.BytesIO(), Path(f"{path}.partial")
    image.save(buffer, "PNG")
    partial.write_bytes(buffer.getvalue())
    os.replace(partial, path)


def write_files(target: Path, found: Found) -> list[Path]:
    """The page, and the montage where there are pictures of answers; the files that were written."""
    page, tiles = (target.with_name(target.name + suffix) for suffix in (".html", ".png"))
    write_text(page, html(found))
    if not any(answer.picture for answer in found.answers):
        tiles.unlink(missing_ok=True)  # of an earlier search with this picture: it would not belong to the page
        return [page]
    write_png(tiles, montage(found))
    return [page, tiles]


def document(found: Found) -> dict[str, Any]:
    """What ``--json`` prints of one picture."""
    return {
        "query": found.path,
        "known": is_known(found),
        "threshold": found.threshold,
        "results": [
            {"rank": a.rank, "image_id": a.image_id, "label": a.label, "distance": a.distance} for a in found.answers
        ],
        "milliseconds": {stage: round(value, 2) for stage, value in found.milliseconds.items()},
    }


def text(found: Found) -> str:
    """What the terminal shows of one picture."""
    listed = [(a.rank, a.image_id, a.label, f"{a.distance:.4f}") for a in found.answers]
    table = tabulate(listed, headers=("rank", "image id", "label", "distance"), disable_numparse=True)
    stages = ", ".join(f"{stage} {value:.0f}" for stage, value in found.milliseconds.items())
    return f"{found.path}: {verdict(found)}\n\n{table}\n\n{found.order}; milliseconds: {stages}"
