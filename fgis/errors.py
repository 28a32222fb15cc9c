"""The one exception that becomes a line on the terminal, and how a line gets the name of its key."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_REASON = 120  # characters of another library's words in a line
UNPRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # would end the line, or control a terminal


class UserError(ValueError):
    """A problem that the user can put right, in one line: what it is about, what was found, and what to do.

    ``fgis.main`` prints the line on standard error and exits with 2; every other exception is a traceback. Library
    functions raise a plain ``ValueError`` about their own arguments, and a ``UserError`` about files and the data in
    them; only ``fgis.experiment`` and ``fgis.commands`` speak of flags and configuration keys.

    >>> print(UserError("a\\nb.h5: no such file; name another"))
    a\\nb.h5: no such file; name another
    """

    def __init__(self, line: object) -> None:
        """Takes the line; characters in it that would end it, as names of files may hold, are written as escapes."""
        super().__init__(UNPRINTED.sub(lambda found: repr(found[0])[1:-1], str(line)))


@contextmanager
def naming(prefix: str) -> Iterator[None]:
    """Turns a ``ValueError`` of the body into a ``UserError`` whose line begins with ``prefix``, such as a key.

    A ``UserError`` that already names a file keeps its line where ``prefix`` ends in a dot, the beginning of a key.

    >>> with naming("config.features."):
    ...     raise ValueError("fit: 'stretch' is unknown")
    Traceback (most recent call last):
    fgis.errors.UserError: config.features.fit: 'stretch' is unknown
    """
    try:
        yield
    except ValueError as error:
        if isinstance(error, UserError) and prefix.endswith("."):
            raise
        raise UserError(f"{prefix}{error}") from error


def warn(line: str) -> None:
    """Prints a line on standard error: what a command does otherwise than usual, and goes on."""
    print(f"fgis: {line}", file=sys.stderr, flush=True)


def reason_of(error: BaseException) -> str:
    """The reason of an error of the file system or a library, in a few words of one line.

    >>> reason_of(FileNotFoundError(2, "No such file or directory", "a.h5")), reason_of(KeyError())
    ('No such file or directory', 'KeyError')
    """
    number = re.search(r"os_error_code='(\d+)'", str(error))  # in the last words of a long message of TensorStore
    found = os.strerror(int(number[1])) if number else getattr(error, "strerror", None) or str(error)
    words = " ".join(found.split()) or type(error).__name__
    return words if len(words) <= LONGEST_REASON else f"{words[:LONGEST_REASON].rstrip()} ..."
