"""Which images, and which labels: each collection is a function from ``config.features.images`` to a ``Collection``.

Listing a collection reads names only; images are decoded one by one, later, by ``Collection.read``. Image ids are
relative posix paths, unique within the collection, and never name the machine. Decoding is Pillow's.
"""

import csv as csv_files
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image, ImageOps

from fgis.errors import UserError
from fgis.features import store

SUFFIXES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Collection(NamedTuple):
    """The images of one data set: row ``i`` of every field describes the same image."""

    name: str
    image_ids: np.ndarray  # [n] str
    labels: Int[np.ndarray, " n"]
    read: Callable[[int], Image.Image]  # row -> RGB image, upright; any exception means that the image is bad
    coarse: Int[np.ndarray, " n"] | None = None  # coarse labels, where there are such: each holds whole labels


def load_collection(name: str, images: str) -> Collection:
    """List the images of collection ``name`` at ``images``; an unknown name or an unusable place is a UserError."""
    if name not in COLLECTIONS:
        raise UserError(f"config.features.collection: {name!r} is unknown; take one of {', '.join(COLLECTIONS)}")
    if not images:
        raise UserError(f"config.features.images: empty; set it to the images of collection {name!r}")
    return COLLECTIONS[name](images)


def fingerprint(collection: Collection) -> str:
    """Return a SHA-256 of the image ids, labels and coarse labels, in order; of no pixel."""
    columns = [collection.labels] if collection.coarse is None else [collection.labels, collection.coarse]
    rows = [[str(image_id), *map(int, row)] for image_id, *row in zip(collection.image_ids, *columns, strict=True)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def to_rgb(image: Image.Image) -> Image.Image:
    """Decode the first frame upright as 8-bit RGB.

    EXIF orientation is applied, 16-bit greys are scaled by 1/257, transparency is laid on white. Raises ValueError for
    floating-point pixels, whose range is not known, and whatever Pillow raises for a damaged file.
    """
    ImageOps.exif_transpose(image, in_place=True)  # a copy would cost as much time as decoding
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.float32)
        image = Image.fromarray(np.clip(np.round(pixels / 257), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    if image.mode != "RGB":
        return image.convert("RGB")
    image.load()  # before the file is closed
    return image


def read_image(source: str | Path | io.BytesIO) -> Image.Image:
    """Open one image file (or its bytes) as ``to_rgb`` describes."""
    with Image.open(source) as image:
        return to_rgb(image)


def folder(images: str) -> Collection:
    """Sub-folders as classes: the label is the index of the class's name in sorted order; nested files count."""
    root = _directory(images)
    stray = [p.name for p in sorted(root.iterdir()) if p.suffix.lower() in SUFFIXES]
    if stray:
        raise UserError(
            f"config.features.images: {images} holds images outside any class, {stray[0]!r} first of {len(stray)}; "
            "move each into the sub-folder of its class"
        )
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    pairs = []
    for label, name in enumerate(classes):
        files = [Path(top, f) for top, _, names in os.walk(root / name) for f in names if not f.startswith(".")]
        ids = sorted(f.relative_to(root).as_posix() for f in files if f.suffix.lower() in SUFFIXES)
        pairs += [(image_id, label) for image_id in ids]
    return _collect("folder", root, pairs, f"no image in any sub-folder of {images} (sub-folders are classes)")


def ukbench(images: str) -> Collection:
    """UKBench: ``ukbenchNNNNN.jpg``, in the folder or in its ``full/``; four views an object, label = number // 4."""
    root = _directory(images)
    found: dict[int, str] = {}
    for prefix in ("", "full"):
        for name in sorted(os.listdir(root / prefix)) if (root / prefix).is_dir() else ():
            match = re.fullmatch(r"ukbench(\d+)\.jpe?g", name, re.IGNORECASE)
            if match:
                found.setdefault(int(match[1]), (Path(prefix) / name).as_posix())
    pairs = [(found[number], number // 4) for number in sorted(found)]
    return _collect("ukbench", root, pairs, f"no ukbenchNNNNN.jpg in {images} or {images}/full")


def grocerystore(images: str) -> Collection:
    """GroceryStore: the lists train.txt, val.txt, test.txt of ``path, fine id, coarse id``; label = fine id."""
    root = _directory(images)
    rows: list[tuple[str, ...]] = []
    for name in ("train.txt", "val.txt", "test.txt"):
        if not (root / name).is_file():
            raise UserError(
                f"config.features.images: {images} has no {name}; name the folder that holds the three lists"
            )
        for number, line in enumerate((root / name).read_text(encoding="utf-8").splitlines(), 1):
            match = re.fullmatch(r"\s*(\S.*?)\s*,\s*(\d+)\s*,\s*(\d+)\s*", line)
            if match:
                rows.append(match.groups())
            elif line.strip():
                raise UserError(f"{root / name}:{number}: found {line!r}; write 'path, fine id, coarse id'")
    return _collect_texts("grocerystore", root, rows, images, f"the three lists in {images} are empty")


def csv(images: str) -> Collection:
    """A CSV file of ``path,label`` or ``path,label,coarse``, with or without that line as a header.

    Paths are relative to the file. Labels that are all integers are taken as they are; otherwise each is the index of
    its text in sorted order; so are coarse labels, and no label may stand with two of them.
    """
    path = Path(images)
    if not path.is_file():
        raise UserError(f"config.features.images: no CSV file {images}; name one with lines of 'path,label'")
    rows: list[tuple[str, ...]] = []
    width = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv_files.reader(file, strict=True), 1):
                cells = [cell.strip() for cell in row]
                if not any(cells):
                    continue
                width = width or len(cells)
                if width not in (2, 3) or len(cells) != width or not all(cells):
                    raise UserError(
                        f"{images}:{number}: found {','.join(row)!r}; write 'path,label' or 'path,label,coarse', "
                        "the same in every line"
                    )
                if number > 1 or [c.lower() for c in cells] != ["path", "label", "coarse"][:width]:
                    rows.append((Path(cells[0]).as_posix(), *cells[1:]))
    except (csv_files.Error, UnicodeDecodeError) as error:
        raise UserError(f"{images}: not a CSV file of 'path,label' in UTF-8 ({error}); mend or rewrite it") from error
    return _collect_texts("csv", path.parent, rows, images, f"no line in {images}")


def tfds(images: str) -> Collection:
    """A prepared TensorFlow Datasets split, without TensorFlow: ``BUILDER@SPLIT``.

    BUILDER is a name as tfds spells it (``name``, ``name/config:1.0.0``; data directory from ``TFDS_DATA_DIR``) or the
    directory of a prepared version. The data set must hold ``image`` and ``label`` and be stored as array_record.
    """
    builder_name, at, split = images.rpartition("@")
    if not at or not builder_name or not split:
        raise UserError(f"config.features.images: {images!r} is no 'BUILDER@SPLIT', such as 'stanford_dogs@test'")
    import tensorflow_datasets  # slow to import, and only this collection needs it

    try:
        prepared = Path(builder_name, "dataset_info.json").is_file()
        make = tensorflow_datasets.builder_from_directory if prepared else tensorflow_datasets.builder
        skip = {"image": tensorflow_datasets.decode.SkipDecoding()}
        source = make(builder_name).as_data_source(split, decoders=skip)
        labels = [int(example["label"]) for example in source]
    except Exception as error:  # tfds raises many kinds, TensorFlow's absence among them; each is the user's to mend
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"config.features.images: {images!r} cannot be read ({type(error).__name__}: {reason}); name a prepared "
            "data set with 'image' and 'label', made with download_and_prepare(file_format='array_record')"
        ) from error

    def read(row: int) -> Image.Image:
        return read_image(io.BytesIO(source[row]["image"]))

    pairs = [(f"{split}/{row:07d}", label) for row, label in enumerate(labels)]
    return _collect("tfds", Path(), pairs, f"split {split!r} of {builder_name} is empty")._replace(read=read)


def _directory(images: str) -> Path:
    if not Path(images).is_dir():
        raise UserError(f"config.features.images: no directory {images}; name the folder that holds the images")
    return Path(images)


def _collect(name: str, root: Path, pairs: Sequence[tuple[str, int]], empty: str) -> Collection:
    """Build the record from (image id, label) pairs, whose ids must differ; ``empty`` says why there is none."""
    if not pairs:
        raise UserError(f"config.features.images: {empty}; nothing to extract")
    ids = [image_id for image_id, _ in pairs]
    twice = next((image_id for image_id, count in Counter(ids).items() if count > 1), None)
    if twice is not None:
        raise UserError(f"config.features.images: image {twice!r} is listed twice; keep one of its lines")
    labels = np.array([label for _, label in pairs], np.int64)
    return Collection(name, np.array(ids), labels, lambda row: read_image(root / ids[row]))


def _collect_texts(name: str, root: Path, rows: Sequence[tuple[str, ...]], images: str, empty: str) -> Collection:
    """Build the record from (image id, label) or (image id, label, coarse label), as written in a list of the user."""
    ids, labels, *more = zip(*rows, strict=True) if rows else ((), ())
    found = _collect(name, root, list(zip(ids, _numbers(labels), strict=True)), empty)
    if not more:
        return found
    coarse = np.array(_numbers(more[0]), np.int64)
    split = store.find_split(found.labels, coarse)
    if split is not None:
        one, other = (f"{more[0][row]!r} (image {ids[row]!r})" for row in split)
        raise UserError(
            f"config.features.images: in {images}, label {labels[split[1]]!r} has coarse labels {one} and {other}; "
            "give all images of a label the same one"
        )
    return found._replace(coarse=coarse)


def _numbers(texts: Sequence[str]) -> list[int]:
    """Return texts as integers, where all are such and fit 64 bits; else the index of each in sorted order."""
    if all(re.fullmatch(r"[+-]?\d{1,19}", text) and abs(int(text)) < 2**63 for text in texts):
        return [int(text) for text in texts]
    index = {text: i for i, text in enumerate(sorted(set(texts)))}
    return [index[text] for text in texts]


COLLECTIONS: dict[str, Callable[[str], Collection]] = {
    "folder": folder,
    "ukbench": ukbench,
    "grocerystore": grocerystore,
    "csv": csv,
    "tfds": tfds,
}
