"""The search page of a gallery as an ASGI application: routes, and the headers that keep everything on this machine."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fgis.errors import UserError
from fgis.gallery.loaded import LoadedGallery
from fgis.retrieval.rerank import Rerank
from fgis.web.api import api_routes, refusal
from fgis.web.searcher import ByText, DescribePlaces, Searcher

HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")  # names that this machine alone has
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",  # no other site shows or measures a picture of the gallery
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
STATIC = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}


def make_app(
    loaded: LoadedGallery,
    *,
    reranks: Mapping[str, Rerank] | None = None,
    describe_places: DescribePlaces | None = None,
    by_text: ByText | None = None,
    hosts: Sequence[str] = HOSTS,
) -> Starlette:
    """The page and its API.

    Args:
      loaded: the gallery that is searched.
      reranks: the re-rankings that can be chosen, by name.
      describe_places: an upright picture -> its features at every place, [1, h, w, f], whose mean over places is what
        the gallery holds; None where there is no such function: then there are no heat maps.
      by_text: gives the gallery as words are compared with it, and a function from words to their vector; it is called
        with every search by words. None where the network reads none.
      hosts: the names by which the server may be called; a page of another site that has its name resolved to this
        machine is refused. ``("*",)`` for any.

    Returns:
      An ASGI application.
    """
    pages = [Route("/", static_file("page.html"))]
    pages += [Route(f"/{name}", static_file(name)) for name in STATIC if name != "page.html"]
    return Starlette(
        routes=[*pages, *api_routes(Searcher(loaded, reranks or {}, describe_places, by_text))],
        middleware=[
            Middleware(PrivateHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
        exception_handlers={UserError: refuse, HTTPException: refuse_http, Exception: report_failure},
    )


class PrivateHeaders:
    """Adds ``HEADERS`` to every response, and refuses requests that scripts of other sites send."""

    def __init__(self, app: ASGIApp) -> None:
        """Wraps ``app``."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; see the class."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] == "http":
            site = dict(scope["headers"]).get(b"sec-fetch-site", b"none")
            if scope["method"] == "POST" and site not in (b"none", b"same-origin"):
                await JSONResponse({"error": "sent by another site"}, 403)(scope, receive, send_with_headers)
                return
        await self.app(scope, receive, send_with_headers)


def static_file(name: str) -> Any:
    """The endpoint of one file of the page, which is read once."""
    content = files("fgis.web").joinpath("static", name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=STATIC[name], headers={"Cache-Control": "no-cache"})

    return endpoint


async def refuse(request: Request, error: Exception) -> Response:
    """One line about something that the client can put right."""
    assert isinstance(error, UserError)
    status, document = refusal(error)
    return JSONResponse(document, status)


async def refuse_http(request: Request, error: Exception) -> Response:
    """One line about an address or method that does not exist, or a body that is too large."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def report_failure(request: Request, error: Exception) -> Response:
    """What a fault of ours looks like to the client: one line; the traceback is on the terminal."""
    return JSONResponse({"error": f"the server failed: {type(error).__name__}; its terminal says where"}, 500, HEADERS)
