"""``python -m fgis.main --config=configs/ukbench.py [--workdir=DIR] [--mode=MODE] [--config.KEY=VALUE ...]``."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags, logging
from ml_collections import config_flags

from fgis import choices, modes
from fgis.types import UserError


class Arguments(NamedTuple):
    """The parsed command line."""

    config: Any
    workdir: Path
    mode: str
    step: int | None


def main(arguments: Sequence[str]) -> int:
    """Runs one mode; returns the exit code: 0, or 2 after one line about something that the user can mend."""
    try:
        if parsed := parse(arguments):
            keep_compiled_programs()
            logging.set_verbosity(logging.ERROR)  # Orbax narrates
            choices.check(parsed.config)
            modes.MODES[parsed.mode](parsed.config, parsed.workdir, parsed.step)
    except UserError as error:
        print(f"fgis: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fgis: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def parse(arguments: Sequence[str]) -> Arguments | None:
    """The flags, or None after ``--help``; what is wrong with them is one line instead of a traceback."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file such as configs/ukbench.py[:variant]; --config.KEY=VALUE changes it.",
        flag_values=values, sys_argv=["fgis.main", *arguments],
    )  # fmt: skip
    workdir = flags.DEFINE_string("workdir", None, "Where the run lives; runs/NAME without it.", flag_values=values)
    mode = flags.DEFINE_enum("mode", "train", list(modes.MODES), "What to do.", flag_values=values)
    step = flags.DEFINE_integer("step", None, "The checkpoint to evaluate; the latest without it.", flag_values=values)
    if {"--help", "-h", "--helpfull"} & set(arguments):
        print(f"{__doc__.strip('`.')}\n\n{values.main_module_help() or values.get_help()}")
        return None
    try:
        rest = values(["fgis.main", *arguments])[1:]
        if config.value is None:
            raise UserError("--config: missing; name an experiment, such as --config=configs/ukbench.py")
        list(config.value)  # a file that could not be loaded reports it now
    except AttributeError as error:  # an override of a key that does not exist
        raise UserError(_no_such_key(str(error), arguments)) from error
    except (flags.Error, OSError, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{lines[0].rstrip(':')}: {lines[-1]}" if len(lines) > 1 else lines[0]) from error
    if rest:
        raise UserError(f"{rest[0]}: not a flag; every argument has the form --name=value")
    return Arguments(config.value, Path(workdir.value or _default_workdir(values)), mode.value, step.value)


def keep_compiled_programs() -> None:
    """Compiles once per machine instead of once per process, unless the user has a say of their own in it."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgis" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _no_such_key(message: str, arguments: Sequence[str]) -> str:
    word = re.search(r"'([^'\\]+)", message)
    close = re.search(r'Did you mean "([^"]+)"', message)
    override = rf"--config\.(.*\.)?{re.escape(word[1])}(=|\.|$)" if word else "--config"
    found = next((argument for argument in arguments if re.match(override, argument)), "--config")
    hint = f"did you mean {close[1]!r}?" if close else "nothing near it; the config file lists its keys"
    return f"{found}: no such key in the config; {hint}"


def _default_workdir(values: flags.FlagValues) -> str:
    """``runs/ukbench``, ``runs/ukbench-published``, ``runs/ukbench,miner.name=semi_hard``: one place per experiment."""
    file, _, variant = config_flags.get_config_filename(values["config"]).partition(":")
    overrides = config_flags.get_override_values(values["config"])
    name = Path(file).stem + (f"-{variant}" if variant else "")
    changed = "".join(f",{key}={value}" for key, value in sorted(overrides.items()))
    return "runs/" + re.sub(r"[^\w.,=+-]+", "_", name + changed)[:200]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
