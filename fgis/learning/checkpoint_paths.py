"""Names of folders that Orbax misreads: it expands patterns and escapes in the whole path of a checkpoint."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fgis.errors import UserError

PLAIN = re.compile(
    r"[\w ./,=+@:~%-]*"
)  # paths that mean themselves; letters of any script, no half of a surrogate pair
PREFIX = "fgis-checkpoints-"


@contextmanager
def plain_path(path: Path, create: bool = False) -> Iterator[Path]:
    """``path``, or where Orbax would misread it ("[", "\\", bytes that are no UTF-8), a temporary link to it.

    Args:
      path: absolute.
      create: makes the folder first.

    Raises:
      UserError: the place of temporary files has such a name as well, or the folder cannot be made.
    """
    if PLAIN.fullmatch(str(path)):
        yield path
        return
    if create:
        path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder:
        if not PLAIN.fullmatch(folder):
            raise UserError(f"{path}: checkpoints cannot be kept under this name; name a folder without {_odd(path)}")
        link = Path(folder) / "checkpoints"
        link.symlink_to(path)
        yield link


def shown_path(path: str | os.PathLike[str]) -> Path:
    """What ``plain_path`` was called with, from what it gave."""
    plain = Path(path)
    return Path(os.readlink(plain)) if plain.parent.name.startswith(PREFIX) else plain


def _odd(path: Path) -> str:
    return " ".join(dict.fromkeys(re.findall(r"[^\w ./,=+@:~%-]", str(path))))
