"""What a gallery says of itself: ``gallery.json``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fgis import files
from fgis.errors import UserError
from fgis.experiment.differences import describe_difference, differences

NAME = "gallery.json"
VERSION = 1
MADE_BY = (
    "backbone",
    "weights",
    "image_size",
    "fit",
    "pooling",
    "layer",
)  # of config.features: what all its features share


class About(NamedTuple):
    """``gallery.json``: what a gallery is made of."""

    images: str  # the folder, absolute
    config: Mapping[str, Any]  # plain
    workdir: str  # the run whose head embeds; "" for features as they are
    step: int | None  # its checkpoint; None for the latest
    weights_sha256: str  # of the network; "" before anything was described


def read_about(gallery: str | Path) -> About | None:
    """What ``gallery.json`` says; None where there is none.

    Raises:
      UserError: it is damaged, or of another version.
    """
    path = Path(gallery) / NAME
    held = files.read_object(path) if Path(gallery).is_dir() else None
    if held is None:
        return None
    about = About(*(held.get(name) for name in About._fields))  # type: ignore[arg-type]
    texts = (about.images, about.workdir, about.weights_sha256)
    whole = all(isinstance(text, str) for text in texts) and isinstance(about.config, Mapping)
    if held.get("version") != VERSION or not whole or not isinstance(about.config.get("features"), Mapping):
        raise _unusable(path, "it is not what --mode=index writes")
    if about.step is not None and type(about.step) is not int:
        raise _unusable(path, f"step is {about.step!r}")
    return about


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: damaged ({reason}); restore a copy, or remove the folder {path.parent} and index again")


def require_about(place: Path, gallery: str | Path) -> About:
    """What ``gallery.json`` says; ``UserError`` where there is no gallery."""
    if about := read_about(place):
        return about
    raise UserError(f"{gallery}: no gallery here; make one by --mode=index --images=DIR --gallery={gallery}")


def write_about(gallery: Path, about: About) -> None:
    """Writes ``gallery.json``, whole."""
    files.write_json(gallery / NAME, {"version": VERSION, **about._asdict()})


def refuse_other_images(held: About, about: About, gallery: Path) -> None:
    """A folder that is gone may have been moved; two that are there cannot both be meant."""
    if held.images != about.images and Path(held.images).is_dir():
        raise UserError(
            f"--images={about.images}: {gallery} holds the images of {held.images}; index that folder, or name another "
            "--gallery"
        )


def refuse_other_features(config: Mapping[str, Any], held: About, gallery: Path) -> None:
    """Refuses a configuration whose features would be others."""
    here, there = (
        files.json_types({key: one["features"][key] for key in MADE_BY if key in one["features"]})
        for one in (config, held.config)
    )
    if found := differences(here, there):
        raise UserError(
            f"config.features.{describe_difference(found, gallery)}; leave it as it was, or name another --gallery"
        )
