"""Fuzzed: feature files, alone and joined; journals of extractions; weights of networks and vocabularies."""

import io
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgis.base import FeatureSet
from fgis.errors import UserError, naming
from fgis.experiment import identity
from fgis.features import joined, journal, store
from fgis.features.backbones import BACKBONES, text_pieces
from fgis.features.backbones.classical import load_classical
from fgis.features.backbones.safetensors_file import read_safetensors
from fgis.features.backbones.torch_pickle import read_torch_file
from tests.faults.fuzz import Target
from tests.faults.mutations import damage_bytes, damage_hdf5, damage_json
from tests.features.safetensors_files import PIECES, safetensors_bytes, write_clip_vocabulary
from tests.features.torch_files import Storage, View, file_bytes, whole

ROWS, WANTED = 12, {"collection": "folder", "backbone": "vgg16", "image_size": (224, 224), "layer": ""}


def attempt(*calls: Callable[[], Any]) -> None:
    """Makes all calls, whether or not some are refused; then raises the first refusal."""
    refusals = []
    for call in calls:
        try:
            call()
        except UserError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


class Files(NamedTuple):
    """Whole feature files, and a place where others are made of them."""

    whole: list[bytes]
    place: Path


def prepare_files(folder: Path) -> Files:
    """Whole feature files: with every field, of places, of copies of pixels, and with the three published datasets."""
    rng, found = np.random.default_rng(0), []
    labels, ids = np.arange(ROWS) // 3, np.array([f"{i}.jpg" for i in range(ROWS)])
    source = {"backbone": "vgg16", "image_size": [224, 224], "collection": "folder", "weights": "none", "skipped": 1}
    plain = FeatureSet(rng.random((ROWS, 4), np.float32), labels, ids, source)
    rich = plain._replace(coarse=labels // 2, label_names=tuple("abcd"), is_query=np.arange(ROWS) % 3 == 0)
    places = plain._replace(features=rng.random((ROWS, 2, 2, 4), np.float32).astype(np.float16))
    pixels = {"pixels_8": rng.integers(0, 255, (ROWS, 8, 8, 3), np.uint8), "skipped_image_ids": np.array(["é.jpg"])}
    for one, extras in ((rich, None), (places, None), (plain, pixels), (plain._replace(source={}), None)):
        store.write_features(folder / "x.h5", one, extras)
        found.append((folder / "x.h5").read_bytes())
    return Files(found, folder / "changed.h5")


def check_features(files: Files, content: bytes, folder: Path) -> None:
    path, good = folder / "x.h5", folder / "good.h5"
    path.write_bytes(content)
    good.write_bytes(files.whole[3])

    def by_rows() -> None:
        rows = joined.open_files(path)
        store.check_features(rows, path, WANTED)
        identity.digest_rows(rows)
        values = rows.read(np.array([0, len(rows.labels) - 1, 0]))
        assert np.isfinite(values).all()
        assert values.shape == (3, *rows.shape[1:])

    def whole_file() -> None:
        loaded = store.load_features(path)
        assert len(loaded.features) == len(loaded.labels) == len(loaded.image_ids) > 0
        store.check_features(loaded, path, WANTED)

    def both() -> None:
        rows = joined.join_rows([str(good), str(path)])
        rows.read(np.arange(len(rows.labels)))
        with naming("config.features.path: "):
            joined.refuse_other_makers(joined.made_by(rows), [{"backbone": "vgg16"}, {}])

    def copies() -> None:
        store.open_rows(path, (8,)).read(np.arange(3))

    attempt(by_rows, whole_file, both, copies, lambda: store.read_skipped(path))


HEADER = {"backbone": "vgg16", "image_size": [224, 224], "jax": "1"}


def prepare_journal(folder: Path) -> bytes:
    path = str(folder / "x.h5.journal.partial")
    with journal.open_journal(path, HEADER, (3,), 4) as log:
        for number in range(3):
            journal.append(log, np.full((4, 3), number, np.float32), np.ones(4, bool))
    return Path(path).read_bytes()


def damage_journal(whole: bytes, rng: random.Random) -> bytes:
    line, _, rest = whole.partition(b"\n")
    return damage_json(line, rng) + b"\n" + rest if rng.random() < 0.4 else damage_bytes(whole, rng)


def check_journal(whole: bytes, content: bytes, folder: Path) -> None:
    path = folder / "x.h5.journal.partial"
    path.write_bytes(content)
    with journal.open_journal(str(path), HEADER, (3,), 4) as log:
        assert [features[0, 0] for features, _ in journal.records(log)] == [0, 1, 2][: len(log.good)]


def prepare_torch(folder: Path) -> list[bytes]:
    shared = Storage("7", np.arange(24, dtype=np.float32))
    views = {
        "a.weight": View(shared, 2, (3, 2), (1, 3)),
        "b": View(shared, 0, (24,), (1,)),
        "c": whole("8", np.ones((2, 3))),
    }
    return [file_bytes(views), file_bytes({"a": whole("0", np.zeros(0))}), file_bytes({})]


def check_torch(files: list[bytes], content: bytes, folder: Path) -> None:
    (folder / "x.pth").write_bytes(content)
    for tensor in read_torch_file(folder / "x.pth").tensors.values():
        assert float(tensor.sum(dtype=np.float64)) is not None  # every number is within the file


SMALL = {"a": np.ones((2, 3), np.float32), "b": np.zeros((0, 4), np.float16), "c": np.arange(4)}


def damage_safetensors(tensors: dict[str, np.ndarray], rng: random.Random) -> bytes:
    whole_file = safetensors_bytes(tensors, metadata={"format": "pt"})
    if rng.random() < 0.4:
        return damage_bytes(whole_file, rng)
    length = int.from_bytes(whole_file[:8], "little")
    header = damage_json(whole_file[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + whole_file[8 + length :]


def check_safetensors(tensors: Any, content: bytes, folder: Path) -> None:
    (folder / "x.safetensors").write_bytes(content)
    for tensor in read_safetensors(folder / "x.safetensors").tensors.values():
        assert float(tensor.astype(np.float64).sum()) is not None


def prepare_vocabulary(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Vocabularies by description."""
    rng = np.random.default_rng(0)
    words = {"words": rng.random((6, 128), np.float32), "occurs": np.arange(6), "images": np.array(7)}
    reduced = {"mean": rng.random(128, np.float32), "components": rng.random((5, 128), np.float32)}
    residuals = {**reduced, "words": rng.random((6, 5), np.float32)}
    more = {"shares": np.full(6, 1 / 6, np.float32), "variances": np.ones((6, 5), np.float32)}
    return {"bag_of_words_tf_idf": words, "vlad": residuals, "fisher": {**residuals, **more}}


def damage_vocabulary(vocabularies: dict[str, dict[str, np.ndarray]], rng: random.Random) -> bytes:
    file, changed = io.BytesIO(), dict(vocabularies[rng.choice([*vocabularies])])
    if rng.random() < 0.7:
        name = rng.choice([*changed, *changed, "more"])
        own = changed.get(name, np.zeros(3)).shape
        shape = rng.choice((own, own, own[::-1], (), (6,), (6, 128), (5, 6), (0, 128), (2, 128), (2**20, 0)))
        kind = rng.choice(("f2", "f4", "f8", "i8", "U3", "?", "c8", "V2", "O", "M8[s]", ">f4"))
        changed[name] = np.full(shape, rng.choice((0, 1, 2)), "i1").astype(kind)
        if rng.random() < 0.2:
            del changed[rng.choice([*changed])]
    np.savez(file, **changed)  # type: ignore[arg-type]
    return damage_bytes(file.getvalue(), rng) if rng.random() < 0.3 else file.getvalue()


def check_vocabulary(vocabularies: Any, content: bytes, folder: Path) -> None:
    path = folder / "x.npz"
    path.write_bytes(content)
    image = np.random.default_rng(1).integers(0, 255, (1, 48, 64, 3), np.uint8)

    def describe(name: str) -> None:
        with np.errstate(all="ignore"):  # an extraction refuses features that are not finite
            apply, params, _ = load_classical(name, BACKBONES[name], str(path))
            assert apply(params, image).ndim == 4

    attempt(*(partial(describe, name) for name in vocabularies))


def prepare_pieces(folder: Path) -> dict[str, bytes]:
    write_clip_vocabulary(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = {"vocab": json.loads(files["vocab.json"]), "merges": files["merges.txt"].decode().splitlines()[1:]}
    return files | {"tokenizer.json": json.dumps({"model": model}).encode()}


def damage_pieces(files: dict[str, bytes], rng: random.Random) -> bytes:
    return damage_json(files["tokenizer.json"], rng)


def check_pieces(files: Any, content: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    split = text_pieces.load_clip_pieces(folder, "a/b", 12, PIECES)
    found = split("a red sofa, 42 \ud800 é 🦉")
    assert found.numbers.shape == (12,)
    assert 0 <= found.numbers.min() <= found.numbers.max() < PIECES


TARGETS = {
    "feature_file": Target(
        prepare_files, lambda files, rng: damage_hdf5(rng.choice(files.whole), rng, files.place), check_features
    ),
    "journal": Target(prepare_journal, damage_journal, check_journal),
    "torch": Target(prepare_torch, lambda files, rng: damage_bytes(rng.choice(files[:2]), rng), check_torch),
    "safetensors": Target(lambda folder: SMALL, damage_safetensors, check_safetensors),
    "vocabulary": Target(prepare_vocabulary, damage_vocabulary, check_vocabulary),
    "pieces": Target(prepare_pieces, damage_pieces, check_pieces),
}
