"""What a search with an image shows: a verdict in words, a self-contained page, and a montage as one picture."""

import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont
from tabulate import tabulate

from fgis.files import json_types, replacing, write_text
from fgis.report.examples import show_label, thumbnail
from fgis.report.fonts import choose_font, visible
from fgis.report.pages import render_template
from fgis.report.rates import rates_words
from fgis.retrieval.operating_point import OperatingPoint, Verdict, judge_distance

SIDE = 320  # pixels, the longer side of the query on a page and of any image that is kept for one
MONTAGE_COLUMNS = 4  # of matches: with three rows of them the published 4 × 3
TILE, PICTURE, GAP, LINE = (208, 218), (200, 150), 12, 18  # sizes in a montage: (width, height), space, line of text
COLOURS = {True: (42, 157, 92), False: (209, 73, 91), None: (150, 150, 150)}  # borders: within the threshold or not
FONT_SIZE = 13
STEM_BYTES = 200  # of a page's name at most: file systems allow 255 with the suffixes


NEAREST_FIRST = "nearest first"
Box = tuple[int, int, int, int]


class Match(NamedTuple):
    """One image of the gallery in the ranking of a query."""

    rank: int  # from 1
    image_id: str
    label: int  # -1 of an image without a label
    label_name: str  # "" where the label has no name
    distance: float
    picture: Image.Image | None  # None where the image is not at hand
    near: bool | None  # within the threshold by features; None where there is no threshold
    box: Box | None = None  # the part that is alike, x, y, width, height in pixels; None of the whole picture
    size: tuple[int, int] = (0, 0)  # pixels of the whole upright picture, where there is a box


class SearchResult(NamedTuple):
    """A query and its ranked matches."""

    path: str  # of the query, as it was given
    picture: Image.Image
    nearest: float  # the distance of the nearest image of the gallery by features, whatever is listed
    point: OperatingPoint | None  # None of a gallery of one object
    matches: Sequence[Match]
    order: str  # in words, such as ``NEAREST_FIRST``
    gallery: str  # in words: what was searched, and by which embedding
    milliseconds: Mapping[str, float]  # of each stage
    words: bool = False  # the query is a text: ``path`` is that, and nothing is judged by its distance

    @property
    def query(self) -> str:
        """The name of the query's file."""
        return self.path if self.words else Path(self.path).name


def verdict(result: SearchResult) -> Verdict:
    """Whether the query's object is in the gallery, by the distance of the nearest image."""
    return judge_distance(result.nearest, result.point)


def verdict_words(result: SearchResult) -> str:
    """The verdict as a sentence without its full stop, with the distances that it rests on."""
    point, nearest = result.point, f"nearest at {result.nearest:.4f}"
    if result.words:
        return f"ordered by likeness to the words: {nearest}; whether the gallery has such images is not judged"
    if point is None:
        return f"the gallery holds one object, which tells nothing about others: {nearest}"
    if verdict(result) == "known":
        return f"the gallery has images like this: {nearest}, threshold {point.threshold:.4f}"
    if verdict(result) == "absent":
        return f"nothing like this in the gallery: {nearest}, limit {point.limit:.4f}"
    limit = "" if math.isinf(point.limit) else f" and the limit {point.limit:.4f}"
    best = min(result.matches, key=lambda match: match.rank, default=None)
    name = ""
    if best is not None and best.label >= 0 and result.order == NEAREST_FIRST:
        by_features = math.isclose(best.distance, result.nearest, rel_tol=1e-5, abs_tol=1e-6)  # and by no head
        name = f" is {show_label(best.label, best.label_name)}" if by_features else ""
    return f"not sure: the nearest{name} at {result.nearest:.4f}, between the threshold {point.threshold:.4f}{limit}"


def search_html(result: SearchResult) -> str:
    """The page of one query: it needs no other file, and shows names where there are no pictures."""
    pictures = [draw_box(match) for match in result.matches]
    matches = [(one, thumbnail(x, 160) if x else "") for one, x in zip(result.matches, pictures, strict=True)]
    return render_template(
        "search.html",
        result=result,
        verdict=verdict(result),
        words=verdict_words(result),
        rates=rates_words(result.point),
        query=thumbnail(result.picture, SIDE),
        matches=matches,
    )


def text_card(text: str) -> Image.Image:
    """A text as the picture of a query, in lines of about 28 letters, of which the first eight are shown."""
    card = Image.new("RGB", (SIDE, SIDE * 3 // 4), "white")
    for number, line in enumerate(textwrap.wrap(visible(text), 28)[:8]):
        shown, font = choose_font(line, 2 * FONT_SIZE - 4)
        ImageDraw.Draw(card).text((GAP, GAP + 27 * number), shown, "black", font)
    return card


def montage(result: SearchResult) -> Image.Image:
    """The query, twice as large, and its matches to the right of it, four in a row, each with rank, name and distance.

    Borders are green within the threshold and red beyond it, grey where the threshold does not apply. A match without
    a picture keeps its place.
    """
    columns = max(1, min(MONTAGE_COLUMNS, len(result.matches)))
    rows = max(2, -(-len(result.matches) // columns))  # the query is two tiles high
    left = 2 * TILE[0] + 2 * GAP
    canvas = Image.new("RGB", (left + columns * TILE[0] + GAP, GAP + rows * TILE[1]), "white")
    large = (2 * PICTURE[0], 2 * PICTURE[1])
    colour = COLOURS[{"known": True, "absent": False, "uncertain": None}[verdict(result)]]
    _draw_tile(canvas, (GAP, GAP), large, result.picture, ["query", result.query], colour)
    for place, match in enumerate(result.matches):
        row, column = divmod(place, columns)
        lines = [f"{match.rank}   {match.distance:.4f}", show_label(match.label, match.label_name), match.image_id]
        corner = (left + column * TILE[0], GAP + row * TILE[1])
        _draw_tile(canvas, corner, PICTURE, draw_box(match), lines, COLOURS[match.near])
    return canvas


def draw_box(match: Match) -> Image.Image | None:
    """The picture of a match with its box, if it has one."""
    if not match.picture or not match.box:
        return match.picture
    image = match.picture.convert("RGB")
    x, y, width, height = match.box
    across, down = (shown / max(1, whole) for shown, whole in zip(image.size, match.size, strict=True))
    edges = (x * across, y * down, (x + width) * across - 1, (y + height) * down - 1)
    line = max(2, max(image.size) // 100)
    ImageDraw.Draw(image).rectangle(edges, outline=(255, 196, 0), width=line)
    return image


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
    for number, line in enumerate(lines):
        shown, font = choose_font(line[-200:], FONT_SIZE)
        draw.text((x, y + size[1] + 3 + LINE * number), _shorten(shown, font, size[0]), "black", font)


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """``text``, or its end where it is wider than ``width`` pixels: paths differ at the end."""
    shown = text
    while font.getlength(shown) > width and text:
        text = text[1:]
        shown = "..." + text
    return shown


def write_files(target: Path, result: SearchResult) -> list[Path]:
    """Writes ``TARGET.html``, and ``TARGET.png`` where there are pictures of matches; returns the files written."""
    page, picture = (target.with_name(target.name + suffix) for suffix in (".html", ".png"))
    write_text(page, search_html(result))
    if not any(match.picture for match in result.matches):
        picture.unlink(missing_ok=True)  # of an earlier search with this query: it would not belong to the page
        return [page]
    with replacing(picture) as partial:
        montage(result).save(partial, "PNG")
    return [page, picture]


def page_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for the files of each query: its file's stem, made unique, whatever the case of letters.

    Where queries share a stem the suffix is kept, and where that is not enough a number is added, in the order of
    ``paths``.

    >>> list(page_names([Path("a.jpg"), Path("b.jpg"), Path("b.png"), Path("x/a.jpg")]).values())
    ['a.jpg', 'b.jpg', 'b.png', 'a.jpg-2']
    """
    queries = list(dict.fromkeys(paths))
    stems = Counter(path.stem.casefold() for path in queries)
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in queries:
        name = path.stem if stems[path.stem.casefold()] == 1 else path.name
        name = visible(name).encode()[:STEM_BYTES].decode(errors="ignore")
        number, unique = 1, name
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        names[path] = unique
        taken.add(unique.casefold())
    return names


def document(result: SearchResult) -> dict[str, Any]:
    """The JSON document of one query; rates and distances are null where nothing tells them."""
    results = [
        {
            "rank": match.rank,
            "image_id": match.image_id,
            "label": match.label,
            "label_name": match.label_name,
            "distance": match.distance,
            **({"box": list(match.box)} if match.box else {}),
        }
        for match in result.matches
    ]
    return {
        "query": result.path,
        "known": None if result.words else verdict(result) == "known",
        "verdict": None if result.words else verdict(result),
        "nearest": result.nearest,
        **json_types(result.point._asdict() if result.point else dict.fromkeys(OperatingPoint._fields)),
        "results": results,
        "milliseconds": {stage: round(value, 2) for stage, value in result.milliseconds.items()},
    }


def show_box(box: Box | None) -> str:
    """``x,y,w,h``, as ``--crop`` takes it; "" of a whole picture."""
    return ",".join(map(str, box)) if box else ""


def search_text(result: SearchResult) -> str:
    """What the terminal shows of one query."""
    listed = [
        (m.rank, visible(m.image_id), visible(show_label(m.label, m.label_name)), f"{m.distance:.4f}", show_box(m.box))
        for m in result.matches
    ]
    shown = 4 + any(match.box for match in result.matches)  # columns
    headers = ("rank", "image id", "label", "distance", "box")[:shown]
    table = tabulate([line[:shown] for line in listed], headers=headers, disable_numparse=True)
    stages = ", ".join(f"{stage} {value:.0f}" for stage, value in result.milliseconds.items())
    rates = rates_words(result.point)
    head = f"{visible(result.path)}: {verdict_words(result)}" + (f"\n{rates}" if rates else "")
    return f"{head}\n\n{table}\n\n{result.order}; milliseconds: {stages}"
