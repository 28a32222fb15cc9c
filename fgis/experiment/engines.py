"""Galleries that are searched by an engine elsewhere: ``--engine`` of the commands that search."""

import json
from pathlib import Path

from fgis.errors import UserError, naming
from fgis.experiment.gallery_about import About, require_about
from fgis.gallery.engines import finding, milvus
from fgis.gallery.loaded import LoadedGallery

FORM = "milvus:ADDRESS"


def collection_source(about: About, workdir: str) -> str:
    """What the embeddings of a collection are of: written by exports and compared by searches."""
    named = {"images": about.images, "weights_sha256": about.weights_sha256, "workdir": workdir or about.workdir}
    return json.dumps(named, sort_keys=True)


def search_by_engine(
    loaded: LoadedGallery, gallery: str | Path, engine: str, workdir: str, collection: str
) -> LoadedGallery:
    """The same gallery, whose nearest images the engine finds; other heads than its own are searched here.

    Args:
      loaded: the gallery.
      gallery: its folder.
      engine: ``milvus:ADDRESS``; "" for none.
      workdir: the run whose head embeds, absolute; "" for that of the gallery.
      collection: of Milvus.

    Raises:
      UserError: the address is none or cannot be reached, or the collection holds something else or too much.
    """
    if not engine:
        return loaded
    form, _, address = engine.partition(":")
    if form != "milvus" or not address:
        raise UserError(f"--engine={engine}: no engine; write {FORM}: http://HOST:PORT, or a path that ends in .db")
    search, about = loaded.search, require_about(Path(gallery).expanduser(), gallery)
    if search.windows:
        raise UserError(f"--engine={engine}: holds whole pictures, and {gallery} has windows; leave --engine out")
    distance = search.prepared.distance
    if distance not in milvus.METRICS:
        raise UserError(f"--engine={engine}: Milvus has no {distance} distance; leave --engine out")
    with naming("--engine=milvus:"):
        opened = milvus.open_milvus(
            address if "://" in address else str(Path(address).expanduser()), distance, search.embeddings.shape[1],
            collection=collection, source=collection_source(about, workdir),
        )  # fmt: skip
        find = finding.make_finder(opened, search.image_ids.tolist(), f"{address}: collection {collection}")
    words = f"{search.words}, found by the collection {collection} of {address}"
    return loaded._replace(search=search._replace(find=find, words=words))
