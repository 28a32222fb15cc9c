"""What a process does before its first computation: a compilation cache, and quiet libraries."""

import os
from pathlib import Path

import jax
from absl import logging


def prepare_jax() -> None:
    """Keeps compiled programs on disk, so that they are compiled once per machine and not once per process.

    Does nothing where ``JAX_COMPILATION_CACHE_DIR`` is set, or where there is no home directory to write to.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax logs every save
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgis" / "compiled"
    except RuntimeError:  # no HOME, and a user that the system does not know
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
