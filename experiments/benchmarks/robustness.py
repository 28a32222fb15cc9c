"""Searching with a photo that was tampered with: all views of 40 UKBench objects, each cropped, turned and squeezed.

    python -m experiments.benchmarks.robustness --images=DIR        # DIR: the images of UKBench, ukbench00000.jpg ...

Each query is a photo of which 85 % of either side is kept (around the centre, and at a random place), turned by 5
degrees about its middle, and saved at JPEG quality 50; it is then described as ``--mode=search`` does, without a
trained head, and searched among the bundled features of all 1,000 photos. The score is the share of the first four
places that the object's own four views fill (N-S / 4), with a 95 % interval that resamples objects. Two CPU cores need
about 20 seconds.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from tabulate import tabulate

from fgis.errors import UserError
from fgis.experiment.config_file import load_config
from fgis.experiment.run import Run
from fgis.experiment.start import prepare_jax
from fgis.features.collection import load_collection
from fgis.features.images import read_image
from fgis.retrieval.intervals import summarize
from fgis.retrieval.search import prepare_gallery, search

OBJECTS, SEED, RESAMPLES = 40, 0, 2000
KEPT, DEGREES, QUALITY = 0.85, 5, 50
WANTED = 0.95


def centre(rng: np.random.Generator) -> tuple[float, float]:
    """Where the part that is kept lies: 0 is the left (or upper) edge, 1 the right (or lower) one."""
    del rng
    return 0.5, 0.5


def anywhere(rng: np.random.Generator) -> tuple[float, float]:
    """The same at random."""
    x, y = rng.random(2)
    return float(x), float(y)


CROPS: dict[str, Callable[[np.random.Generator], tuple[float, float]]] = {"centre": centre, "anywhere": anywhere}


def tamper(image: Image.Image, place: tuple[float, float]) -> Image.Image:
    """Crop to ``KEPT`` of either side at ``place``, turn by ``DEGREES`` (corners become black), save and read again."""
    width, height = (round(KEPT * side) for side in image.size)
    left, top = round(place[0] * (image.width - width)), round(place[1] * (image.height - height))
    buffer = io.BytesIO()
    part = image.crop((left, top, left + width, top + height)).rotate(DEGREES, Image.Resampling.BICUBIC)
    part.save(buffer, "JPEG", quality=QUALITY)
    return read_image(buffer)


def measure(run: Run, images: str, queries: Int[np.ndarray, " q"]) -> dict[str, Float[np.ndarray, " q"]]:
    """For either crop and each query, the share of the first four places that its object's own views fill.

    Raises:
      UserError: the folder ``images`` cannot be read, or lacks one of the queries.
    """
    try:
        rows, collection = run.rows, load_collection(run.settings.features.collection, images)
    except ValueError as error:
        raise UserError(f"--{error}; name the folder of all images by --images=DIR") from None
    place = {Path(image_id).name: i for i, image_id in enumerate(collection.image_ids)}
    missing = [name for row in queries if (name := Path(rows.image_ids[row]).name) not in place]
    if missing:
        more = f"and {len(missing) - 1} more are missing" if len(missing) > 1 else "which is the only one missing"
        raise UserError(f"{images} has no {missing[0]}, {more}; name the folder of all images by --images=DIR")
    gallery = prepare_gallery(run.features, run.scoring.distance)
    shares: dict[str, list[float]] = {name: [] for name in CROPS}
    rng = np.random.default_rng(SEED)
    for row in queries:
        image = collection.read(place[Path(rows.image_ids[row]).name])
        for name, choose in CROPS.items():
            query = np.asarray(run.scoring.prepare(run.describe(tamper(image, choose(rng)))))
            found = search(query, gallery, 4).rows[0]
            shares[name].append(float(np.mean(rows.labels[found] == rows.labels[row])))
    return {name: np.array(values) for name, values in shares.items()}


def draw_queries(labels: Int[np.ndarray, " n"], objects: int) -> Int[np.ndarray, " q"]:
    """The rows of all images of so many objects, drawn by a fixed seed."""
    drawn = np.random.default_rng(SEED).permutation(np.unique(labels))[:objects]
    return np.flatnonzero(np.isin(labels, drawn))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for either kind of crop, and the JSON line; 1 where a share is below ``WANTED``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default="", help="the folder that holds ukbench00000.jpg ...; skips without it")
    parser.add_argument("--objects", type=int, default=OBJECTS)
    options = parser.parse_args(arguments)
    if not Path(options.images or "nowhere").is_dir():
        print(f"skipped: no images of UKBench at {options.images!r}; name their folder by --images=DIR")
        return 0
    prepare_jax()
    run = Run.open(load_config("ukbench"))
    queries = draw_queries(run.rows.labels, options.objects)
    try:
        measured = measure(run, options.images, queries)
    except UserError as error:
        print(f"skipped: {error}")
        return 0
    classes = run.rows.labels[queries]
    summaries = {name: summarize(shares[None], classes, RESAMPLES, SEED) for name, shares in measured.items()}
    rows = [
        {"case": name, "queries": len(classes), "share": summary["mean"], "ci95": summary["ci95"], "wanted": WANTED}
        for name, summary in summaries.items()
    ]
    print(tabulate(rows, headers="keys", floatfmt=".4f"))
    print(json.dumps({"benchmark": "robustness", "rows": rows}), flush=True)
    return 0 if all(shares.mean() >= WANTED for shares in measured.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
