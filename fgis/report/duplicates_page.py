"""Groups of duplicates as people and programs read them: a table, a JSON document, a self-contained page."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from fgis.report.fonts import visible
from fgis.report.pages import render_template


def duplicates_document(groups: Sequence[Any], images: int, threshold: float) -> dict[str, Any]:
    """The JSON document of the groups that ``fgis.gallery.duplicates.find_duplicates`` returns.

    Args:
      groups: each with its ``copies``, the picture to keep first.
      images: how many images the gallery holds.
      threshold: the least agreement of near duplicates.
    """
    listed = [{"images": [{**one._asdict(), "agreement": round(one.agreement, 4)} for one in g.copies]} for g in groups]
    return {"images": images, "threshold": threshold, "groups": listed}


def duplicates_words(document: Mapping[str, Any]) -> str:
    """How much was found, as a sentence without its full stop."""
    groups = document["groups"]
    if not groups:
        return f"no duplicates among {document['images']} images"
    more = [one for group in groups for one in group["images"][1:]]
    size = sum(one["bytes"] for one in more)
    count = f"{len(groups)} group{'' if len(groups) == 1 else 's'} of duplicates among {document['images']} images"
    beside = f"{len(more)} image{'' if len(more) == 1 else 's'} ({_size(size)}) beside the first of each"
    exact = sum(one["relation"] == "same bytes" for one in more)
    return f"{count}: {beside}, {exact} with the same bytes"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def duplicates_text(document: Mapping[str, Any], shown: int) -> str:
    """What the terminal shows: the first ``shown`` groups."""
    rows = [
        (
            number if place == 0 else "",
            visible(one["image_id"]),
            f"{one['width']} x {one['height']}",
            _size(one["bytes"]),
            f"{one['agreement']:.3f}" if place else "",
            one["relation"],
        )
        for number, group in enumerate(document["groups"][:shown], 1)
        for place, one in enumerate(group["images"])
    ]
    head = duplicates_words(document)
    if not rows:
        return head
    headers = ("group", "image id", "pixels", "file", "agreement", "relation to the first")
    left = len(document["groups"]) - shown
    rest = f"\n\n{left} more groups are in the files" if left > 0 else ""
    return f"{head}\n\n{tabulate(rows, headers=headers, disable_numparse=True)}{rest}"


def duplicates_html(document: Mapping[str, Any], made: str, thumbnail: Callable[[str], bytes]) -> str:
    """The page of a document: it needs no other file.

    Args:
      document: as ``duplicates_document`` returns it.
      made: what was searched, in words.
      thumbnail: image id -> WebP.
    """
    picture = lambda image_id: "data:image/webp;base64," + base64.b64encode(thumbnail(image_id)).decode()
    return render_template(
        "duplicates.html", document=document, words=duplicates_words(document), made=made, picture=picture
    )
