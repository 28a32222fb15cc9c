"""What a process does before its first computation: a compilation cache, and quiet libraries."""

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from absl import logging

from fgis.errors import warn

UNREADABLE = "Error reading persistent compilation cache entry"


def prepare_jax() -> None:
    """Keeps compiled programs on disk, so that they are compiled once per machine and not once per process.

    Does nothing where ``JAX_COMPILATION_CACHE_DIR`` is set, or where there is no home directory to write to.
    """
    logging.set_verbosity(logging.FATAL)  # Orbax logs every save, and its errors come as exceptions as well
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgis" / "compiled"
    except RuntimeError:  # no HOME, and a user that the system does not know
        return
    _drop_damaged(cache)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)


def _drop_damaged(cache: Path) -> None:
    """Empties the cache when JAX cannot read an entry: it never replaces one, and would warn of it for ever."""
    before = warnings.showwarning

    def show(message: Warning | str, *more: Any, **named: Any) -> None:
        if not str(message).startswith(UNREADABLE):
            before(message, *more, **named)
            return
        entries = list(cache.glob("*-cache"))
        for entry in entries:
            with suppress(OSError):
                entry.unlink()
        if entries:
            warn(f"{cache}: a compiled program is damaged; all are compiled again")

    warnings.showwarning = show
