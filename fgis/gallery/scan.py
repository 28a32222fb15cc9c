"""The image files of a folder, at any depth: names, sizes and times; nothing is opened."""

import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fgis.errors import UserError
from fgis.features.images import SUFFIXES

MORE_SUFFIXES = (".jfif", ".jpe", ".heic", ".heif", ".hif")  # beyond those of labelled collections
PLUGIN = (".heic", ".heif", ".hif")  # Pillow needs the package pillow-heif for these


class ImageFile(NamedTuple):
    """One image file below the folder."""

    image_id: str  # posix path below the folder
    path: Path
    label: str  # the first sub-folder's name; "" for a file at the top
    bytes: int  # -1 where it cannot be looked at, such as a link to nothing
    modified_ns: int


class Scan(NamedTuple):
    """What a folder holds."""

    files: list[ImageFile]  # by image id
    others: Mapping[str, int]  # how many visible files there are of each other suffix


def scan_folder(root: str | Path) -> Scan:
    """Lists the image files below a folder.

    Files and folders whose name begins with a dot are ignored. Links are followed, but no folder and no file that a
    link points to is listed a second time, so that a link to a folder above it does no harm.

    Args:
      root: the folder; ``~`` is expanded.

    Returns:
      The image files, in the order of their ids, and what else there is.

    Raises:
      UserError: there is no such folder, or it holds no image.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name the folder that holds the images")
    others: Counter[str] = Counter()
    files = []
    for place, status in _walk(root):
        suffix = place.suffix.lower()
        if suffix in SUFFIXES or suffix in MORE_SUFFIXES:
            parts = place.relative_to(root).parts
            size, modified = (status.st_size, status.st_mtime_ns) if status else (-1, 0)
            files.append(ImageFile("/".join(parts), place, parts[0] if len(parts) > 1 else "", size, modified))
        else:
            others[suffix] += 1
    if not files:
        raise UserError(f"{root}: no image in this folder; name one with files such as photo.jpg, at any depth")
    return Scan(sorted(files), dict(others.most_common()))


@cache
def register_plugins() -> bool:
    """Lets Pillow read HEIC, where the package pillow-heif is installed; whether it is."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def _walk(root: Path) -> Iterator[tuple[Path, os.stat_result | None]]:
    """The visible files below ``root``: real ones first, then those behind links that were not seen yet."""
    seen: set[tuple[int, int]] = set()
    folders, links = [root], list[Path]()
    while folders or links:
        linked = not folders
        place = folders.pop() if folders else links.pop(0)
        try:
            status = place.stat()
        except OSError:  # a link to nothing, or gone since
            if place.is_symlink():
                yield place, None
            continue
        key = (status.st_dev, status.st_ino)
        folder = stat.S_ISDIR(status.st_mode)
        if key in seen and (linked or folder):
            continue
        seen.add(key)
        if not folder:
            yield place, status
            continue
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:  # may not be read: nothing in it can be used
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_symlink():
                links.append(Path(entry.path))
            else:
                folders.append(Path(entry.path))
