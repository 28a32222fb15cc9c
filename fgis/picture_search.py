"""``--mode=search``: a picture, or a folder of them, asked of a gallery; the walk through the rooms, nothing numerical.

A picture walks the way that the gallery's images have gone: decoded, described by the same backbone, prepared, embedded
by the same head. Ranked, it becomes a table on the terminal or one JSON document, a page, and a montage.
"""

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from fgis import build, choices, modes, reporting
from fgis.base import Neighbours
from fgis.distances import pairwise_distances
from fgis.errors import UserError
from fgis.features import collection, extract, store
from fgis.learning import checkpoint
from fgis.report import records, search_page
from fgis.report.gallery import ReadImage
from fgis.retrieval import open_set
from fgis.retrieval.rerank import RERANKERS, Rerank
from fgis.retrieval.search import Gallery, prepare_gallery, search

Describe = Callable[[Image.Image], np.ndarray]  # a picture -> its features [1, ...]

JUDGED = 2000  # images of the gallery, at most, that a threshold is computed from
DEFAULT_WORKDIR = Path("runs")  # pages lie in runs/search without a run


class Question(NamedTuple):
    """What is asked, in the words of the flags."""

    image: str = ""
    crop: str = ""
    k: int = 12
    rerank: str = ""
    farthest: bool = False
    json: bool = False


class Picture(NamedTuple):
    """A picture to search with, upright and cropped."""

    path: Path
    image: Image.Image
    milliseconds: float  # of decoding


class Ranked(NamedTuple):
    """The gallery as one picture ranks it."""

    neighbours: Neighbours
    nearest: float  # by the first search, which the threshold was chosen for
    milliseconds: dict[str, float]


class Opened(NamedTuple):
    """A gallery that is ready to be asked."""

    embeddings: Float[np.ndarray, "n d"]
    searchable: Gallery  # the same, prepared once for all pictures, with the distance
    labels: Int[np.ndarray, " n"]
    image_ids: np.ndarray  # [n] str
    embed: Callable[[np.ndarray], Float[np.ndarray, "m d"]]  # features as the file holds them -> embeddings
    threshold: float | None
    words: str  # what it is, for people


def search_mode(config: Any, workdir: Path | None, step: int | None, question: Question) -> None:
    """Ranks the gallery for each picture; prints the answers and writes ``search/NAME.html`` and ``search/NAME.png``.

    Without ``workdir`` (None) the features are compared as they are. Of a folder, pictures that cannot be used are
    named on standard error and left out. ``UserError`` where nothing can be asked, or the gallery cannot be.
    """
    _check(question, workdir, step)
    paths = picture_paths(question.image)
    pictures = open_pictures(paths, question)
    first = next(pictures)  # before anything slow: what is wrong with the one picture is said at once
    source, rows = modes.open_source(config)
    describe = open_describer(source, rows)
    opened = open_gallery(config, workdir, step, source, rows)
    rerank = choices.choose(config, "rerank", name=question.rerank) if question.rerank else None
    read_image = image_reader(source, rows.image_ids)
    folder = (workdir or DEFAULT_WORKDIR) / "search"
    folder.mkdir(parents=True, exist_ok=True)
    names, documents = page_names(paths), []
    for picture in chain([first], pictures):
        ranked = rank_gallery(opened, describe, rerank, question, picture.image)
        found = describe_answers(picture, ranked, opened, question, read_image)
        files = search_page.write_files(folder / names[picture.path], found)
        documents.append(search_page.document(found))
        if not question.json:
            print("\n".join([search_page.text(found), *map(str, files), ""]), flush=True)
    if question.json:
        print(json.dumps(documents if Path(question.image).is_dir() else documents[0]))


def _check(question: Question, workdir: Path | None, step: int | None) -> None:
    """Raises ``UserError`` for whatever is wrong with the question by itself."""
    if step is not None and workdir is None:
        raise UserError(f"--step={step}: of which run? name its --workdir as well, or leave --step out")
    if not question.image:
        raise UserError("--image: missing; name the picture to search with, or a folder of pictures")
    if question.k < 1:
        raise UserError(f"--k={question.k}: nothing to list; write a whole number of at least 1")
    if question.rerank and question.rerank not in RERANKERS:
        raise UserError(f"--rerank={question.rerank}: no such method; {choices.nearest(question.rerank, RERANKERS)}")
    if question.rerank and question.farthest:
        raise UserError(f"--farthest: does not go with --rerank={question.rerank}, which orders the nearest; drop one")
    _parse_crop(question.crop)


def _parse_crop(crop: str) -> tuple[int, int, int, int] | None:
    if not crop:
        return None
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*", crop)
    if not match or not int(match[3]) or not int(match[4]):
        raise UserError(f"--crop={crop}: not x,y,w,h in whole pixels, w and h above 0; such as --crop=120,80,200,150")
    x, y, width, height = map(int, match.groups())
    return x, y, width, height


def picture_paths(image: str) -> list[Path]:
    """The file ``image``, or the image files of the folder ``image`` by name."""
    place = Path(image)
    if not place.is_dir():
        return [place]
    files = (path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    paths = sorted(path for path in files if path.suffix.lower() in collection.SUFFIXES)
    if not paths:
        raise UserError(f"--image={image}: no image in this folder; name one with files such as photo.jpg")
    return paths


def open_pictures(paths: list[Path], question: Question) -> Iterator[Picture]:
    """The pictures that can be used, one at a time; ``UserError`` where the only one, or none of a folder, can be."""
    crop, usable = _parse_crop(question.crop), 0
    for path in paths:
        began = time.perf_counter()
        try:
            image = _read(path, crop)
        except UserError as error:
            if not Path(question.image).is_dir():
                raise
            print(f"fgis: left out: {error}", file=sys.stderr)
            continue
        usable += 1
        yield Picture(path, image, _since(began))
    if not usable:
        raise UserError(f"--image={question.image}: none of {len(paths)} pictures can be used; mend one")


def _read(path: Path, crop: tuple[int, int, int, int] | None) -> Image.Image:
    if not path.exists():
        raise UserError(f"--image={path}: no such file; name a picture, or a folder of pictures")
    try:
        image = collection.read_image(path)
    except Exception as error:  # decoders raise whatever the damage leads them to
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"--image={path}: cannot be decoded ({reason}); mend it, or name another picture") from error
    if crop:
        x, y, width, height = crop
        if x + width > image.width or y + height > image.height:
            raise UserError(
                f"--crop={x},{y},{width},{height}: not within {path}, which is {image.width} x {image.height} pixels "
                "upright; write x,y,w,h inside it"
            )
        image = image.crop((x, y, x + width, y + height))
    return image


def open_describer(source: build.Source, rows: store.Rows) -> Describe:
    """One image to its features [1, ...], by the backbone that the gallery's features came from."""
    if not source.described:
        raise UserError("config.features.backbone: empty; name the network that made the gallery's features")
    settings = {key: value for key, value in source.described.items() if key != "collection"}
    extractor = extract.load_extractor(**settings)
    held, own = rows.source.get("weights_sha256"), extractor.source["weights_sha256"]
    if held not in (None, own):
        raise UserError(
            f"config.features.weights: {settings['weights']!r} here are not the weights that the gallery's features "
            f"were made with (SHA-256 {own[:12]} and {held[:12]}); name that file, or extract the gallery again"
        )
    if tuple(rows.shape[1:]) != tuple(extractor.shape):
        raise UserError(
            f"config.features: describe an image by features of shape {tuple(extractor.shape)}, but the gallery holds "
            f"{tuple(rows.shape[1:])}; set backbone, image_size and pooling to those of its extraction"
        )

    def describe(image: Image.Image) -> np.ndarray:
        fitted = extract.fit_image(image, settings["image_size"], settings["fit"])
        return np.asarray(extractor.run(tuple(scale[None] for scale in fitted)))

    return describe


def open_gallery(config: Any, workdir: Path | None, step: int | None, source: build.Source, rows: store.Rows) -> Opened:
    """The gallery under a head of the run in ``workdir``, one that has seen all objects if any; else as it is."""
    scoring = build.build_scoring(config)
    features, embed = reporting.prepared(rows, scoring), lambda features: np.asarray(scoring.prepare(features))
    embeddings, words, threshold = features, "the features as they are", None
    if workdir:
        found, params, saved = checkpoint.restore_params(workdir, step)
        choices.refuse_other(config, saved, str(workdir), but=("features.", "evaluation.", "rerank."))
        if not build.head_fits(config, params, features.shape[1]):
            raise UserError(
                f"config.features.path: features of size {features.shape[1]}, but the heads in {workdir} were trained "
                "on features of another size; take a gallery made with the same backbone and pooling"
            )
        run = next((run for run, plan in enumerate(build.plan_runs(config)) if plan.fold < 0), 0)
        embed = lambda features: reporting.embed_run(scoring, params, np.asarray(scoring.prepare(features)), run)
        embeddings = reporting.embed_run(scoring, params, features, run)
        words = f"the head of {workdir} at step {found}"
        if source.path == saved["features"]["path"]:
            threshold = read_threshold(workdir, found)
    if threshold is None and len(np.unique(rows.labels)) > 1:  # with one object, nothing says how near others would be
        threshold = compute_threshold(embeddings, rows.labels, scoring.distance, scoring.seed)
    return Opened(
        embeddings=embeddings,
        searchable=prepare_gallery(embeddings, scoring.distance),
        labels=rows.labels,
        image_ids=rows.image_ids,
        embed=embed,
        threshold=threshold,
        words=f"{len(rows.labels)} images ({source.collection}, {source.described['backbone']}): {words}, "
        f"{scoring.distance.replace('_', ' ')} distance",
    )


def read_threshold(workdir: Path, step: int) -> float | None:
    """The operating threshold that the run has saved with this step; None where it has not."""
    point = records.read_json(workdir / reporting.OPERATING_POINT)
    if not isinstance(point, dict) or point.get("step") != step or not isinstance(point.get("threshold"), int | float):
        return None
    return float(point["threshold"])


def compute_threshold(
    embeddings: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], distance: str, seed: int
) -> float:
    """The threshold that ``OPERATING`` of the gallery's own images would pass, were their objects not in it."""
    count = len(labels)
    asked = np.sort(np.random.default_rng(seed).permutation(count)[:JUDGED])
    *_, unknown = open_set.nearest_known_and_unknown(embeddings, labels, asked, np.arange(count), distance)
    return float(open_set.choose_threshold(unknown, open_set.OPERATING))


def image_reader(source: build.Source, image_ids: np.ndarray) -> ReadImage:
    """Row of the gallery -> a small picture of it; None where the images are not at hand or one cannot be read."""
    if not source.images:
        return lambda row: None
    images = collection.load_collection(source.collection, source.images)
    place = {image_id: i for i, image_id in enumerate(images.image_ids)}

    def read(row: int) -> Image.Image | None:
        if image_ids[row] not in place:
            return None
        try:
            image = images.read(place[image_ids[row]])
        except Exception:  # damaged since its features were made: its name is shown in its place
            return None
        image.thumbnail((search_page.SIDE, search_page.SIDE))
        return image

    return read


def rank_gallery(
    opened: Opened, describe: Describe, rerank: Rerank | None, question: Question, image: Image.Image
) -> Ranked:
    """The ranked gallery of one picture, by the first search, or by what the question wants made of it."""
    began = time.perf_counter()
    features = describe(image)
    milliseconds = {"describe": _since(began)}
    began = time.perf_counter()
    query = opened.embed(features)
    milliseconds["embed"] = _since(began)
    began = time.perf_counter()
    everything = np.arange(len(opened.labels))
    k = min(question.k, len(everything))
    neighbours = search(query, opened.searchable, k)
    nearest = float(neighbours.distances[0, 0])
    if rerank:
        neighbours = rerank(query, opened.embeddings, neighbours, opened.searchable.distance, everything)
    elif question.farthest:
        distances = np.asarray(pairwise_distances(query, opened.embeddings, opened.searchable.distance))
        order = np.argsort(-distances, axis=1, kind="stable")[:, :k]  # ties by the lowest row here too
        neighbours = Neighbours(order, np.take_along_axis(distances, order, axis=1))
    milliseconds["search"] = _since(began)
    return Ranked(neighbours, nearest, milliseconds)


def describe_answers(
    picture: Picture, ranked: Ranked, opened: Opened, question: Question, read_image: ReadImage
) -> search_page.Found:
    """What was found, ready to be shown."""
    comparable = opened.threshold is not None and not question.rerank
    rows, distances = (x[0].tolist() for x in ranked.neighbours[:2])
    answers = [
        search_page.Answer(
            rank=rank,
            image_id=str(opened.image_ids[row]),
            label=int(opened.labels[row]),
            distance=distance,
            picture=read_image(row),
            near=distance <= opened.threshold if comparable else None,
        )
        for rank, (row, distance) in enumerate(zip(rows, distances, strict=True), 1)
        if row >= 0
    ]
    order = f"ordered again by {question.rerank.replace('_', ' ')}" if question.rerank else "nearest first"
    return search_page.Found(
        path=str(picture.path),
        picture=picture.image,
        nearest=ranked.nearest,
        threshold=opened.threshold,
        answers=answers,
        order="farthest first" if question.farthest else order,
        gallery=opened.words,
        milliseconds={"decode": picture.milliseconds, **ranked.milliseconds},
    )


def page_names(paths: list[Path]) -> dict[Path, str]:
    """The name of each picture's files: without its suffix, but where two of a folder differ in nothing else."""
    stems = Counter(path.stem for path in paths)
    return {path: path.stem if stems[path.stem] == 1 else path.name for path in paths}


def _since(began: float) -> float:
    """Milliseconds."""
    return 1000 * (time.perf_counter() - began)
