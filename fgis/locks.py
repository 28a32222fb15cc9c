"""One process at a time: a lock on a file, which ends with the process however that ends."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fgis.errors import UserError, reason_of, warn

OF_RUN = "lock"  # in a work directory, or in the folder of an evaluation
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
IMPOSSIBLE = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def only_process(path: str | Path, place: str | Path, does: str, keep: bool = False) -> Iterator[None]:
    """Holds the lock ``path`` while the body runs.

    The lock is one of the system (``flock``), which works on NFS as well; where a file system has none, a line on
    standard error says so and the body runs without.

    Args:
      path: the lock file; its folder is made. It holds the number of the process and the name of its host.
      place: what it locks, for messages.
      does: what this process does, for the other one: "is training in it".
      keep: leaves the file behind; otherwise it is removed at the end.

    Raises:
      UserError: another process holds the lock; the line names the process and its host. Or the file cannot be written.
    """
    path = Path(path)
    with _open_locked(path, str(place)) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} {does}".encode())
        file.flush()
        try:
            yield
        finally:
            if not keep:
                with suppress(OSError):
                    path.unlink()


def _open_locked(path: Path, place: str) -> BinaryIO:
    """The opened and locked file; one that another process removed meanwhile is opened anew."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+b")  # noqa: SIM115  the caller closes it
        except OSError as error:
            raise UserError(f"{place}: cannot be written ({reason_of(error)}); name another place") from error
        try:
            _lock(file, place)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: BinaryIO, place: str) -> None:
    if os.name != "posix":
        return
    import fcntl  # absent elsewhere

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process is writing it"
            raise UserError(f"{place}: {holder}; wait until that one ends") from error
        if error.errno not in IMPOSSIBLE:
            raise UserError(f"{place}: cannot be locked ({reason_of(error)}); name another place") from error
        warn(f"{place}: this file system cannot lock files ({reason_of(error)}); let no second process write here")
