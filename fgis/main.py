"""``python -m fgis.main --config=configs/ukbench.py [--workdir=DIR] [--mode=MODE] [--config.KEY=VALUE ...]``."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from fgis import build, modes
from fgis.types import UserError

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file such as configs/ukbench.py[:variant].")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run lives; runs/NAME[,KEY=VALUE...] without it.")
MODE = flags.DEFINE_enum("mode", "train", sorted(modes.MODES), "What to do.")
STEP = flags.DEFINE_integer("step", None, "The checkpoint to evaluate; the latest without it.")


def main(arguments: Sequence[str]) -> int:
    """Runs one mode; returns the exit code: 0, or 2 after one line about something that the user can mend."""
    try:
        _parse(arguments)
        config = CONFIG.value
        build.check(config)
        modes.MODES[MODE.value](config, Path(WORKDIR.value or _default_workdir()), STEP.value)
    except UserError as error:
        print(f"fgis: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(arguments: Sequence[str]) -> None:
    """Parses the flags; what is wrong with them is one line, where absl and ml_collections would print a traceback."""
    try:
        rest = FLAGS(["fgis.main", *arguments])[1:]
    except AttributeError as error:  # an override of a key that does not exist
        word = re.search(r"'([^']+)'", str(error))
        close = re.search(r'Did you mean "([^"]+)"', str(error))
        override = rf"--config\.(.*\.)?{re.escape(word[1])}(=|\.|$)" if word else "--config"
        found = next((argument for argument in arguments if re.match(override, argument)), "--config")
        hint = f"did you mean {close[1]!r}?" if close else "no key is near it; the config file lists them"
        raise UserError(f"{found}: no such key in the config; {hint}") from error
    except (flags.Error, OSError, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{lines[0].rstrip(':')}: {lines[-1]}" if len(lines) > 1 else lines[0]) from error
    if rest:
        raise UserError(f"{rest[0]}: not a flag; every argument has the form --name=value")
    if CONFIG.value is None:
        raise UserError("--config: missing; name an experiment, such as --config=configs/ukbench.py")


def _default_workdir() -> str:
    """``runs/ukbench``, ``runs/ukbench-published``, ``runs/ukbench,miner.name=semi_hard``: one place per experiment."""
    file, _, variant = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    overrides = config_flags.get_override_values(FLAGS["config"])
    name = Path(file).stem + (f"-{variant}" if variant else "")
    changed = "".join(f",{key}={value}" for key, value in sorted(overrides.items()) if not key.startswith("features."))
    return "runs/" + re.sub(r"[^\w.,=+-]+", "_", name + changed)[:200]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
