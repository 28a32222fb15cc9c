"""The lists of published data sets of metric learning, in the layout in which their authors give them out.

Each function reads the lists of one data set and returns the images of a split, ``train`` or ``test``, whose classes
are disjoint. No image is opened.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fgis.errors import UserError
from fgis.features.lists import Listed, read_text

SPLITS = ("train", "test")
CUB_TRAINING, CARS_TRAINING = 100, 98  # classes up to this number are for training, the others for testing
PRODUCTS = ("image_id", "class_id", "super_class_id", "path")  # columns of Stanford Online Products
SHOP = ("image_name", "item_id", "evaluation_status")  # and of In-shop
AGAIN = "unpack the data set again"
# In a process of its own: SciPy crashes on some damaged files, and a crash there is an exit code here.
READ_CARS = """
import json, sys
import numpy as np
from scipy.io import loadmat
content = loadmat(sys.argv[1], squeeze_me=True, struct_as_record=True)
images = [(str(one["relative_im_path"]), int(one["class"])) for one in np.atleast_1d(content["annotations"])]
print(json.dumps([[str(name) for name in np.atleast_1d(content["class_names"])], images]))
"""
Edges = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Split(NamedTuple):
    """The images of one split."""

    root: Path  # their ids are paths below it
    listed: list[Listed]
    is_query: Sequence[bool] | None = None  # by image; None where every image is a query and in the gallery
    boxes: Sequence[Edges | None] = ()  # by image: the part of it that is meant; none where whole images are


def cub(root: Path, split: str) -> Split:
    """CUB-200-2011: the folder with images.txt and image_class_labels.txt; classes 1 to 100 are for training.

    Reference: Wah, Branson, Welinder, Perona and Belongie, The Caltech-UCSD Birds-200-2011 Dataset, 2011; the split is
    that of Oh Song, Xiang, Jegelka and Savarese, CVPR 2016.
    """
    classes = {number: name for _, (number, name) in _lines(root / "classes.txt", 2)}
    labels = {number: (place, label) for place, (number, label) in _lines(root / "image_class_labels.txt", 2)}
    listed = []
    for place, (number, path) in _lines(root / "images.txt", 2):
        if number not in labels or labels[number][1] not in classes:
            raise UserError(f"{place}: image {number} has no class in image_class_labels.txt and classes.txt; {AGAIN}")
        label = labels[number][1]
        if (_whole(labels[number][0], label) <= CUB_TRAINING) == (split == "train"):
            listed.append(Listed(place, path, classes[label], None))
    return Split(root / "images", listed)


def cars196(root: Path, split: str) -> Split:
    """Cars196: the folder with cars_annos.mat and car_ims; classes 1 to 98 are for training.

    Reference: Krause, Stark, Deng and Fei-Fei, 3D Object Representations for Fine-Grained Categorization, 2013; the
    split is that of Oh Song, Xiang, Jegelka and Savarese, CVPR 2016.
    """
    path = root / "cars_annos.mat"
    refused = lambda reason: UserError(f"{path}: no annotations of Cars196 ({reason}); name the folder that holds them")
    try:
        path.open("rb").close()
    except OSError as error:
        raise refused(error.strerror) from error
    read = subprocess.run([sys.executable, "-c", READ_CARS, path], capture_output=True, text=True)
    if read.returncode:
        raise refused(read.stderr.strip().rpartition("\n")[2][:160] or "it is damaged")
    names, images = json.loads(read.stdout)
    if not all(1 <= number <= len(names) for _, number in images):
        raise refused(f"a class beyond its {len(names)} names")
    listed = [
        Listed(f"{path}:{row}", image_id, names[number - 1], None)
        for row, (image_id, number) in enumerate(images, 1)
        if (number <= CARS_TRAINING) == (split == "train")
    ]
    return Split(root, listed)


def online_products(root: Path, split: str) -> Split:
    """Stanford Online Products: the folder with Ebay_train.txt and Ebay_test.txt; super-classes are coarse labels.

    Reference: Oh Song, Xiang, Jegelka and Savarese, Deep Metric Learning via Lifted Structured Feature Embedding, CVPR
    2016.
    """
    path = root / f"Ebay_{split}.txt"
    lines = _lines(path, len(PRODUCTS))
    _require_header(next(lines, (f"{path}:1", ())), PRODUCTS)
    listed = []
    for place, (_, label, coarse, image_id) in lines:
        listed.append(Listed(place, image_id, str(_whole(place, label)), str(_whole(place, coarse))))
    return Split(root, listed)


def in_shop(root: Path, split: str) -> Split:
    """In-shop Clothes Retrieval: list_eval_partition.txt, here or in Eval, and the folder img, here or in Img.

    Items are labels. The split ``test`` holds what the list calls query and gallery.

    Reference: Liu, Luo, Qiu, Wang and Tang, DeepFashion, CVPR 2016.
    """
    name = "list_eval_partition.txt"
    path = next((found for found in (root / "Eval" / name, root / name) if found.is_file()), root / "Eval" / name)
    lines = _lines(path)
    next(lines, None)  # the number of images
    _require_header(next(lines, (f"{path}:2", ())), SHOP)
    wanted = ("train",) if split == "train" else ("query", "gallery")
    listed, is_query = [], []
    for place, cells in lines:
        if len(cells) != len(SHOP) or cells[2] not in ("train", "query", "gallery"):
            raise UserError(f"{place}: found {' '.join(cells)!r}; write 'image_name item_id train|query|gallery'")
        if cells[2] in wanted:
            listed.append(Listed(place, cells[0], cells[1], None))
            is_query.append(cells[2] == "query")
    folder = root / "Img" if (root / "Img" / "img").is_dir() else root
    return Split(folder, listed, is_query if split == "test" else None)


def _lines(path: Path, columns: int = 0) -> Iterator[tuple[str, tuple[str, ...]]]:
    """``FILE:LINE`` and the cells of each line that is not empty; the last of ``columns`` may hold spaces."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name the folder that the data set was unpacked into")
    for number, line in enumerate(read_text(path).splitlines(), 1):
        cells = tuple(line.split(None, columns - 1 if columns else -1))
        if cells and columns and len(cells) != columns:
            raise UserError(f"{path}:{number}: found {line!r}; {columns} columns belong there: {AGAIN}")
        if cells:
            yield f"{path}:{number}", tuple(cell.strip() for cell in cells)


def _require_header(line: tuple[str, tuple[str, ...]], columns: tuple[str, ...]) -> None:
    place, cells = line
    if cells != columns:
        raise UserError(f"{place}: found {' '.join(cells)!r}; the header {' '.join(columns)!r} belongs there: {AGAIN}")


def _whole(place: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text):
        raise UserError(f"{place}: {text!r} is no number of a class; {AGAIN}")
    return int(text)


STANDARD_SETS: dict[str, Callable[[Path, str], Split]] = {
    "cub": cub,
    "cars196": cars196,
    "online_products": online_products,
    "in_shop": in_shop,
}
