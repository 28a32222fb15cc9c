"""A loaded gallery without a network: pictures are described by their colours, so that tests can foresee rankings."""

import io

import numpy as np
from PIL import Image

from fgis.gallery.loaded import LoadedGallery
from fgis.gallery.search import SearchGallery, compute_operating_point
from fgis.gallery.store import ImageRecord
from fgis.retrieval.search import prepare_gallery

SIZE = (64, 48)


def describe_colours(image: Image.Image) -> np.ndarray:
    """The mean colour of each cell of a 4 × 4 grid, less a grey."""
    small = np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BOX), np.float32)
    return (small.reshape(1, -1) - 127.5) / 127.5


def scene(colours: tuple[str, str]) -> Image.Image:
    """Two halves, left and right."""
    image = Image.new("RGB", SIZE, colours[0])
    image.paste(colours[1], (SIZE[0] // 2, 0, *SIZE))
    return image


def loaded_gallery(pictures: dict[str, Image.Image], distance: str = "cosine") -> LoadedGallery:
    """A gallery of pictures by image id; the first folder of an id is its label."""
    ids = sorted(pictures)
    features = np.concatenate([describe_colours(pictures[name]) for name in ids])
    return gallery_of(ids, features, pictures.get, distance)


def gallery_of(ids, features, find_picture, distance="cosine") -> LoadedGallery:
    names = [name.split("/")[0] if "/" in name else "" for name in ids]
    known = sorted({name for name in names if name})
    free = iter(range(len(known), len(known) + len(ids)))
    labels = np.array([known.index(name) if name else next(free) for name in names])
    records = []
    for name in ids:
        width, height = (find_picture(name) or Image.new("RGB", SIZE)).size
        records.append(ImageRecord(name, name.split("/")[0] if "/" in name else "", width, height, 1000, 0, "", ""))
    prepared = prepare_gallery(features, distance)

    def thumbnail(image_id: str) -> bytes:
        buffer, image = io.BytesIO(), find_picture(image_id).copy()
        image.thumbnail((320, 320))
        image.save(buffer, "WEBP")
        return buffer.getvalue()

    search = SearchGallery(
        embeddings=features,
        prepared=prepared,
        features=features,
        judging=prepared,
        labels=labels,
        image_ids=np.array(ids),
        prepare=lambda x: np.asarray(x, np.float32),
        embed=lambda x: x,
        point=compute_operating_point(features, labels, distance, 0),
        words=f"{len(ids)} images: the features as they are",
    )
    label_names = tuple(known) + ("",) * (int(labels.max()) + 1 - len(known))
    return LoadedGallery(search, records, label_names, describe_colours, thumbnail, find_picture, "colours")


def describe_places(image: Image.Image) -> np.ndarray:
    """The mean colour of each cell of a 2 × 2 grid, not yet averaged: [1, 2, 2, 3]."""
    return np.asarray(image.convert("RGB").resize((2, 2), Image.Resampling.BOX), np.float32)[None] / 255


def averaged_gallery(pictures: dict[str, Image.Image], distance: str = "cosine") -> LoadedGallery:
    """A gallery by mean colours: what ``describe_places`` gives, averaged over places."""
    describe = lambda image: describe_places(image).mean(axis=(1, 2))
    ids = sorted(pictures)
    features = np.concatenate([describe(pictures[name]) for name in ids])
    return gallery_of(ids, features, pictures.get, distance)._replace(describe=describe)


def gallery_by_words(loaded):
    """What ``make_app`` takes as ``by_text``: a text is the vector of a picture of that colour."""
    return lambda: (loaded.search._replace(point=None), lambda text: describe_colours(Image.new("RGB", SIZE, text)))
