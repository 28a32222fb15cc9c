"""The search page of a large gallery: ``python -m experiments.benchmarks.serving [--photos=100000]``.

The features and thumbnails of the gallery are made up; its files hold a letter each and are never decoded, since a
gallery is only told that it has described them. Cases: ``index_again``, the command that finds nothing new;
``start``, until the server answers; ``upload``, a search with a new JPEG of 640 × 480 that is decoded and described;
``search`` alone, the part of that by the server's own clock; ``click``, a search with a picture of the gallery;
``page``, all that the first screen asks for but its thumbnails. Seconds are the median of ``REPEATS``, megabytes the
peak of the command or of the server.
"""

import argparse
import hashlib
import http.client
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from experiments.benchmarks import timing
from fgis.gallery.index import make_thumbnail
from fgis.gallery.store import Content, ImageRecord, open_store

ROOT = Path(__file__).parents[2]
REPEATS, FOLDER, BLOCK, WAIT = 30, 1000, 5000, 300  # FOLDER: files in one; BLOCK: added at once; WAIT: seconds
FIRST_SCREEN = ("/", "/page.js", "/page.css", "/api/gallery", "/api/images?start=0&count=60")


def picture(seed: int) -> Image.Image:
    """A picture of 640 × 480 that is like no other."""
    blocks = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), np.uint8)
    return Image.fromarray(blocks).resize((640, 480), Image.Resampling.BICUBIC)


def jpeg(seed: int) -> bytes:
    """The same as a file."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def command(mode: str, *flags: str) -> list[str]:
    """A command of fgis."""
    return [sys.executable, "-m", "fgis.main", f"--mode={mode}", *flags]


def fill(images: Path, gallery: Path, photos: int) -> None:
    """A gallery of two real pictures and as many made-up ones as are missing, in folders of ``FOLDER``."""
    images.mkdir()
    for seed in range(2):
        picture(seed).save(images / f"real{seed}.png")
    subprocess.run(command("index", f"--images={images}", f"--gallery={gallery}"), cwd=ROOT, check=True)
    rng, thumbnail = np.random.default_rng(0), make_thumbnail(picture(2))
    with open_store(gallery, create=True) as store:
        (size,) = store.shape
        for start in range(0, photos - 2, BLOCK):
            records, contents = [], []
            for number in range(start, min(start + BLOCK, photos - 2)):
                path = images / f"{number // FOLDER:04}" / f"{number:06}.jpg"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(b"x")
                name, sha = path.relative_to(images).as_posix(), hashlib.sha256(str(number).encode()).hexdigest()
                changed = path.stat().st_mtime_ns
                records.append(ImageRecord(name, path.parent.name, 640, 480, 1, changed, sha, ""))
                vector = np.abs(rng.standard_normal(size, np.float32))
                contents.append(Content(sha, 640, 480, "", thumbnail, vector))
            store.add(records, contents)


def index_again(gallery: Path) -> dict[str, Any]:
    """Seconds and megabytes of an indexing that finds nothing new."""
    began = time.perf_counter()
    process = subprocess.Popen(command("index", f"--gallery={gallery}"), cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"--mode=index ended with exit code {process.returncode}; run it to see why")
    return {"case": "index_again", "seconds": time.perf_counter() - began, "megabytes": usage.ru_maxrss / 1e3}


@contextmanager
def server(gallery: Path) -> Iterator[tuple[http.client.HTTPConnection, subprocess.Popen, float]]:
    """A connection to a server of its own, its process, and the seconds until it answered."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.perf_counter()
    flags = (f"--gallery={gallery}", f"--port={port}")
    process = subprocess.Popen(command("serve", *flags), cwd=ROOT, stdout=subprocess.DEVNULL)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT)
    try:
        while True:
            try:
                connection.request("GET", "/")
                connection.getresponse().read()
                break
            except ConnectionError:
                connection.close()
                if process.poll() is not None or time.perf_counter() - began > WAIT:
                    raise SystemExit("--mode=serve does not answer; run it to see why") from None
                time.sleep(0.05)
        yield connection, process, time.perf_counter() - began
    finally:
        connection.close()
        process.terminate()
        process.wait(timeout=30)


def ask(connection: http.client.HTTPConnection, method: str, address: str, body: bytes | None = None) -> bytes:
    """The body of an answer."""
    connection.request(method, address, body, {"Content-Type": "image/jpeg"} if body else {})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise SystemExit(f"{method} {address}: status {answer.status}: {content[:200]!r}")
    return content


def timed(connection: http.client.HTTPConnection, *asked: tuple[Any, ...]) -> tuple[float, bytes]:
    """Seconds until all answers were there, and the last one."""
    began = time.perf_counter()
    *_, last = (ask(connection, *one) for one in asked)
    return time.perf_counter() - began, last


def measure(gallery: Path) -> list[dict[str, Any]]:
    """The rows of the report."""
    rows = [index_again(gallery)]
    with server(gallery) as (connection, process, seconds):
        rows.append({"case": "start", "seconds": seconds})
        uploads = [("POST", "/api/search?k=24", jpeg(seed)) for seed in range(10, 12 + REPEATS)]
        found = [timed(connection, one) for one in uploads][2:]  # the first ones compile
        names = [one["image_id"] for one in json.loads(found[0][1])["results"]]
        clicks = [timed(connection, ("GET", f"/api/search?k=24&image={quote(one)}"))[0] for one in names]
        pages = [timed(connection, *(("GET", address) for address in FIRST_SCREEN))[0] for _ in range(REPEATS)]
        searches = [json.loads(content)["milliseconds"]["search"] / 1000 for _, content in found]
        for case, values in (
            ("upload", [seconds for seconds, _ in found]), ("search", searches), ("click", clicks), ("page", pages),
        ):  # fmt: skip
            rows.append({"case": case, "seconds": statistics.median(values)})
        status = Path(f"/proc/{process.pid}/status").read_text()
        rows[1]["megabytes"] = int((re.search(r"VmHWM:\s*(\d+)", status) or [0, 0])[1]) / 1e3
    return rows


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100_000)
    options = parser.parse_args()
    if options.photos < 100:
        parser.error(f"--photos: {options.photos} found; write at least 100")
    with tempfile.TemporaryDirectory() as place:
        fill(Path(place) / "images", Path(place) / "gallery", options.photos)
        timing.report("serving", measure(Path(place) / "gallery"))


if __name__ == "__main__":
    main()
