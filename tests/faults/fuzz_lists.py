"""Fuzzed: lists of images and classes, ground truths of landmarks, and files of triplets."""

import io
import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from fgis.errors import naming
from fgis.features.collection import load_collection
from fgis.features.landmark_sets import read_revisited
from fgis.retrieval.ground_truth import DIFFICULTIES, evaluate_lists, holidays, read_landmarks, revisited
from fgis.retrieval.triplets import evaluate_triplets, read_triplets
from tests.faults.fuzz import Target
from tests.faults.mutations import TEXTS, VALUES, damage_bytes, damage_text, damage_value

IDS = np.array([f"{name}/{number}.jpg" for name in "abc" for number in range(4)])
POINTS = np.random.default_rng(0).random((len(IDS), 4)).astype(np.float32)
CUB = ("images.txt", "image_class_labels.txt", "classes.txt")
TRUTH = {
    "imlist": ["a", "b", "c", "d"],
    "qimlist": ["q", "r"],
    "gnd": [
        {"bbx": [0.0, 1.0, 20.5, 30.0], "easy": [0], "hard": [1], "junk": [3]},
        {"bbx": [1, 1, 2, 2], "easy": [], "hard": [2], "junk": []},
    ],
}
LISTS = {  # collection: (what follows the folder in its name, its files)
    "csv": ("/list.csv", {"list.csv": "path,label,coarse\na/0.jpg,cup,1\na/1.jpg,cup,1\nb/0.jpg,pear,2\n"}),
    "grocerystore": (
        "",
        {
            "train.txt": "a/0.jpg, 0, 0\na/1.jpg, 1, 0\n",
            "val.txt": "b/0.jpg, 1, 0\n",
            "test.txt": "b/1.jpg, 0, 0\n",
            "classes.csv": "Class Name (str),Class ID (int),Coarse Class Name (str)\nApple,0,Fruit\nPear,1,Fruit\n",
        },
    ),
    "cub": (
        "@test",
        {
            "images.txt": "1 001.A/a.jpg\n2 150.B/b.jpg\n",
            "image_class_labels.txt": "1 1\n2 150\n",
            "classes.txt": "1 001.A\n150 150.B\n",
        },
    ),
    "online_products": (
        "@test",
        {
            "Ebay_test.txt": "image_id class_id super_class_id path\n1 1 1 a/1.JPG\n2 1 1 a/2.JPG\n3 2 2 b/3.JPG\n",
        },
    ),
    "in_shop": (
        "@test",
        {
            "list_eval_partition.txt": "3\nimage_name item_id evaluation_status\nimg/a.jpg id_1 query\n"
            "img/b.jpg id_1 gallery\nimg/c.jpg id_2 train\n",
        },
    ),
}
TEXT_FILES = {
    "triplets": {"t.csv": "query,positive,negative\na/0.jpg,a/1.jpg,b/0.jpg\nb/0.jpg,b/1.jpg,c/0.jpg\n"},
    "landmarks_text": {
        "x_query.txt": "oxc1_0 1 2 3 4\n",
        "x_good.txt": "0\n1\n",
        "x_ok.txt": "2\n",
        "x_junk.txt": "3\n",
    },
}


def prepare_lists(folder: Path) -> dict[str, Any]:
    """Whole files of every kind, by name."""
    from scipy.io import savemat

    found: dict[str, Any] = {name: files for name, (_, files) in LISTS.items()} | TEXT_FILES
    cars = io.BytesIO()
    records = np.zeros(3, [("class", "O"), ("relative_im_path", "O")])
    records["class"], records["relative_im_path"] = [1, 99, 100], ["a.jpg", "b.jpg", "c.jpg"]
    savemat(cars, {"annotations": records, "class_names": np.array([f"n{i}" for i in range(100)], object)})
    return found | {"cars196": cars.getvalue(), "landmarks": pickle.dumps(TRUTH), "holidays": b"100000.jpg"}


def damage_list(files: dict[str, Any], rng: random.Random) -> bytes:
    """In JSON: the kind, and its files in Latin-1."""
    kind = rng.choice([*files])
    whole = files[kind]
    if kind == "landmarks":
        truth: Any = damage_value(
            TRUTH, rng, (*VALUES, np.float32(1), np.array([0, 1]), np.array([[1]]), np.int64(2), b"a")
        )
        content = pickle.dumps(truth, rng.choice((0, 2, 4))) if rng.random() < 0.6 else damage_bytes(whole, rng)
        changed = {rng.choice(("gnd_roxford5k.pkl", "gnd_rparis6k.pkl")): content}
    elif kind == "cars196":
        changed = {"cars_annos.mat": damage_bytes(whole, rng)}
    elif kind == "holidays":
        names = ("100000.jpg", "100001.jpg", "1.jpg", "x999999.jpg", "٣٣٣٣٣٣.jpg", *TEXTS)
        changed = {"names": json.dumps([rng.choice(names) for _ in range(4)]).encode()}
    else:
        changed = {name: text.encode() for name, text in whole.items()}
        for name in rng.sample([*changed], rng.choice((1, min(2, len(changed))))):
            changed[name] = damage_text(changed[name], rng)
        if rng.random() < 0.05:
            del changed[rng.choice([*changed])]
    return json.dumps([kind, {name: content.decode("latin-1") for name, content in changed.items()}]).encode()


def check_list(files: Any, content: bytes, folder: Path) -> None:
    kind, changed = json.loads(content)
    place = folder / "list"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, text in changed.items():
        (place / name).write_bytes(text.encode("latin-1"))
    if kind == "triplets":
        found = read_triplets(place / "t.csv", IDS)
        evaluate_triplets(POINTS, found.rows)
    elif kind == "landmarks_text":
        lists = read_landmarks(place, [f"{number}.jpg" for number in range(4)])
        evaluate_lists(POINTS[: len(lists.query_ids)], POINTS[:4], lists.relevant, lists.junk)
    elif kind == "holidays":
        lists = holidays(json.loads(changed["names"]))
        assert all(len(one) for one in lists.junk)
    else:
        where = str(place) + (LISTS[kind][0] if kind in LISTS else "@test" if kind == "cars196" else "")
        with naming("config.features."):
            images = load_collection(kind, where)
        assert len(images.image_ids) == len(images.labels) > 0
        if kind == "landmarks":
            truth = read_revisited(place / next(iter(changed)))
            for difficulty in DIFFICULTIES:
                lists = revisited(truth, difficulty)
                points = np.ones((len(lists.gallery_ids), 2), np.float32)
                if len(lists.query_ids):
                    evaluate_lists(points[:1].repeat(len(lists.query_ids), 0), points, lists.relevant, lists.junk)
        for row in range(len(images.labels)):
            try:
                images.read(row)
            except (OSError, ValueError):  # an image that is not there is a bad one
                continue


TARGETS = {"ground_truth": Target(prepare_lists, damage_list, check_list)}
