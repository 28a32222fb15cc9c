"""Galleries that are searched by words, where the network that described them reads texts as well."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fgis.errors import UserError, naming
from fgis.experiment.config import read_settings
from fgis.experiment.gallery_about import require_about
from fgis.features.backbones import BACKBONES
from fgis.features.backbones.text_tower import load_text_encoder, reads_texts
from fgis.gallery.loaded import LoadedGallery
from fgis.gallery.search import SearchGallery
from fgis.gallery.store import open_store
from fgis.retrieval.search import prepare_gallery

Describe = Callable[[str], np.ndarray]


def gallery_reads_texts(gallery: str | Path) -> bool:
    """Whether a gallery can be searched by words."""
    backbone = read_settings(require_about(Path(gallery).expanduser(), gallery).config).features.backbone
    return backbone in BACKBONES and reads_texts(backbone)


def open_by_text(gallery: str | Path, loaded: LoadedGallery) -> tuple[SearchGallery, Describe]:
    """The same gallery, to be searched by words, and the function that describes these.

    Texts and images are compared by the cosine of what the network says of them, as it was trained: no preparation, no
    head and no distance of a configuration comes between. Windows of pictures are not searched. There is no operating
    point, since texts lie farther from images than other images do.

    Args:
      gallery: its folder.
      loaded: what it holds; row ``i`` is the same image.

    Returns:
      The gallery, and a function from a text to its vector [1, c].

    Raises:
      UserError: the network reads no texts, its weights or its vocabulary are not at hand, or the gallery was indexed
        again meanwhile.
    """
    place = Path(gallery).expanduser()
    about = require_about(place, gallery)
    settings = read_settings(about.config).features
    if not reads_texts(settings.backbone):
        able = ", ".join(name for name in BACKBONES if reads_texts(name))
        raise UserError(
            f"--text: {gallery} was described by {settings.backbone}, which reads no texts; index the photos by one of "
            f"{able}, such as --config.features.backbone=siglip2_b16"
        )
    with naming("config.features."):
        encoder = load_text_encoder(settings.backbone, settings.weights)
    if encoder.weights_sha256 != about.weights_sha256:
        raise UserError(
            f"config.features.weights: {settings.weights!r} are not the weights that {gallery} was made with (SHA-256 "
            f"{encoder.weights_sha256[:12]} and {about.weights_sha256[:12]}); put that file back, or index anew"
        )
    with open_store(place) as store, store.snapshot():
        if [one.image_id for one in store.records()] != [one.image_id for one in loaded.records]:
            raise UserError(f"{gallery}: was indexed again meanwhile; search once more")
        vectors = store.vectors().astype(np.float32)
    prepared = prepare_gallery(vectors, "cosine")
    found = SearchGallery(
        embeddings=vectors,
        prepared=prepared,
        features=vectors,
        judging=prepared,
        labels=loaded.search.labels,
        image_ids=np.array([one.image_id for one in loaded.records]),
        prepare=lambda vector: vector,
        embed=lambda vector: vector,
        point=None,
        words=f"{loaded.made.partition(', embedded by')[0]}, which compares them with words",
    )
    return found, encoder.encode
