"""What a request wants to be searched, read from the parameters of its address and checked."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from fgis.errors import UserError, naming
from fgis.gallery.pictures import Box, parse_crop
from fgis.ranges import nearest

MOST_LISTED = 500
MOST_MARKS = 100
DEFAULT_LISTED = 24
LONGEST_TEXT = 1000  # letters
MARKS = ("relevant", "not_relevant")


class PageQuery(NamedTuple):
    """A search: with an image of the gallery, an uploaded picture or words, where in the gallery, and how ordered."""

    image: str = ""  # an image id of the gallery, or
    picture: str = ""  # the key of an upload
    crop: Box | None = None  # in pixels of the upright picture
    k: int = DEFAULT_LISTED
    rerank: str = ""
    head: str = ""  # whose embeddings rank; "": that of the gallery
    label: str = ""
    folder: str = ""
    relevant: tuple[str, ...] = ()  # image ids that the query moves to
    not_relevant: tuple[str, ...] = ()  # image ids that it moves away from
    text: str = ""  # words, in place of an image or an upload


def read_page_query(
    parameters: Sequence[tuple[str, str]], reranks: Mapping[str, object], heads: Collection[str] = ()
) -> PageQuery:
    """The search that the parameters of an address describe; all but ``relevant`` and ``not_relevant`` come once.

    Raises:
      UserError: a parameter has a value that it cannot have. Whether images exist is not checked here.
    """
    values = dict(parameters)
    with naming("crop: "):
        crop = parse_crop(values.get("crop", ""))
    rerank = values.get("rerank", "")
    if rerank in ("", "none"):
        rerank = ""
    elif rerank not in reranks:
        raise UserError(f"rerank: no such method; {nearest(rerank, reranks) if reranks else 'this gallery has none'}")
    head = values.get("head", "")
    if head and head not in heads:
        raise UserError(f"head: no such head; {nearest(head, heads) if heads else 'this gallery has none'}")
    image, picture, text = values.get("image", ""), values.get("picture", ""), values.get("text", "").strip()
    if [bool(image), bool(picture), bool(text)].count(True) != 1:
        raise UserError(
            "image, picture, text: name one of them: an image of the gallery, the key of an upload or words"
        )
    if text and (crop or rerank or head):
        raise UserError("text: does not go with crop, rerank or head; leave these out")
    if len(text) > LONGEST_TEXT:
        raise UserError(f"text: more than {LONGEST_TEXT} letters; write fewer")
    marks = [tuple(dict.fromkeys(value for key, value in parameters if key == name)) for name in MARKS]
    if len(marks[0]) + len(marks[1]) > MOST_MARKS:
        raise UserError(f"relevant, not_relevant: more than {MOST_MARKS} marks; leave some out")
    if both := set(marks[0]) & set(marks[1]):
        raise UserError(f"relevant, not_relevant: {min(both)!r} is in both; leave it out of one")
    return PageQuery(
        image=image,
        picture=picture,
        text=text,
        crop=crop,
        k=read_whole(values, "k", DEFAULT_LISTED, 1, MOST_LISTED),
        rerank=rerank,
        head=head,
        label=values.get("label", ""),
        folder=values.get("folder", "").strip("/"),
        relevant=marks[0],
        not_relevant=marks[1],
    )


def read_whole(values: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """The whole number of a parameter.

    Raises:
      UserError: it is none, or out of range.
    """
    text = values.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise UserError(f"{name}: {text[:40]!r} found; write a whole number from {low} to {high}")
    return int(text)
