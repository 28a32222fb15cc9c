"""``python -m fgis.main --config=configs/ukbench.py [--workdir=DIR] [--mode=MODE] [--config.KEY=VALUE ...]``."""

import sys
from collections.abc import Sequence

from fgis.commands import COMMANDS
from fgis.commands.command_line import Call, parse
from fgis.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit code: 0, or 2 after one line about a problem that the user can put right."""
    try:
        if call := parse(arguments):
            announce(call)
            from fgis.experiment.start import prepare_jax  # after the first line on the screen: JAX takes a second

            prepare_jax()
            COMMANDS[call.mode].run(call.config, call.workdir, call.options)
    except UserError as error:
        print(f"fgis: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fgis: interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def announce(call: Call) -> None:
    """Says what is being done, before anything slow is imported; programs that read JSON are not disturbed."""
    line = f"fgis {call.mode}" + (f": {call.workdir}" if call.workdir else "")
    if not getattr(call.options, "json", False):
        print(line, flush=True)
    elif sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
