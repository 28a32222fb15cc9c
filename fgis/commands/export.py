"""Writes the embeddings of a gallery for other programs: to Parquet, to an index of faiss, or to Milvus."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

WORKDIR = "optional"  # without one: as the gallery was indexed
READS_SAVED_CONFIG = True
CONFIG = "photos"  # of a gallery that does not say how it was made
FORMS = {"parquet": "parquet:FILE", "faiss": "faiss:FILE", "milvus": "milvus:ADDRESS"}


class Options(NamedTuple):
    """The flags of ``--mode=export``."""

    gallery: Annotated[str, "the folder of the gallery"] = ""
    to: Annotated[str, f"where to: {', '.join(FORMS.values())} (http://HOST:PORT, or a path that ends in .db)"] = ""
    collection: Annotated[str, "the collection of Milvus"] = "fgis"
    step: Annotated[int | None, "the checkpoint whose heads embed; the latest without it"] = None


def run(config: Any, workdir: Path | None, options: Options) -> None:
    """Writes embeddings, image ids and labels; of Milvus, the collection then holds what the gallery holds.

    Raises:
      UserError: the gallery, the file or the server cannot be used, or a library is missing.
    """
    form, target = _read_target(options)
    from fgis.errors import UserError, naming
    from fgis.experiment.differences import to_plain
    from fgis.experiment.engines import collection_source
    from fgis.experiment.galleries import load_gallery
    from fgis.experiment.gallery_about import require_about
    from fgis.gallery.engines import exports, milvus

    loaded = load_gallery(options.gallery, to_plain(config), str(workdir or ""), options.step, tiled=False)
    embeddings, distance = loaded.search.embeddings, loaded.search.prepared.distance
    known = {"faiss": exports.FAISS_DISTANCES, "milvus": {*milvus.METRICS}}
    if distance not in known.get(form, {distance}):
        raise UserError(
            f"--to={options.to}: {form} has no {distance} distance; {FORMS['parquet']} holds any embeddings"
        )
    about = require_about(Path(options.gallery).expanduser(), options.gallery)
    provenance = _provenance(config, workdir, options, loaded, about)
    with naming(f"--to={form}:"):
        if form == "parquet":
            exports.write_parquet(target, loaded.records, embeddings, provenance)
            written = target
        elif form == "faiss":
            written = f"{target} and {exports.write_faiss(target, loaded.records, embeddings, distance, provenance)}"
        else:
            source = collection_source(about, str(workdir.absolute()) if workdir else "")
            written = _to_milvus(target, loaded, source, options.collection)
    count, size = embeddings.shape
    print(f"{written}: {count} images, {size} numbers each ({loaded.search.words})")


def _read_target(options: Options) -> tuple[str, str]:
    """What is written, and where; raises ``UserError`` for whatever is wrong with the flags."""
    from fgis.errors import UserError
    from fgis.ranges import nearest

    if not options.gallery:
        raise UserError("--gallery: missing; name the folder that --mode=index wrote, such as --gallery=gallery")
    known = ", ".join(FORMS.values())
    if not options.to:
        raise UserError(f"--to: missing; write one of {known}")
    form, colon, target = options.to.partition(":")
    if form not in FORMS:
        raise UserError(f"--to={options.to}: {nearest(form, FORMS)}; write one of {known}")
    if not colon or not target:
        raise UserError(f"--to={options.to}: where to? write {FORMS[form]}")
    if form != "milvus" and Path(target).expanduser().is_dir():
        raise UserError(f"--to={options.to}: a folder; name a file")
    is_address = form == "milvus" and not target.endswith(".db")
    return form, target if is_address else str(Path(target).expanduser())


def _provenance(config: Any, workdir: Path | None, options: Options, loaded: Any, about: Any) -> dict[str, Any]:
    """What the embeddings are of, for whoever finds them without this gallery."""
    from fgis import __version__
    from fgis.experiment.differences import to_plain

    return {
        "fgis": __version__,
        "made": loaded.made,
        "images": about.images,
        "weights_sha256": about.weights_sha256,
        "features": to_plain(config)["features"],
        "workdir": str(workdir.absolute()) if workdir else about.workdir,
        "step": options.step if options.step is not None else about.step,
        "distance": loaded.search.prepared.distance,
    }


def _to_milvus(address: str, loaded: Any, source: str, collection: str) -> str:
    """Brings the collection to the state of the gallery: what is gone leaves after what is there was written."""
    from contextlib import closing

    from fgis.gallery.engines import milvus

    search = loaded.search
    opened = milvus.open_milvus(
        address, search.prepared.distance, search.embeddings.shape[1], collection=collection, source=source,
        create=True,
    )  # fmt: skip
    with closing(opened) as engine:
        ids = [one.image_id for one in loaded.records]
        engine.upsert(ids, [one.label for one in loaded.records], search.embeddings)
        gone = sorted({*engine.image_ids()} - {*ids})
        engine.delete(gone)
    return f"collection {collection} of {address}{f', {len(gone)} removed' if gone else ''}"
