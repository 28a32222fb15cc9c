"""The JSON API of the page: what every address reads, does and returns. Errors are ``{"error": one line}``."""

import hashlib
from collections.abc import Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message

from fgis.errors import UserError
from fgis.files import json_types
from fgis.web.openapi import describe_api
from fgis.web.query import read_page_query, read_whole
from fgis.web.searcher import Searcher
from fgis.web.uploads import MOST_BYTES

PRIVATE = {"Cache-Control": "private, no-cache"}  # kept by the browser, and checked again by its tag
MOST_IMAGES = 200  # of one page of the gallery
TOO_LARGE = HTTPException(413, f"the picture is larger than {MOST_BYTES // 1_000_000} MB; choose a smaller one")


def api_routes(searcher: Searcher) -> list[Route]:
    """The routes below ``/api``, for one gallery."""
    return [*search_routes(searcher), *picture_routes(searcher)]


def search_routes(searcher: Searcher) -> list[Route]:
    """What is computed: the gallery and its images, searches, and where pictures agree."""

    async def overview(request: Request) -> Response:
        return JSONResponse(json_types(searcher.overview()))

    async def images(request: Request) -> Response:
        values = dict(request.query_params)
        start = read_whole(values, "start", 0, 0, 10**8)
        count = read_whole(values, "count", 60, 1, MOST_IMAGES)
        label, folder = values.get("label", ""), values.get("folder", "").strip("/")
        if values.get("spread", "") not in ("", "0"):
            return JSONResponse(json_types(searcher.spread_images(label, folder, count)))
        return JSONResponse(json_types(searcher.list_images(label, folder, start, count)))

    async def search_gallery(request: Request) -> Response:
        return await ranked(request.query_params.multi_items())

    async def search_with_picture(request: Request) -> Response:
        content, name = await read_body(request)
        key = await run_in_threadpool(searcher.uploads.add, content, name)
        parameters = [pair for pair in request.query_params.multi_items() if pair[0] not in ("image", "picture")]
        return await ranked([*parameters, ("picture", key)])

    async def ranked(parameters: list[tuple[str, str]]) -> Response:
        query = read_page_query(parameters, searcher.reranks, searcher.loaded.heads)
        return JSONResponse(json_types(await run_in_threadpool(searcher.search, query)))

    async def agreement(request: Request) -> Response:
        query = read_page_query(request.query_params.multi_items(), searcher.reranks, searcher.loaded.heads)
        image_id = request.query_params.get("with", "")
        searcher.find_row(image_id)
        return JSONResponse(json_types(await run_in_threadpool(searcher.agree, query, image_id)))

    async def openapi(request: Request) -> Response:
        return JSONResponse(describe_api(sorted(searcher.reranks), list(searcher.loaded.heads)))

    return [
        Route("/api/gallery", overview),
        Route("/api/images", images),
        Route("/api/search", search_gallery, methods=["GET"]),
        Route("/api/search", search_with_picture, methods=["POST"]),
        Route("/api/agreement", agreement),
        Route("/api/openapi.json", openapi),
    ]


def picture_routes(searcher: Searcher) -> list[Route]:
    """What comes in and is shown: uploads, pictures and thumbnails."""

    async def add_picture(request: Request) -> Response:
        content, name = await read_body(request)
        key = await run_in_threadpool(searcher.uploads.add, content, name)
        upload = searcher.uploads.find(key)
        found = {"picture": key, "name": upload.name, "width": upload.width, "height": upload.height}
        return JSONResponse(found, status_code=201)

    async def thumbnail(request: Request) -> Response:
        image_id = request.query_params.get("image", "")
        row = searcher.find_row(image_id)
        tag = f'"{searcher.loaded.records[row].sha256 or row}"'
        return await tagged(request, tag, "image/webp", lambda: searcher.show_thumbnail(image_id))

    async def picture(request: Request) -> Response:
        image_id, key = (request.query_params.get(name, "") for name in ("image", "picture"))
        tag = f'"{hashlib.sha256((key or image_id).encode("utf-8", "surrogateescape")).hexdigest()}"'
        if not key:
            tag = f'"{searcher.loaded.records[searcher.find_row(image_id)].sha256 or tag[1:-1]}"'
        return await tagged(request, tag, "image/jpeg", lambda: searcher.show_picture(image_id, key))

    return [
        Route("/api/pictures", add_picture, methods=["POST"]),
        Route("/api/thumbnail", thumbnail),
        Route("/api/picture", picture),
    ]


async def tagged(request: Request, tag: str, media_type: str, make: Callable[[], bytes]) -> Response:
    """The bytes of ``make``, or 304 where the browser has those of this tag."""
    headers = PRIVATE | {"ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(await run_in_threadpool(make), media_type=media_type, headers=headers)


async def read_body(request: Request) -> tuple[bytes, str]:
    """The bytes and the name of the one picture of a request: its body, or the file of a multipart form.

    Raises:
      HTTPException: it is larger than ``MOST_BYTES``; hardly more than that is read.
      UserError: a form holds no file.
    """
    most = MOST_BYTES + 10_000  # a form has headers of its own
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise TOO_LARGE
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise TOO_LARGE
        parts.append(part)
    body = b"".join(parts)
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return body, request.query_params.get("name", "")

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async with Request(request.scope, receive).form(max_files=1, max_fields=10) as form:
        files = [value for value in form.values() if not isinstance(value, str)]
        if not files:
            raise UserError("image: the form holds no file; send one, such as curl -F image=@query.jpg")
        return await files[0].read(), files[0].filename or ""


def refusal(error: UserError) -> tuple[int, dict[str, Any]]:
    """The status and the document of something that the client can put right."""
    line = str(error)
    missing = line.endswith(": the gallery has no such image") or line.startswith("this picture is no longer held")
    return 404 if missing else 400, {"error": line}
