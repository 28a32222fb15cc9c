"""Signals to an extraction of 224 images in seven batches: imports, every batch, the writing of the file, exit."""

import random
from collections.abc import Iterator
from pathlib import Path

from tests.faults import victims
from tests.faults.victims import Moment, Struck, Victim
from tests.gallery.photos import TINY, save
from tests.tiny import CONFIG

IMAGES, BATCH, MOST = 224, 32, 6  # images; images of a batch; signals to one extraction, which then finishes


def command_of(images: Path, path: Path) -> list[str]:
    return [
        CONFIG,
        "--mode=extract",
        *TINY,
        "--config.features.collection=folder",
        f"--config.features.images={images}",
        f"--config.features.path={path}",
        "--config.train.devices=1",
    ]


def moments(path: Path, rng: random.Random) -> list[Moment]:
    """While it imports, loads the network, describes batches, writes the file and leaves."""
    journal, more = Path(f"{path}.journal.partial"), rng.randint(1, 3)
    size = lambda: journal.stat().st_size if journal.exists() else 0
    record = BATCH * (768 * 4 + 1) + 4
    before = size()

    def described(victim: Victim) -> bool:
        return size() >= before + more * record

    return [
        Moment("imports", lambda victim: True, 2.0),
        Moment("loading", lambda victim: journal.exists(), 1.0),
        Moment("batch", described, 0.1),
        Moment("batch", described, 0.1),
        Moment("writing", lambda victim: Path(f"{path}.partial").exists() or path.exists(), 0.01),
        Moment("exit", lambda victim: path.exists(), 0.7),
    ]


def run_kills(place: Path, rng: random.Random) -> Iterator[Struck]:
    """Extractions that are struck again and again until they are finished, without end; yields each strike."""
    images, whole, number = place / "images", place / "whole" / "features.h5", 0
    for image in range(IMAGES):
        save(images / f"{image % 7}" / f"{image}.jpg", image)
    victims.finish(command_of(images, whole), place / "logs")
    while True:
        path, number = place / f"run{number}" / "features.h5", number + 1
        command = command_of(images, path)
        for _ in range(MOST):
            moment = rng.choice(moments(path, rng))
            struck = victims.strike(command, place / "logs", moment, rng.choice(victims.SIGNALS), rng)
            if path.exists():
                assert path.read_bytes() == whole.read_bytes()
            if struck.moment:
                yield struck
            if path.exists():
                break
        victims.finish(command, place / "logs")
        assert path.read_bytes() == whole.read_bytes()
        assert not victims.leftovers(path.parent), victims.leftovers(path.parent)
