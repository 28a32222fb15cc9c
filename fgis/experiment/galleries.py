"""Galleries on disk: made from a folder by a configuration, and opened again without one."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jax import Device
from jaxtyping import Float, Int
from PIL import Image

from fgis import files
from fgis.errors import UserError, naming
from fgis.experiment import graphs
from fgis.experiment.build import Scoring, build_rerank, build_scoring, find_own_devices
from fgis.experiment.config import ExperimentSettings, extraction_settings, read_settings
from fgis.experiment.embedding import refuse_copies
from fgis.experiment.gallery_about import (
    NAME,
    About,
    read_about,
    refuse_other_features,
    refuse_other_images,
    require_about,
    write_about,
)
from fgis.experiment.gallery_heads import embed_gallery, further_heads, open_head, search_words
from fgis.experiment.gallery_shards import join_shards
from fgis.experiment.gallery_tiles import add_windows, settle_tiles
from fgis.experiment.head_use import why_not, with_note
from fgis.features import description
from fgis.features.images import read_image
from fgis.gallery import index, shards
from fgis.gallery.loaded import FEATURES, LoadedGallery
from fgis.gallery.own_point import number_labels_of, own_operating_point
from fgis.gallery.scan import Scan, register_plugins, scan_folder
from fgis.gallery.search import SearchGallery
from fgis.gallery.store import DATABASE, ImageRecord, Store, damaged, open_store, writing
from fgis.gallery.tiles import Tiles
from fgis.ranges import nearest
from fgis.retrieval.graph import GalleryGraph
from fgis.retrieval.operating_point import OperatingPoint
from fgis.retrieval.rerank import DIRECTIONS, RERANKERS, Rerank
from fgis.retrieval.search import prepare_gallery

POINT = len(OperatingPoint._fields)


def index_gallery(
    config: Mapping[str, Any],
    scan: Scan,
    about: About,
    gallery: Path,
    *,
    tiles: Tiles | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> index.Indexed:
    """Brings a gallery to the state of a folder; the first time, makes it.

    Args:
      config: a plain configuration.
      scan: what the folder holds.
      about: the folder and the run, if any; what is to be remembered.
      gallery: the folder of the gallery.
      tiles: how pictures are divided into windows; None: as they were, or not at all.
      progress: as ``index.index_folder``.

    Raises:
      UserError: the folder is no gallery, another process writes it, it was made in another way or from another folder,
        or the network cannot be loaded.
    """
    settings = _read_describing(config)
    _refuse_other_files(gallery)
    with writing(gallery):
        held = read_about(gallery) or _refuse_features_of_others(gallery)
        if held:
            refuse_other_images(held, about, gallery)
            refuse_other_features(config, held, gallery)
            about = about._replace(weights_sha256=held.weights_sha256)
            if not about.workdir:
                about = about._replace(workdir=held.workdir, step=held.step)
        if about.workdir:
            open_head(config, about.workdir, about.step)
        write_about(gallery, about)

        def load() -> description.Extractor:
            extractor = _load_extractor(settings, about.weights_sha256, find_own_devices(settings.train.devices))
            write_about(gallery, about._replace(weights_sha256=extractor.source["weights_sha256"]))
            return extractor

        with open_store(gallery, create=True) as store:
            tiles = settle_tiles(store, tiles, gallery)
            about = join_shards(store, config, about, gallery, tiles)
            write_about(gallery, about)
            store.set_meta(finished=False, tiles=tiles)
            images = extraction_settings(settings.features)
            done = index.index_folder(scan, store, images, load, tiles=tiles, progress=progress)
            store.set_meta(finished=True)  # of a shard: all its files were described
            if done.images:
                _read_point(store, store.records(), build_scoring(settings), _describe_inputs(settings), save=True)
            plain = not about.workdir and not tiles and settings.distance in DIRECTIONS
            if plain and 1 < done.images <= graphs.MOST_WHEN_INDEXED:
                features = np.concatenate([block for _, block in _prepared_blocks(store, build_scoring(settings))])
                graphs.keep_graph(gallery, features, _graph_key(store, settings))
            return done


def load_gallery(
    gallery: str | Path,
    config: Mapping[str, Any] | None = None,
    workdir: str | Path = "",
    step: int | None = None,
    more: Sequence[str] = (),
    use_head: str = "always",
    tiled: bool = True,
) -> LoadedGallery:
    """A gallery, ready to be searched; the network is loaded when the first picture is described.

    Args:
      gallery: the folder.
      config: a plain configuration; what the gallery was made by, or the run was trained by, without it.
      workdir: the run whose head embeds; that of the gallery, if any, without it.
      step: its checkpoint; the latest without it.
      more: further runs whose heads may be chosen.
      use_head: whether that head ranks: "always", "never", or "auto": where its report shows that it helps.
      tiled: search windows too, where the gallery has them.

    Raises:
      UserError: there is no gallery, it is empty, damaged or made in another way than ``config`` says; or no run fits.
    """
    register_plugins()
    place = Path(gallery).expanduser()
    about = require_about(place, gallery)
    workdir, step = _settle_run(about, workdir, step, gallery)
    config = _config_of(workdir, about) if config is None else config
    reason = why_not(workdir, step, use_head) if workdir else ""
    refuse_other_features(config, about, place)
    settings, store = _read_describing(config), open_store(place)
    scoring = build_scoring(settings)
    with store.snapshot():
        records = _require_records(store, gallery)
        features = np.concatenate([block for _, block in _prepared_blocks(store, scoring)])
        features, windows = add_windows(store, records, features, scoring) if tiled else (features, None)
        point = _read_point(store, records, scoring, _describe_inputs(settings))
        key, shape = _graph_key(store, settings), store.shape
    (labels, names), root = number_labels_of([one.label for one in records]), Path(about.images)
    ids, network = {one.image_id for one in records}, extraction_settings(settings.features)
    describer = cache(lambda: _load_extractor(settings, about.weights_sha256))
    graph = GalleryGraph(lambda: None if windows else graphs.keep_graph(place, features, key))
    plain = _search_gallery(settings, scoring, records, features)
    plain = plain._replace(labels=labels, point=point, graph=graph, windows=windows)
    heads, head = further_heads(plain, more), str(workdir) or FEATURES
    heads |= {head: cache(partial(embed_gallery, plain, config, head, step))} if workdir else {}
    head = _features_instead(config, head, step, features.shape[1]) if reason else head
    made = f"{len(records)} images of {root.name}, described by {settings.features.backbone}"
    return LoadedGallery(
        search=with_note(heads[head](), reason),
        records=records,
        label_names=names,
        describe=lambda image: _require_shape(description.describe(describer(), network, image), shape, place),
        thumbnail=store.thumbnail,
        find_picture=lambda image_id: _find_picture(root, image_id) if image_id in ids else None,
        made=made + (f", embedded by the head of {head}" if head != FEATURES else ""),
        make_rerank=lambda name: _make_rerank(settings, name),
        head=head,
        heads=heads,
    )


def _settle_run(
    about: About, workdir: str | Path, step: int | None, gallery: str | Path
) -> tuple[str | Path, int | None]:
    """The run that was named, or that of the gallery."""
    if not workdir:
        workdir, step = about.workdir, about.step if step is None else step
    if step is not None and not workdir:
        raise UserError(f"--step={step}: of which run? {gallery} has none; name a --workdir, or leave --step out")
    return workdir, step


def _features_instead(config: Mapping[str, Any], workdir: str, step: int | None, size: int) -> str:
    open_head(config, workdir, step, size)  # a run that does not fit is refused all the same
    return FEATURES


def _require_records(store: Store, gallery: str | Path) -> Sequence[ImageRecord]:
    if records := store.records():
        return records
    raise UserError(f"{gallery}: no image in this gallery; index a folder that holds some")


def _config_of(workdir: str | Path, about: About) -> Mapping[str, Any]:
    saved = files.read_object(Path(workdir) / "config.json") if workdir else None
    return about.config if saved is None else saved


def scan_images(images: str, gallery: str | Path) -> tuple[Scan, str]:
    """What a folder holds (without a name: the one that the gallery was made from), and its absolute path."""
    held = read_about(gallery)
    if not images and held is None:
        raise UserError(f"--images: missing; name the folder whose images {gallery} is to hold")
    root = images or (held.images if held else "")
    with naming("--images="):
        return scan_folder(root), os.path.abspath(os.path.expanduser(root))


def _search_gallery(
    settings: ExperimentSettings,
    scoring: Scoring,
    records: Sequence[ImageRecord],
    features: Float[np.ndarray, "n f"],
) -> SearchGallery:
    """The features as they are; all but labels and the operating point."""
    judging = prepare_gallery(features, scoring.distance)
    return SearchGallery(
        embeddings=features,
        prepared=judging,
        features=features,
        judging=judging,
        labels=np.arange(len(records)),
        image_ids=np.array([one.image_id for one in records]),
        prepare=scoring.prepare,
        embed=lambda query: query,
        point=None,
        words=search_words(settings, len(records), "the features as they are"),
    )


def _prepared_blocks(store: Store, scoring: Scoring) -> Iterator[tuple[int, Float[np.ndarray, "b f"]]]:
    for start, block in store.vector_blocks():
        yield start, scoring.prepare(block)


def _graph_key(store: Store, settings: ExperimentSettings) -> dict[str, Any]:
    """What the neighbours of a gallery's images by features depend on."""
    return {"generation": store.meta("generation"), **settings.inputs._asdict()}


def _describe_inputs(settings: ExperimentSettings) -> dict[str, Any]:
    """What an operating point depends on besides the images."""
    return {"distance": settings.distance, "seed": settings.seed, **settings.inputs._asdict()}


def _read_point(
    store: Store, records: Sequence[ImageRecord], scoring: Scoring, inputs: Mapping[str, Any], save: bool = False
) -> OperatingPoint | None:
    """The operating point that was saved for exactly these images, or computed now and, if wanted, saved."""
    key = {"generation": store.meta("generation"), **inputs}
    saved = store.meta("point")
    if isinstance(saved, dict) and saved.get("key") == key:
        numbers = saved.get("point")
        if not numbers:
            return None
        if isinstance(numbers, list) and [isinstance(one, int | float) for one in numbers] == [True] * POINT:
            return OperatingPoint(*numbers)
    labels: Int[np.ndarray, " n"] = number_labels_of([one.label for one in records])[0]
    contents = np.unique([one.sha256 for one in records], return_inverse=True)[1]
    blocks = lambda: _prepared_blocks(store, scoring)
    point = own_operating_point(blocks, labels, contents, scoring.distance, scoring.seed)
    if save:
        store.set_meta(point={"key": key, "point": list(point) if point else None})
    return point


def _load_extractor(
    settings: ExperimentSettings, weights_sha256: str, devices: Sequence[Device] = ()
) -> description.Extractor:
    with naming("config.features."):
        extractor = description.load_extractor(extraction_settings(settings.features), devices)
    own = extractor.source["weights_sha256"]
    if weights_sha256 not in ("", own):
        raise UserError(
            f"config.features.weights: {settings.features.weights!r} here are not the weights that the gallery was "
            f"made with (SHA-256 {own[:12]} and {weights_sha256[:12]}); name that file, or make another gallery"
        )
    return extractor


def _read_describing(config: Mapping[str, Any]) -> ExperimentSettings:
    """The settings of a gallery: a network describes its images, and nothing but that is compared."""
    settings = read_settings(config)
    if not settings.features.backbone:
        raise UserError("config.features.backbone: empty; name the network that describes the images")
    refuse_copies(settings)
    return settings


def _refuse_features_of_others(gallery: Path) -> About | None:
    """None, where there are no features; those of which nothing says how they were made would be mixed with others."""
    if (gallery / DATABASE).exists():
        with open_store(gallery) as store:
            if store.contents():
                raise UserError(
                    f"{gallery / NAME}: lost, and nothing else says how the pictures of this gallery were described; "
                    f"restore a copy, or remove the folder {gallery} and index again"
                )
    return None


def _require_shape(features: np.ndarray, shape: tuple[int, ...], gallery: Path) -> np.ndarray:
    """``features`` [1, ...] of a picture, which have to be of the shape of those of the gallery."""
    if features.shape[1:] != shape:
        raise damaged(gallery, f"features of shape {shape}, where a picture has {features.shape[1:]}")
    return features


def _find_picture(root: Path, image_id: str) -> Image.Image | None:
    try:
        return read_image(root / image_id)
    except Exception:  # gone, or decoders raise whatever the damage leads them to
        return None


def _make_rerank(settings: ExperimentSettings, name: str) -> Rerank | None:
    if name not in ("", "none", *RERANKERS):
        raise ValueError(f"rerank: {name!r} is no re-ranking; {nearest(name, RERANKERS)}")
    return build_rerank(settings.rerank._replace(name=name or "none"))


def _refuse_other_files(gallery: Path) -> None:
    if gallery.is_file():
        raise UserError(f"--gallery={gallery}: a file; name a folder for the gallery")
    if gallery.is_dir() and not any((gallery / name).exists() for name in (NAME, DATABASE)):
        others = [name for name in sorted(os.listdir(gallery)) if not name.startswith((".", "gallery.", shards.FOLDER))]
        if others:
            raise UserError(
                f"--gallery={gallery}: holds other files ({others[0]}) and no gallery; name a folder of its own"
            )
