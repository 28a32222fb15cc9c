"""SIGINT and SIGTERM: one line on how to go on, and work that is brought to an end first.

What a command writes is whole or absent at every moment, so a process may leave at once. A training puts that off to
its next record, where it saves a checkpoint; a second signal does not wait.
"""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption(KeyboardInterrupt):
    """A signal that a command put off, once it has saved what it has."""

    def __init__(self, number: int) -> None:
        """Takes the number of the signal."""
        super().__init__()
        self.number = number


class _State:
    """What the handler knows: the module's only variables."""

    words: Callable[[], str] = staticmethod(lambda: "run the same command again")
    holding = False
    waiting = 0  # the number of a signal that is put off


def take_signals(words: Callable[[], str]) -> None:
    """Takes both signals for the rest of the process, which leaves with 128 + their number after one line.

    Args:
      words: what is saved and how to go on, asked for when a signal arrives.
    """
    _State.words = staticmethod(words)
    for number in SIGNALS:
        signal.signal(number, _leave)
    atexit.register(_ignore_signals)  # what is registered first is called last


@contextmanager
def put_off() -> Iterator[Callable[[], int]]:
    """Puts a signal off while the body runs; the body asks for its number by what this yields, 0 without one.

    Signals are left to Python where ``take_signals`` was not called: SIGINT is a ``KeyboardInterrupt`` then.
    """
    _State.holding, _State.waiting = True, 0
    try:
        yield lambda: _State.waiting
    finally:
        _State.holding = False


def _leave(number: int, frame: FrameType | None) -> None:
    """Leaves without unwinding: threads of libraries would print tracebacks of their own."""
    del frame
    if _State.holding and not _State.waiting:
        _State.waiting = number
        return
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(Exception):
        os.write(sys.stderr.fileno(), f"fgis: {interrupted(number, _State.words())}\n".encode())
    os._exit(128 + number)


def _ignore_signals() -> None:
    """All is done, and Python takes its handlers away before it is gone: a signal would end it without a line."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def interrupted(number: int, words: str) -> str:
    """The line about a signal.

    >>> interrupted(15, "run the same command again")
    'interrupted by SIGTERM: run the same command again'
    """
    return f"interrupted by {signal.Signals(number).name}: {words}"
