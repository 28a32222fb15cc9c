"""The images of a data set: their ids, their labels, and the names of these.

Each collection is a function from a text that says where its images are to a ``Collection``. Listing a collection reads
names only; images are decoded one by one, later, by ``Collection.read``. Image ids are relative posix paths, unique
within the collection. Files and folders whose name begins with a dot are ignored.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from fgis.errors import UserError
from fgis.features.images import SUFFIXES, read_image
from fgis.features.labels import find_split, number_labels
from fgis.features.landmark_sets import LANDMARK_SETS, QUERY
from fgis.features.lists import Listed, find_file, has_header, read_class_names, read_csv, read_text
from fgis.features.standard_sets import SPLITS, STANDARD_SETS, Split
from fgis.ranges import nearest

DECODING_THREADS = 2
Decoded = tuple[np.ndarray, ...] | Exception  # what became of an image, or why it is bad


class Collection(NamedTuple):
    """The images of one data set: row ``i`` of every field but ``label_names`` describes the same image."""

    name: str
    image_ids: np.ndarray  # [n] str
    labels: Int[np.ndarray, " n"]
    read: Callable[[int], Image.Image]  # row -> RGB image, upright; any exception means that the image is bad
    coarse: Int[np.ndarray, " n"] | None = None  # coarse labels, where there are such: each holds whole labels
    label_names: tuple[str, ...] | None = None  # the name of label 0, 1, ..., where labels have names
    is_query: Bool[np.ndarray, " n"] | None = None  # queries, or else in the gallery; None: every image is both
    find: Callable[[int], Path] | None = None  # row -> the file of an image, where images are files


def load_collection(name: str, images: str) -> Collection:
    """List the images of a collection.

    Args:
      name: a key of ``COLLECTIONS``.
      images: where the images are, in the form that the collection wants; ``~`` is expanded.

    Returns:
      The collection, of at least one image.

    Raises:
      ValueError: an unknown name, or ``images`` that hold no such collection; the message begins with ``collection:``
        or ``images:``.
      UserError: a line of a list cannot be used; the message begins with the file and the line.
    """
    if name not in COLLECTIONS:
        raise ValueError(f"collection: {name!r} is unknown; {nearest(name, COLLECTIONS)}")
    if not images:
        raise ValueError(f"images: empty; name the place of the images of collection {name!r}")
    return COLLECTIONS[name](os.path.expanduser(images))


def fingerprint(collection: Collection) -> str:
    """SHA-256 of the image ids, labels and coarse labels, in order; no pixel and no label name enters it."""
    columns = [collection.labels] if collection.coarse is None else [collection.labels, collection.coarse]
    rows = [[str(image_id), *map(int, row)] for image_id, *row in zip(collection.image_ids, *columns, strict=True)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def take_rows(collection: Collection, rows: Int[np.ndarray, " m"]) -> Collection:
    """The collection of some of the images, in the order of ``rows``."""
    find = collection.find
    pick = lambda values: None if values is None else values[rows]
    return collection._replace(
        image_ids=collection.image_ids[rows],
        labels=collection.labels[rows],
        coarse=pick(collection.coarse),
        is_query=pick(collection.is_query),
        read=lambda row: collection.read(int(rows[row])),
        find=None if find is None else lambda row: find(int(rows[row])),
    )


def decoded_batches(
    collection: Collection, batch_size: int, start: int, fit: Callable[[Image.Image], tuple[np.ndarray, ...]]
) -> Iterator[list[Decoded]]:
    """Decode and fit the images of each batch from number ``start`` on, one batch ahead of the one that is used.

    Yields:
      One entry per image: the arrays that ``fit`` returns, or the exception that the image raises.
    """

    def decode(row: int) -> Decoded:
        try:
            return fit(collection.read(row))
        except Exception as error:  # decoders raise whatever the damage leads them to; the caller names the image
            return error

    total = len(collection.labels)
    batches = [range(first, min(first + batch_size, total)) for first in range(start * batch_size, total, batch_size)]
    pool = ThreadPoolExecutor(DECODING_THREADS)
    try:
        coming: list[Future[Decoded]] = [pool.submit(decode, row) for row in batches[0]] if batches else []
        for number in range(len(batches)):
            images = [future.result() for future in coming]
            coming = [pool.submit(decode, row) for row in batches[number + 1]] if number + 1 < len(batches) else []
            yield images
    finally:
        pool.shutdown(cancel_futures=True)


def folder(images: str) -> Collection:
    """Sub-folders as classes, whatever their names: label = index of the class's name in sorted order.

    Images may lie in further folders below that of their class. A class without images keeps its label.
    """
    root = _directory(images)
    visible = sorted((path for path in root.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    stray = [path.name for path in visible if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if stray:
        raise ValueError(
            f"images: {images} holds images outside any class, {stray[0]!r} first of {len(stray)}; move each into the "
            "sub-folder of its class"
        )
    classes = [path.name for path in visible if path.is_dir()]
    ids, labels = [], []
    for label, name in enumerate(classes):
        members = sorted(path.relative_to(root).as_posix() for path in _image_files(root / name))
        ids += members
        labels += [label] * len(members)
    if not ids:
        raise ValueError(f"images: no image in any sub-folder of {images} (sub-folders are classes)")
    return _from_files("folder", root, ids, labels)._replace(label_names=tuple(classes))


def ukbench(images: str) -> Collection:
    """UKBench: ``ukbenchNNNNN.jpg``, in the folder or in its ``full/``; four views an object, label = number // 4."""
    root = _directory(images)
    found: dict[int, str] = {}
    for prefix in ("", "full"):
        for name in sorted(os.listdir(root / prefix)) if (root / prefix).is_dir() else ():
            match = re.fullmatch(r"ukbench(\d+)\.jpe?g", name, re.IGNORECASE)
            if match:
                found.setdefault(int(match[1]), (Path(prefix) / name).as_posix())
    if not found:
        raise ValueError(f"images: no ukbenchNNNNN.jpg in {images} or {images}/full")
    numbers = sorted(found)
    return _from_files("ukbench", root, [found[number] for number in numbers], [number // 4 for number in numbers])


def grocerystore(images: str) -> Collection:
    """GroceryStore: the lists train.txt, val.txt, test.txt of ``path, fine id, coarse id``; label = fine id.

    Labels have the names of ``classes.csv``, where that lies beside the lists.
    """
    root = _directory(images)
    listed: list[Listed] = []
    for name in ("train.txt", "val.txt", "test.txt"):
        if not (root / name).is_file():
            raise ValueError(f"images: {images} has no {name}; name the folder that holds the three lists")
        for number, line in enumerate(read_text(root / name).splitlines(), 1):
            match = re.fullmatch(r"\s*(\S.*?)\s*,\s*(\d+)\s*,\s*(\d+)\s*", line)
            if match:
                listed.append(Listed(f"{root / name}:{number}", *match.groups()))
            elif line.strip():
                raise UserError(f"{root / name}:{number}: found {line!r}; write 'path, fine id, coarse id'")
    if not listed:
        raise ValueError(f"images: the three lists in {images} are empty")
    found = _from_list("grocerystore", root, listed)
    names = root / "classes.csv"
    return found._replace(label_names=read_class_names(names, found.labels)) if names.is_file() else found


def csv(images: str) -> Collection:
    """A CSV file of ``path,label`` or ``path,label,coarse``; paths are relative to the file.

    Labels that are all integers are taken as they are; otherwise each is the index of its text in sorted order, and
    these texts are the label names. So are coarse labels, and no label may have two of them.

    The first line is a header where its path has no suffix of an image, no such file exists, and either the path is one
    of ``HEADERS`` or the path of the second line exists.
    """
    path = Path(images)
    if not path.is_file():
        raise ValueError(f"images: no CSV file {images}; name one with lines of 'path,label'")
    lines = list(read_csv(path))
    width = len(lines[0][1]) if lines else 0
    for place, cells in lines:
        if width not in (2, 3) or len(cells) != width or not all(cells):
            raise UserError(
                f"{place}: found {','.join(cells)!r}; write 'path,label' or 'path,label,coarse', the same in every line"
            )
    paths = [cells[0] for _, cells in lines]
    listed = [
        Listed(place, Path(cells[0]).as_posix(), cells[1], cells[2] if width == 3 else None)
        for place, cells in lines[1 if has_header(path.parent, paths) else 0 :]
    ]
    if not listed:
        raise ValueError(f"images: no image in {images}; write lines of 'path,label'")
    return _from_list("csv", path.parent, listed)


def tfds(images: str) -> Collection:
    """A prepared TensorFlow Datasets split, without TensorFlow: ``BUILDER@SPLIT``.

    BUILDER is a name as tfds spells it (``name``, ``name/config:1.0.0``; data directory from ``TFDS_DATA_DIR``) or the
    directory of a prepared version. The data set must hold ``image`` and ``label`` and be stored as array_record.
    """
    builder_name, at, split = images.rpartition("@")
    if not at or not builder_name or not split:
        raise ValueError(f"images: {images!r} is no 'BUILDER@SPLIT', such as 'stanford_dogs@test'")
    import tensorflow_datasets  # slow to import, and only this collection needs it

    try:
        prepared = Path(builder_name, "dataset_info.json").is_file()
        make = tensorflow_datasets.builder_from_directory if prepared else tensorflow_datasets.builder
        skip = {"image": tensorflow_datasets.decode.SkipDecoding()}
        builder = make(builder_name)
        source = builder.as_data_source(split, decoders=skip)
        labels = np.array([int(example["label"]) for example in source], np.int64)
    except Exception as error:  # tfds raises many kinds, TensorFlow's absence among them
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"images: {images!r} cannot be read ({type(error).__name__}: {reason}); name a prepared data set with "
            "'image' and 'label', made with download_and_prepare(file_format='array_record')"
        ) from error
    if not len(labels):
        raise ValueError(f"images: split {split!r} of {builder_name} is empty")
    ids = np.array([f"{split}/{row:07d}" for row in range(len(labels))])
    names = tuple(getattr(builder.info.features["label"], "names", ()))
    if names == tuple(map(str, range(len(names)))):  # what tfds makes up where labels have no names
        names = ()
    return Collection(
        "tfds", ids, labels, lambda row: read_image(io.BytesIO(source[row]["image"])), None, names or None
    )


def split_of_set(name: str, images: str) -> Collection:
    """One split of a published data set in its own layout: ``DIR@train`` or ``DIR@test``; classes are disjoint."""
    place, at, split = images.rpartition("@")
    if not at or split not in SPLITS:
        raise ValueError(
            f"images: {images!r} names no split; write its folder and @train or @test, such as {name}@train"
        )
    found = STANDARD_SETS[name](_directory(place), split)
    if not found.listed:
        raise ValueError(f"images: {place} lists no image of the split {split}; unpack the data set again")
    return _from_split(name, found)


def whole_set(name: str, images: str) -> Collection:
    """A published data set in its own layout, whose images are all for testing."""
    return _from_split(name, LANDMARK_SETS[name](_directory(images)))


def _directory(images: str) -> Path:
    if not Path(images).is_dir():
        raise ValueError(f"images: no directory {images}; name the folder that holds the images")
    return Path(images)


def _image_files(directory: Path) -> Iterator[Path]:
    """The visible image files below a directory, at any depth."""
    for top, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(top, name)


def _from_files(name: str, root: Path, ids: Sequence[str], labels: Sequence[int]) -> Collection:
    """The record of images that are files below ``root``.

    Raises:
      ValueError: a name is not UTF-8, which no feature file can hold.
    """
    for image_id in ids:
        if not image_id.isascii() and image_id != image_id.encode(errors="ignore").decode():
            shown = os.fsencode(image_id).decode(errors="backslashreplace")
            raise ValueError(f"images: the name '{shown}' in {root} is not UTF-8; rename it")
    find = lambda row: find_file(root, ids[row])
    return Collection(name, np.array(ids), np.array(labels, np.int64), lambda row: read_image(find(row)), find=find)


def _from_list(name: str, root: Path, listed: Sequence[Listed]) -> Collection:
    """The record of images that a list names; ids that repeat and labels with two coarse labels are UserErrors."""
    ids = [one.image_id for one in listed]
    first: dict[str, str] = {}
    for one in listed:
        if one.image_id in first:
            raise UserError(
                f"{one.place}: image {one.image_id!r} is listed twice, first at {first[one.image_id]}; keep one line"
            )
        first[one.image_id] = one.place
    labels, names = number_labels([one.label for one in listed])
    found = _from_files(name, root, ids, labels)._replace(label_names=names)
    if listed[0].coarse is None:
        return found
    coarse = np.array(number_labels([str(one.coarse) for one in listed])[0], np.int64)
    split = find_split(found.labels, coarse)
    if split is not None:
        one, other = (listed[row] for row in split)
        raise UserError(
            f"{other.place}: label {other.label!r} has coarse label {other.coarse!r} (image {other.image_id!r}), but "
            f"{one.coarse!r} at {one.place} (image {one.image_id!r}); give all images of a label the same one"
        )
    return found._replace(coarse=coarse)


def _from_split(name: str, found: Split) -> Collection:
    """The record of a split; images with a box are cut to it."""

    def read(row: int) -> Image.Image:
        image = read_image(find_file(found.root, found.listed[row].image_id.removeprefix(QUERY)))
        box = found.boxes[row] if found.boxes else None
        return image.crop(box) if box else image

    is_query = None if found.is_query is None else np.array(found.is_query)
    return _from_list(name, found.root, found.listed)._replace(read=read, is_query=is_query)


COLLECTIONS: dict[str, Callable[[str], Collection]] = {
    "folder": folder,
    "ukbench": ukbench,
    "grocerystore": grocerystore,
    "csv": csv,
    "tfds": tfds,
    **{name: partial(split_of_set, name) for name in STANDARD_SETS},
    **{name: partial(whole_set, name) for name in LANDMARK_SETS},
}
