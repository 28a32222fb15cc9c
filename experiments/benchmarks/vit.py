"""DINOv2 ViT-S/14 on a CPU: ours against transformers on torch, on the same random weights and threads.

``python -m experiments.benchmarks.vit``, some minutes on two cores; the peer is in the extra ``oracles``. Images of
224 x 224 are in memory, so nothing is decoded; features are class tokens. The peer runs the number of images at a time
that suits it best. Both sides first compute the same features. Bar: ratio 1.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import timing
from fgis.features.backbones import BACKBONES, PREPROCESSING
from fgis.features.backbones.hub_cache import WEIGHTS
from fgis.features.backbones.transformer_files import DINOV2, file_names, random_weights, tower_shapes, towers
from fgis.features.description import Settings, load_extractor

NAME, SIZE, BATCH = "dinov2_s14", (224, 224), 32
TOGETHER = (1, 4, 8, 32)  # images that the peer may run at a time


def make_images() -> np.ndarray:
    """Return [32, 224, 224, 3] uint8."""
    return np.random.default_rng(0).integers(0, 256, (BATCH, *SIZE, 3)).astype(np.uint8)


def make_ours(count: int) -> Callable[[], np.ndarray]:
    """Return ``count`` batches as ``extract`` runs them; the features of the last."""
    extractor, batch = load_extractor(Settings(NAME, SIZE, "none", pooling="token")), make_images()

    def run() -> np.ndarray:
        return [np.asarray(extractor.run((batch,))) for _ in range(count)][-1]

    return run


def make_torch(count: int, together: int) -> Callable[[], np.ndarray]:
    """Return the same by transformers and torch, ``together`` images at a time."""
    import torch
    import transformers
    from safetensors.numpy import save_file

    torch.set_num_threads(os.cpu_count() or 1)
    tower, _ = towers(BACKBONES[NAME])
    config: Any = transformers.Dinov2Config()
    config.update({"hidden_size": tower.width, "num_attention_heads": tower.width // 64, "image_size": 518})
    names = file_names(tower, DINOV2.layout)
    weights = {names[short]: value for short, value in random_weights(tower_shapes(tower)).items()}
    for name in (names["class"], names["positions"]):
        weights[name] = weights[name].reshape(1, -1, tower.width)
    with tempfile.TemporaryDirectory() as folder:
        save_file(weights | {"embeddings.mask_token": np.zeros((1, tower.width), np.float32)}, f"{folder}/{WEIGHTS}")
        model = transformers.Dinov2Model.from_pretrained(folder, config=config).eval()
    prepared = np.array(PREPROCESSING[BACKBONES[NAME].preprocessing](jnp.float32(make_images())))
    pixels = torch.from_numpy(prepared).permute(0, 3, 1, 2).contiguous()

    def run() -> np.ndarray:
        features: list[np.ndarray] = []
        with torch.inference_mode():
            for _ in range(count):
                starts = range(0, BATCH, together)
                features = [model(pixels[at : at + together]).last_hidden_state[:, 0].numpy() for at in starts]
        return np.concatenate(features)

    return run


def check() -> None:
    """Refuse to compare sides that do not compute the same.

    Raises:
      SystemExit: features of the peer differ by more than 1e-3.
    """
    ours, theirs = (timing.apart(run_once, make, *more) for make, *more in ((make_ours, 1), (make_torch, 1, 4)))
    difference = float(np.max(np.abs(theirs - ours)))
    print(f"torch: features differ by at most {difference:.1e}, values reach {ours.max():.1f}")
    if not difference < 1e-3:
        raise SystemExit("torch: features differ")


def run_once(make: timing.Make, *arguments: Any) -> np.ndarray:
    """Return the features that one side computes."""
    return make(*arguments)()


def main() -> None:
    """Check that both sides compute the same, measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    options = parser.parse_args()
    check()
    sides: list[tuple[timing.Make, tuple]] = [(make_ours, (1,)), *((make_torch, (1, number)) for number in TOGETHER)]
    ours, *peers = timing.interleave(sides, repeats=options.repeats)
    best = min(peers, key=lambda measured: measured.seconds)
    peer = f"transformers on torch, {TOGETHER[peers.index(best)]} at a time"
    timing.report("vit", [timing.row(NAME, ours, peer, best, ours_images_per_s=round(BATCH / ours.seconds, 1))])


if __name__ == "__main__":
    main()
