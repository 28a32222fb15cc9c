"""Images to features on a CPU: ours against the same network with XLA's own convolutions.

``python -m experiments.benchmarks.extraction [--images=FOLDER] [--weights=imagenet]``, about two minutes on two cores.
Case ``mobilenet_v2`` is the whole way from JPEG files: decoded by two threads, squashed to 224 x 224, batches of 32,
average-pooled; both sides decode alike. Case ``mobilenet_v2_network`` leaves the decoding out. Without a folder, JPEGs
of 640 x 480 are generated; random weights take as long as trained ones. Bars: ratio 8, and 45 images/s from files.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.benchmarks import timing
from fgis.features import backbones
from fgis.features.collection import Collection, decoded_batches
from fgis.features.description import Settings, fit_image, load_extractor
from fgis.features.images import read_image

SIZE, BATCH = (224, 224), 32


def make_from_files(ours: bool, weights: str, files: list[str]) -> Callable[[], None]:
    """Return the extraction of all files, without writing a feature file."""
    network, settings = make_network(ours, weights), Settings("mobilenet_v2", SIZE, weights)
    ids = np.array([Path(file).name for file in files])
    collection = Collection("files", ids, np.zeros(len(files), np.int64), lambda row: read_image(files[row]))

    def run() -> None:
        for images in decoded_batches(collection, BATCH, 0, lambda image: fit_image(image, settings)):
            np.asarray(network(np.stack([image[0] for image in images if not isinstance(image, Exception)])))

    return run


def make_from_arrays(ours: bool, weights: str, batches: int) -> Callable[[], None]:
    """Return the network on images that are in memory."""
    network = make_network(ours, weights)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *SIZE, 3)).astype(np.uint8)

    def run() -> None:
        for _ in range(batches):
            np.asarray(network(images))

    return run


def make_network(ours: bool, weights: str) -> Callable[[np.ndarray], jax.Array]:
    """Return uint8 [32, 224, 224, 3] -> [32, 1280], as ``extract`` runs it or as ``jax.jit`` alone does."""
    if ours:
        extractor = load_extractor(Settings("mobilenet_v2", SIZE, weights))
        return lambda images: extractor.run((images,))
    apply, params, _ = backbones.load_backbone("mobilenet_v2", weights)
    plain = jax.jit(lambda params, images: jnp.mean(apply(params, images), (1, 2)))
    on_device = jax.device_put(params)
    return lambda images: plain(on_device, images)


@contextmanager
def jpegs(folder: str, count: int) -> Iterator[list[str]]:
    """Yield ``count`` JPEG files of the folder, or generated ones that take about as long to decode as photographs."""
    if folder:
        files = sorted(str(path) for path in Path(folder).rglob("*.jpg"))[:count]
        if len(files) < count:
            raise SystemExit(f"--images: {len(files)} .jpg files in {folder}; {count} are needed")
        yield files
        return
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        files = []
        for number in range(count):
            coarse = Image.fromarray(generator.integers(0, 256, (60, 80, 3)).astype(np.uint8))
            image = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.int16)
            image = np.clip(image + generator.integers(-8, 9, image.shape), 0, 255).astype(np.uint8)
            files.append(f"{place}/{number:05d}.jpg")
            Image.fromarray(image).save(files[-1], quality=90)
        yield files


def main() -> None:
    """Measure both cases and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default="", help="a folder of JPEG files")
    parser.add_argument("--weights", default="none", help="imagenet, a weights file, or none")
    parser.add_argument("--batches", type=int, default=4, help="batches of 32 in one turn")
    options = parser.parse_args()
    count = options.batches * BATCH
    peer_name = "jax.jit, XLA's own convolutions"
    with jpegs(options.images, count) as files:
        sides = [(make_from_files, (ours, options.weights, files)) for ours in (True, False)]
        whole = timing.interleave(sides)
    network = timing.interleave([(make_from_arrays, (o, options.weights, options.batches)) for o in (True, False)])
    rows = [
        timing.row(case, ours, peer_name, peer, ours_images_per_s=round(count / ours.seconds, 1))
        for case, (ours, peer) in (("mobilenet_v2", whole), ("mobilenet_v2_network", network))
    ]
    timing.report("extraction", rows)


if __name__ == "__main__":
    main()
