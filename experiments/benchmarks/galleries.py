"""A folder of photos as a gallery: time to index, to index again, to search from a cold start, and planted duplicates.

    python -m experiments.benchmarks.galleries --images=DIR [--backbone=efficientnet_lite0]

DIR holds photos, such as the first 1,000 of UKBench. Every command runs in a process of its own, so that times include
the start of Python and of JAX, with compiled programs on disk. For duplicates, 200 of the photos are planted again:
resized to 60 %, at JPEG quality 40, cut to 90 % of each side at random, mirrored, and turned by 90 degrees. ``found``
is the share of these that is grouped with its original, ``right`` the share of groups that hold one photo alone.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from tabulate import tabulate

PLANTED, CHANGED, SEED = 200, 10, 0
Turn = Image.Transpose


def plant(image: Image.Image, rng: random.Random) -> dict[str, tuple[Image.Image, int]]:
    """{kind: (a copy of an image, its JPEG quality)}."""
    width, height = image.size
    w, h = int(0.9 * width), int(0.9 * height)
    x, y = rng.randint(0, width - w), rng.randint(0, height - h)
    return {
        "resized": (image.resize((width * 3 // 5, height * 3 // 5), Image.Resampling.LANCZOS), 90),
        "saved": (image, 40),
        "cut": (image.crop((x, y, x + w, y + h)), 90),
        "mirrored": (image.transpose(Turn.FLIP_LEFT_RIGHT), 90),
        "turned": (image.transpose(rng.choice([Turn.ROTATE_90, Turn.ROTATE_270])), 90),
    }


def score_groups(document: dict, planted: Sequence[str]) -> dict[str, float]:
    """Shares of what ``--mode=duplicates --json`` found, where copies are named NAME__KIND.jpg."""
    original = lambda image_id: image_id.removesuffix(".jpg").partition("__")[0]
    groups = [{one["image_id"] for one in group["images"]} for group in document["groups"]]
    place = {image_id: number for number, group in enumerate(groups) for image_id in group}
    found = [one for one in planted if place.get(one, -1) == place.get(f"{original(one)}.jpg", -2)]
    right = [group for group in groups if len({original(one) for one in group}) == 1]
    return {"found": len(found) / len(planted), "right": len(right) / max(1, len(groups))}


def measure(images: Path, backbone: str, place: Path) -> list[dict]:
    """The rows of the table; everything is written below ``place``."""
    photos, gallery = place / "photos", f"--gallery={place / 'gallery'}"
    photos.mkdir()
    for path in sorted(images.glob("*.jpg")):
        (photos / path.name).write_bytes(path.read_bytes())
    names, rng = sorted(path.name for path in photos.iterdir()), random.Random(SEED)
    index = ["--mode=index", gallery]
    first = [*index, f"--images={photos}", f"--config.features.backbone={backbone}"]
    (place / "few").mkdir()
    (place / "few" / names[0]).write_bytes((photos / names[0]).read_bytes())
    warm = ["--mode=index", f"--gallery={place / 'warm'}", f"--images={place / 'few'}", first[-1]]
    _run(warm)  # compiles
    rows = [{"case": "index_photos", "photos": len(names), "seconds": _run(first)[0]}]
    for name in names[:CHANGED]:
        _save(photos / name, lambda path: (Image.open(path).convert("RGB").rotate(3), 92))
    rows.append({"case": "index_again", "photos": CHANGED, "seconds": _run(index)[0]})
    search = ["--mode=search", gallery, f"--image={photos / names[-1]}", "--json"]
    _run(search, place)
    rows.append({"case": "search_cold", "photos": 1, "seconds": min(_run(search, place)[0] for _ in range(3))})
    planted = []
    for name in rng.sample(names, min(PLANTED, len(names))):
        for kind, (copy, quality) in plant(Image.open(photos / name).convert("RGB"), rng).items():
            planted.append(f"{name.removesuffix('.jpg')}__{kind}.jpg")
            copy.save(photos / planted[-1], quality=quality)
    _run(index)
    seconds, output = _run(["--mode=duplicates", gallery, "--json"])
    count = len(names) + len(planted)
    rows.append(
        {"case": "duplicates", "photos": count, "seconds": seconds, **score_groups(json.loads(output), planted)}
    )
    return rows


def _save(path: Path, change: Callable[[Path], tuple[Image.Image, int]]) -> None:
    image, quality = change(path)
    image.save(path, quality=quality)


def _run(arguments: Sequence[str], place: Path | None = None) -> tuple[float, str]:
    """The seconds of one command, and what it printed."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "fgis.main", *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - began, done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="", help="a folder of photos (*.jpg); skips without it")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    options = parser.parse_args(arguments)
    if not list(Path(options.images or "nowhere").glob("*.jpg")):
        print(f"skipped: no photos (*.jpg) in {options.images!r}; name their folder by --images=DIR")
        return 0
    with tempfile.TemporaryDirectory() as place:
        rows = measure(Path(options.images).absolute(), options.backbone, Path(place))
    print(tabulate(rows, headers="keys", floatfmt=".3f"))
    print(json.dumps({"benchmark": "galleries", "rows": rows}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
