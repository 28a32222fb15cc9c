"""``python -m fgis.main --config=configs/ukbench.py [--workdir=DIR] [--mode=MODE] [--config.KEY=VALUE ...]``."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import logging

from fgis import choices
from fgis.command import MODES, parse
from fgis.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Runs one mode; returns the exit code: 0, or 2 after one line about something that the user can mend."""
    try:
        if parsed := parse(arguments):
            keep_compiled_programs()
            logging.set_verbosity(logging.ERROR)  # Orbax narrates
            choices.check(parsed.config)
            more = (parsed.options,) if parsed.options else ()
            MODES[parsed.mode](parsed.config, parsed.workdir, parsed.step, *more)
    except UserError as error:
        print(f"fgis: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fgis: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def keep_compiled_programs() -> None:
    """Compiles once per machine instead of once per process, unless the user has a say of their own in it."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgis" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
