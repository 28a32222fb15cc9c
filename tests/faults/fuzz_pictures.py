"""Fuzzed: image files of every kind that is read, and requests to the search page, uploads among them."""

import contextlib
import io
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fgis.errors import UserError
from fgis.features.images import FITS, read_image
from fgis.retrieval.rerank import local_scaling
from fgis.web.app import make_app
from fgis.web.uploads import decode_upload
from tests.faults.fuzz import Target
from tests.faults.mutations import NUMBERS, TEXTS, damage_bytes
from tests.web.galleries import SIZE, describe_colours, describe_places, loaded_gallery, scene


def encoded(image: Image.Image, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def prepare_images(folder: Path) -> list[bytes]:
    """Small files of every kind and mode."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
    grey16 = Image.fromarray(rng.integers(0, 65535, (24, 32)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    frames = {"save_all": True, "append_images": [colour.rotate(90)]}
    clear = colour.convert("RGBA")
    clear.putalpha(100)
    float_tiff = encoded(Image.fromarray(rng.random((8, 8), np.float32)), "TIFF")
    kinds: list[Callable[[], bytes]] = [
        partial(encoded, colour, "JPEG", exif=exif),
        partial(encoded, colour.convert("CMYK"), "JPEG"),
        partial(encoded, colour, "JPEG", progressive=True),
        partial(encoded, colour.convert("L"), "JPEG"),
        partial(encoded, colour, "PNG"),
        partial(encoded, clear, "PNG", exif=exif),
        partial(encoded, grey16, "PNG"),
        partial(encoded, colour.quantize(8), "PNG", transparency=3),
        partial(encoded, colour.convert("1"), "PNG"),
        partial(encoded, colour, "GIF", **frames),
        partial(encoded, colour, "BMP"),
        partial(encoded, colour, "TIFF"),
        partial(encoded, colour, "TIFF", compression="tiff_lzw"),
        partial(encoded, colour, "TIFF", compression="jpeg"),
        partial(encoded, grey16, "TIFF"),
        lambda: float_tiff,
        partial(encoded, colour, "PPM"),
        partial(encoded, colour.convert("L"), "PPM"),
        partial(encoded, colour, "WEBP", exif=exif),
        partial(encoded, clear, "WEBP", lossless=True),
        partial(encoded, colour, "WEBP", **frames),
        partial(encoded, colour, "JPEG2000"),
        partial(encoded, colour, "AVIF"),
        partial(encoded, colour, "ICO"),
        partial(encoded, colour, "TGA"),
        partial(encoded, colour, "PCX"),
        partial(encoded, colour, "MPO"),
    ]
    found = []
    for make in kinds:
        try:
            found.append(make())
        except (KeyError, OSError):  # Pillow was built without it
            continue
    return found


def check_image(files: Any, content: bytes, folder: Path) -> None:
    """An image is bad where reading it raises anything; the page refuses by ``UserError`` alone."""
    (folder / "x.jpg").write_bytes(content)
    upload: Image.Image | None = None
    with contextlib.suppress(UserError):
        upload = decode_upload(content, "x.jpg")
    try:
        image = read_image(folder / "x.jpg")
        fitted = [fit(image, (16, 24)) for fit in FITS.values()]
    except Exception as error:
        raise UserError("bad") from error
    assert image.mode == "RGB"
    assert all(one.size == (24, 16) for one in fitted)
    assert upload is None or upload.tobytes() == image.tobytes()


PICTURES = {
    f"{name}/{number}.jpg": scene((name, other))
    for number, (name, other) in enumerate(
        [("red", "red"), ("red", "darkred"), ("blue", "navy"), ("blue", "blue"), ("blue", "red")]
    )
} | {"green.jpg": scene(("green", "lime"))}
PATHS = (
    "/api/search",
    "/api/search",
    "/api/search",
    "/api/images",
    "/api/agreement",
    "/api/picture",
    "/api/thumbnail",
    "/api/gallery",
    "/api/openapi.json",
    "/api/pictures",
    "/",
    "/page.js",
    "/nothing",
)
NAMES = (
    "image",
    "picture",
    "text",
    "crop",
    "k",
    "rerank",
    "head",
    "label",
    "folder",
    "relevant",
    "not_relevant",
    "with",
    "start",
    "count",
    "spread",
    "name",
)


def prepare_page(folder: Path) -> tuple[Any, list[bytes]]:
    from starlette.testclient import TestClient

    loaded = loaded_gallery(PICTURES)
    loaded = loaded._replace(heads={"features": lambda: loaded.search})
    app = make_app(
        loaded,
        reranks={"local_scaling": partial(local_scaling, k=2)},
        describe_places=describe_places,
        by_text=lambda: (loaded.search._replace(point=None), lambda text: describe_colours(PICTURES["green.jpg"])),
    )
    client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    return client, [*prepare_images(folder), encoded(scene(("red", "blue")).resize(SIZE), "PNG")]


def damage_request(state: tuple[Any, list[bytes]], rng: random.Random) -> bytes:
    """A request in JSON; its body in Latin-1."""
    body = rng.choice(state[1])
    body = damage_bytes(body, rng) if rng.random() < 0.7 else body
    number = lambda: str(rng.choice((*NUMBERS, rng.randrange(80))))
    values = (
        lambda: rng.choice(TEXTS),
        number,
        lambda: rng.choice([*PICTURES]),
        lambda: ",".join(number() for _ in range(4)),
        lambda: rng.choice(("local_scaling", "features", "red", "blue", "1")),
        lambda: ",".join(str(rng.randrange(40)) for _ in range(4)),
    )
    pairs = [(rng.choice(NAMES), rng.choice(values)()) for _ in range(rng.choice((0, 1, 1, 2, 3, 6)))]
    if rng.random() < 0.5:
        pairs.append(("image", rng.choice([*PICTURES])))
    headers = {}
    form = rng.random()
    if form < 0.4:
        head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="\xe9.png"\r\n'
        head += b"Content-Type: image/png\r\n\r\n"
        body = head + body + b"\r\n--x--\r\n"
        body = damage_bytes(body, rng) if rng.random() < 0.5 else body
        kinds = ("x", "x", "x", "", "y", '"x"', "x; charset=utf-99", "x" * 300)
        headers["content-type"] = "multipart/form-data; boundary=" + rng.choice(kinds)
    if rng.random() < 0.1:
        odd = (
            "content-length",
            "range",
            "host",
            "content-encoding",
            "if-none-match",
            "accept",
            "sec-fetch-site",
            "cookie",
        )
        headers[rng.choice(odd)] = rng.choice(
            ("0", "-1", "x", "9" * 30, "127.0.0.1", "gzip", "same-origin", "bytes=0-1")
        )
    pairs = [(name, value.encode("utf-8", "replace").decode()) for name, value in pairs]
    method = rng.choice(("POST", "POST", "GET", "GET", "HEAD", "PUT"))
    path = rng.choice(("/api/search", "/api/pictures")) if method == "POST" and form < 0.9 else rng.choice(PATHS)
    return json.dumps([method, path, pairs, headers, body.decode("latin-1")]).encode()


def check_request(state: tuple[Any, list[bytes]], content: bytes, folder: Path) -> None:
    """Every answer is below 500; a refusal is a document with one line."""
    method, path, pairs, headers, body = json.loads(content)
    given = body.encode("latin-1") if method in ("POST", "PUT") else None
    answer = state[0].request(method, path, params=pairs, headers=headers, content=given)
    assert answer.status_code < 500, (answer.status_code, answer.text[:300])
    if answer.status_code >= 400:
        if method != "HEAD" and answer.headers["content-type"] == "application/json":
            assert "\n" not in answer.json()["error"]
        raise UserError("refused")


TARGETS = {
    "image": Target(prepare_images, lambda files, rng: damage_bytes(rng.choice(files), rng), check_image),
    "upload": Target(prepare_page, damage_request, check_request),
}
