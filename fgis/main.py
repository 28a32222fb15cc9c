"""``python -m fgis.main --config=configs/ukbench.py [--workdir=DIR] [--mode=MODE] [--config.KEY=VALUE ...]``."""

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from fgis import interrupts
from fgis.commands import COMMANDS
from fgis.commands.command_line import Call, parse
from fgis.commands.host_flags import among_hosts
from fgis.errors import UserError, reason_of, warn


def main(arguments: Sequence[str], own_process: bool = False) -> int:
    """Runs one command; returns the exit code: 0, or 2 after one line about a problem that the user can put right.

    130 after SIGINT, 143 after SIGTERM, 141 where nobody reads the output any more.

    Args:
      arguments: the command line.
      own_process: whether the process is there for this alone; only then signals are taken.
    """
    call: Call | None = None
    if own_process:
        gc.set_threshold(50_000)  # imports and tracing make so many objects that looking for cycles takes .2 seconds
        interrupts.take_signals(lambda: how_to_go_on(call))
    try:
        if call := parse(arguments):
            announce(call)
            from fgis.experiment.start import prepare_jax  # after the first line on the screen: JAX takes a second

            prepare_jax()
            with among_hosts(call.hosts):
                COMMANDS[call.mode].run(call.config, call.workdir, call.options)
        sys.stdout.flush()
    except UserError as error:
        warn(str(error))
        return 2
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # what is left in the buffer would raise at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        warn(f"standard output was closed: {how_to_go_on(call)}")
        return 141
    except OSError as error:  # of files: a full disk, a folder that may not be written or is gone
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        warn(f"{where}{reason_of(error)}; put that right and run the same command again")
        return 2
    except KeyboardInterrupt as error:
        number = getattr(error, "number", 2)
        warn(interrupts.interrupted(number, how_to_go_on(call)))
        return 128 + number
    return 0


def how_to_go_on(call: Call | None) -> str:
    """What a command has saved when it is interrupted, and how to go on."""
    if call is None:
        return "nothing was begun; run the same command again"
    words = getattr(COMMANDS[call.mode], "GO_ON", "nothing is lost; run the same command again")
    return words if isinstance(words, str) else words(call.workdir)


def announce(call: Call) -> None:
    """Says what is being done, before anything slow is imported; programs that read JSON are not disturbed."""
    line = f"fgis {call.mode}" + (f": {call.workdir}" if call.workdir else "")
    if not getattr(call.options, "json", False):
        print(line, flush=True)
    elif sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], own_process=True))
