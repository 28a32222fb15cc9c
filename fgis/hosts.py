"""Several processes, on one host or many, that train together: they join, agree, and leave.

Joined processes see the devices of all of them (``jax.devices()``), and run the same program on them. Process 0 alone
writes files. In a process that has joined nobody every function here is about this process alone. What several
processes do together (``from_first``, ``largest``, ``same_in_all``, ``to_own_host`` and training itself) all of them
must do in the same order, on their main threads.
"""

import atexit
import faulthandler
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgis.errors import UserError, reason_of

HEARTBEAT_SECONDS = 60  # without a sign of life, a process counts as dead
SHUTDOWN_SECONDS = 3600  # until the last one has saved its checkpoint
LOST = re.compile(
    r"gloo \S+ failed|nccl|coordination.?service|connection (closed|reset|refused)|socket closed|heartbeat",
    re.IGNORECASE,
)
GO_ON = "the same command goes on from the last checkpoint"


class Place(NamedTuple):
    """Where a process is among all."""

    process: int = 0
    processes: int = 1


class _Here:
    """The module's only variables."""

    place = Place()
    connected = False


def join(
    coordinator: str | None = None, place: Place | None = None, *, devices: str = "", wait_seconds: int = 300
) -> None:
    """Joins the other processes, before any JAX array is made; the body of ``together`` follows.

    Args:
      coordinator: ``HOST:PORT`` that process 0 listens on; None where a launcher (SLURM, Open MPI, Kubernetes, Cloud
        TPU) says this and the place.
      place: of this process.
      devices: the GPUs of this process: "all" of its host, or numbers, "0,1". Empty: all of them where it is the only
        process on its host or has named its place; otherwise, as launchers have it, one for each process of a host.
      wait_seconds: how long the others may take to come.

    Raises:
      ValueError: no launcher started this process.
      UserError: the address is taken. Where others do not come in time, the runtime of JAX aborts the process after a
        line of ``fgis.last_words``.
    """
    _watch_output()
    _connect(coordinator, place, devices, wait_seconds)


@contextmanager
def together() -> Iterator[None]:
    """What joined processes do; at its end they leave, and one that fails ends alone, which the others notice.

    A process that has lost another one ends at once after one line, with exit code 2, or by an abort where the runtime
    of JAX notices it first.
    """
    try:
        yield
    except BaseException as error:
        if _is_loss(error):
            _say_at_end(f"{_lost_words()} ({reason_of(error)}); {GO_ON}", b"\1")
            _end(2)
        code = 128 + getattr(error, "number", 2) if isinstance(error, KeyboardInterrupt) else 1
        atexit.register(_end, 2 if isinstance(error, UserError | OSError) else code)
        raise
    leave()


def is_first() -> bool:
    """Whether this process writes files: process 0, or the only one."""
    return _Here.place.process == 0


def are_several() -> bool:
    """Whether other processes have joined and not left."""
    return _Here.connected


def leave() -> None:
    """Waits until all processes are here and takes leave of them; each goes on, or ends, by itself."""
    if _Here.connected:
        import jax

        jax.distributed.shutdown()
        _Here.connected = False


def from_first(tree: Any) -> Any:
    """Arrays of process 0 in the memory of every process, to the bit; those of the others give shapes and types."""
    if not _Here.connected:
        return tree
    import jax
    from jax.experimental import multihost_utils

    def send(leaf: Any) -> np.ndarray:
        array = np.asarray(leaf) if is_first() else np.zeros(leaf.shape, leaf.dtype)
        # As bytes: the exchange adds zeros, which would change the sign of a zero.
        found = multihost_utils.broadcast_one_to_all(np.frombuffer(array.tobytes(), np.uint8))
        return np.frombuffer(np.asarray(found).tobytes(), array.dtype).reshape(array.shape)

    return jax.tree.map(send, tree)


def largest(number: int) -> int:
    """The largest of the numbers of all processes."""
    if not _Here.connected:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def same_in_all(digest: bytes, what: str) -> None:
    """Raises ``UserError`` where ``digest``, of the same length in all processes, is not that of process 0."""
    if not _Here.connected:
        return
    from jax.experimental import multihost_utils

    found = np.asarray(multihost_utils.process_allgather(np.frombuffer(digest, np.uint8)))
    other = np.flatnonzero((found != found[0]).any(axis=1))
    if len(other):
        raise UserError(
            f"process {other[0]} of {_Here.place.processes} has {what} than process 0; give all of them the same "
            "command, the same files and the same versions"
        )


def to_own_host(leaf: Any) -> np.ndarray:
    """An array in the memory of the host; one that several processes hold parts of is gathered by all of them."""
    import jax

    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _connect(coordinator: str | None, place: Place | None, devices: str, wait_seconds: int) -> None:
    """Joins, and says so in one line."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from ``fgis.interrupts``
    where = coordinator or "the address that the launcher names"
    who = f"process {place.process} of {place.processes}" if place else "this process"
    _say_at_end(
        f"{who} has not met all others within {wait_seconds} s at {where}; start all of them with the same number of "
        "processes, each with a number of its own, and look at what they say",
        b"\0",
    )
    if coordinator and place and place.process == 0:
        _check_port(coordinator)
    try:
        # On a thread, so that a signal is noticed while this process waits for the others.
        ThreadPoolExecutor(1).submit(
            jax.distributed.initialize,
            coordinator,
            place.processes if place else None,
            place.process if place else None,
            local_device_ids=parse_devices(devices),
            cluster_detection_method="deactivate" if place else None,
            initialization_timeout=wait_seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        ).result()
    except jax.errors.JaxRuntimeError as error:
        raise _not_listened_on(where, error) from error
    if devices == "all" or (not devices and _is_alone_on_host(os.environ)):
        for name in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(name, "all")
    _Here.connected = True
    _Here.place = Place(jax.process_index(), jax.process_count())
    _say_at_end(f"{_lost_words()}; see what they say. {GO_ON[0].upper()}{GO_ON[1:]}", b"\0")
    if is_first():
        print(f"{jax.process_count()} processes, {jax.device_count()} devices", flush=True)


def _check_port(coordinator: str) -> None:
    """Raises ``UserError`` where another program listens on the port: JAX says so too, but may crash while it does."""
    try:
        socket.create_server(("", int(coordinator.rpartition(":")[2]))).close()
    except OSError as error:
        raise _not_listened_on(coordinator, error) from error


def _not_listened_on(where: str, error: Exception) -> UserError:
    return UserError(f"{where}: cannot be listened on ({reason_of(error)}); name another port")


def _is_alone_on_host(environment: Any) -> bool:
    """Whether a launcher has started one process on each host.

    >>> _is_alone_on_host({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}), _is_alone_on_host({"SLURM_TASKS_PER_NODE": "4(x2)"})
    (True, False)
    """
    slurm = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", ""))
    return bool(re.fullmatch(r"1(\(x\d+\))?", slurm)) or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def _lost_words() -> str:
    process, processes = _Here.place
    return f"process {process} of {processes} has lost another one"


def _is_loss(error: BaseException) -> bool:
    """Whether an error says that another process is gone: a ``JaxRuntimeError``, or one that NumPy has made of it."""
    known = isinstance(error, RuntimeError | ValueError) and not isinstance(error, UserError)
    return _Here.connected and known and bool(LOST.search(str(error)))


def _end(code: int) -> None:
    """Ends a process that failed: JAX would wait for the others, which wait for this one."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code)


def _watch_output() -> None:
    """Lets a process beside this one read what libraries print as errors; Python's own output stays as it is.

    What libraries print on standard output goes nowhere: gloo announces its connections, in torn lines.
    """
    watcher = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("last_words.py"))],
        stdin=subprocess.PIPE, stdout=sys.stderr, start_new_session=True,
    )  # fmt: skip
    assert watcher.stdin is not None
    watcher.returncode = 0  # it ends after this process, which does not wait for it
    with open(os.devnull, "wb") as nowhere:
        for name, target in (("stdout", nowhere), ("stderr", watcher.stdin)):
            stream = getattr(sys, name)
            number = stream.fileno()
            own = os.fdopen(os.dup(number), "w", encoding=stream.encoding, errors=stream.errors, buffering=1)
            setattr(sys, name, own)
            os.dup2(target.fileno(), number)
    watcher.stdin.close()
    faulthandler.enable(2)  # so that ``fgis.last_words`` reads of an abort that the runtime says nothing of


def _say_at_end(words: str, when: bytes) -> None:
    """Hands the last line to ``fgis.last_words``: b"\\0" for an abort, b"\\1" now; only one of them is printed."""
    os.write(2, when + f"fgis: {words}\n".encode())


def parse_devices(text: str) -> Sequence[int] | None:
    """The numbers of ``0,1``; None of ``all`` and of an empty text.

    Raises:
      ValueError: the text is none of these, or a number is there twice.

    >>> parse_devices("0,1"), parse_devices("all")
    ([0, 1], None)
    """
    if text in ("", "all"):
        return None
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) != len(parts):
        raise ValueError(f"{text!r} found; write all, or numbers such as 0,1")
    return [int(part) for part in parts]
