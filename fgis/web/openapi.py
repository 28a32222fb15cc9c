"""The OpenAPI document of the page's API."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from fgis.web.query import DEFAULT_LISTED, MOST_LISTED

NUMBER, TEXT, WHOLE = {"type": "number"}, {"type": "string"}, {"type": "integer"}
MAYBE = {"type": ["number", "null"]}
RECORD = {"image_id": TEXT, "label_name": TEXT, "width": WHOLE, "height": WHOLE, "taken": TEXT}
MATCH = RECORD | {
    "rank": WHOLE,
    "label": WHOLE,
    "distance": NUMBER | {"description": "that the ranking is by"},
    "by_features": NUMBER | {"description": "the distance by features, which threshold and limit are about"},
    "similarity": NUMBER | {"description": "from 0 to 1, of the distance by features"},
    "near": {"type": ["boolean", "null"], "description": "within the threshold"},
    "rank_before": {"type": ["integer", "null"], "description": "without marks; null where it was not listed"},
}
BOX = {"type": "array", "items": WHOLE, "description": "x, y, width and height of the part that is alike, in pixels"}
SEARCHED = {
    "query": TEXT,
    "known": {"type": ["boolean", "null"]},
    "verdict": {"enum": ["known", "uncertain", "absent", None], "description": "null of words, which are not judged"},
    "nearest": MAYBE,
    **{name: MAYBE for name in ("threshold", "limit", "detection", "false_alarms", "missed")},
    "milliseconds": {"type": "object", "additionalProperties": NUMBER},
    "words": TEXT | {"description": "the verdict as a sentence"},
    "rates": TEXT | {"description": "how often it errs"},
    "order": TEXT,
    "searched": WHOLE | {"description": "images in the folder and of the label that were asked for"},
    "width": WHOLE,
    "height": WHOLE,
    "changes": {"type": ["object", "null"], "additionalProperties": WHOLE, "description": "that marks made"},
}


def describe_api(reranks: Sequence[str], heads: Sequence[str]) -> dict[str, Any]:
    """The document of a gallery with these re-rankings and heads."""
    image, label, folder = (_parameter(name, TEXT) for name in ("image", "label", "folder"))
    picture = _parameter("picture", TEXT, "the key of an upload, in place of an image id")
    text = _parameter("text", TEXT, "words, in place of an image, where the gallery's network reads them")
    crop = _parameter("crop", TEXT, "x,y,w,h in pixels of the upright picture")
    pair = [image, picture, crop, _parameter("with", TEXT, "the id of the other image")]
    wanted = [
        crop,
        _parameter("k", WHOLE | {"minimum": 1, "maximum": MOST_LISTED, "default": DEFAULT_LISTED}),
        _parameter("rerank", {"enum": ["", *reranks]}),
        _parameter("head", {"enum": ["", *heads]}, "whose embeddings rank; that of the gallery without it"),
        label,
        folder,
        *(_parameter(name, {"type": "array", "items": TEXT}, "image ids") for name in ("relevant", "not_relevant")),
    ]
    name = _parameter("name", TEXT, "of the file, where it is the body")
    listing = [label, folder, _parameter("start", WHOLE), _parameter("count", WHOLE)]
    listing += [_parameter("spread", {"enum": ["0", "1"]}, "1: at even steps through all images, start is not read")]
    upload = {"image": {"type": "string", "format": "binary"}}
    body = {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": upload["image"]},
            "multipart/form-data": {"schema": {"type": "object", "properties": upload}},
        },
    }
    found, listed = _json("Search"), _json("Images")
    paths = {
        "/api/gallery": {"get": _operation("The gallery", [], _json("Gallery"))},
        "/api/images": {"get": _operation("Images of the gallery by id", listing, listed)},
        "/api/pictures": {
            "post": _operation("Upload a picture", [name], _json("Upload"), "201") | {"requestBody": body}
        },
        "/api/search": {
            "get": _operation("Search with an image, an upload or words", [image, picture, text, *wanted], found),
            "post": _operation("Upload a picture and search with it", [name, *wanted], found) | {"requestBody": body},
        },
        "/api/agreement": {"get": _operation("Where a query and an image agree", pair, _json("Agreement"))},
        "/api/thumbnail": {"get": _operation("A thumbnail", [image], _binary("image/webp"))},
        "/api/picture": {"get": _operation("A picture, at most 1,280 pixels", [image, picture], _binary("image/jpeg"))},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "fgis", "version": "1", "description": "Search in one gallery of images"},
        "paths": paths,
        "components": {"schemas": _schemas()},
    }


def _schemas() -> dict[str, Any]:
    named = _object({"name": TEXT, "images": WHOLE})
    gallery = {"images": WHOLE, "made": TEXT, "searched": TEXT, "distance": TEXT, "threshold": MAYBE, "limit": MAYBE}
    gallery |= {
        "labels": _list(named),
        "folders": _list(named),
        "reranks": _list(TEXT),
        "heads": _list(TEXT),
        "head": TEXT | {"description": "that ranks where none is named"},
        "agreement": {"type": "boolean"},
        "text": {"type": "boolean", "description": "whether words can be searched with"},
    }
    parts = _list(_list(NUMBER)) | {"description": "of the similarity, at every place, row by row"}
    return {
        "Search": _object(SEARCHED | {"results": _list(_object(MATCH, {"box": BOX}))}),
        "Images": _object({"images": WHOLE, "results": _list(_object(RECORD))}),
        "Upload": _object({"picture": TEXT, "name": TEXT, "width": WHOLE, "height": WHOLE}),
        "Gallery": _object(gallery),
        "Agreement": _object({"similarity": NUMBER, "query": parts, "result": parts}),
        "Error": _object({"error": TEXT}),
    }


def _object(properties: dict[str, Any], optional: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    return {"type": "object", "properties": {**properties, **optional}, "required": sorted(properties)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _parameter(name: str, schema: dict[str, Any], words: str = "") -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema} | ({"description": words} if words else {})


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _binary(media_type: str) -> dict[str, Any]:
    return {media_type: {"schema": {"type": "string", "format": "binary"}}}


def _operation(
    summary: str, parameters: list[dict[str, Any]], content: dict[str, Any], status: str = "200"
) -> dict[str, Any]:
    error = {"description": "one line about what is wrong", "content": _json("Error")}
    responses = {status: {"description": summary, "content": content}, "400": error, "404": error}
    return {"summary": summary, "parameters": parameters, "responses": responses}
