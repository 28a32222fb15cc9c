"""The code blocks of README and docs, in their order."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tests.tiny import ROOT

FENCE = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """One block: ``output`` is the text block that follows a block of Python or bash directly, if any."""

    page: str
    language: str
    title: str
    text: str
    output: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = list(FENCE.finditer(text))
    blocks = []
    for block, following in zip(found, [*found[1:], None]):
        is_output = (
            following is not None and following[1] == "text" and not text[block.end() : following.start()].strip()
        )
        blocks.append(Block(str(page.relative_to(ROOT)), *block.groups(""), following[3] if is_output else None))
    return blocks


def all_blocks() -> list[Block]:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [block for page in pages for block in blocks_of(page)]


def bash_lines() -> list[tuple[str, str]]:
    """(page, line) of every command, README first, each once."""
    found: dict[str, str] = {}
    for block in all_blocks():
        if block.language == "bash":
            for line in block.text.splitlines():
                found.setdefault(line, block.page)
    return [(page, line) for line, page in found.items()]


def write_photo(path: Path, seed: int) -> None:
    """Coloured patches, the same for the same seed: a picture that a small network tells from others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 60), Image.Resampling.BICUBIC).save(path)


def write_photos(folder: Path, objects: int = 6, views: int = 2) -> None:
    """One sub-folder per object."""
    for label in range(objects):
        for view in range(views):
            write_photo(folder / f"object{label}" / f"{view}.jpg", label)
