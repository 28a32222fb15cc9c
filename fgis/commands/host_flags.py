"""The flags of the modes that several processes run together: who they are, and where they meet."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NamedTuple

from fgis.errors import UserError, naming


class HostFlags(NamedTuple):
    """How a process finds the others; without any of these flags it is alone."""

    distributed: Annotated[
        bool, "with the other processes that SLURM, Open MPI, Kubernetes or Cloud TPU started for this command"
    ] = False
    coordinator: Annotated[str, "HOST:PORT of process 0, where no such launcher names it"] = ""
    processes: Annotated[int | None, "with --coordinator: how many there are"] = None
    process: Annotated[int | None, "with --coordinator: which one this is, from 0"] = None
    local_devices: Annotated[
        str,
        "the GPUs of this process, all or numbers such as 0,1; without it all, or one for each process of a host where "
        "a launcher started several on it",
    ] = ""
    wait_seconds: Annotated[int, "how long the other processes may take to come"] = 300


def check_hosts(flags: HostFlags) -> None:
    """Raises ``UserError`` where flags are missing, contradict each other or are out of range."""
    together = flags.distributed or flags.coordinator
    for name in ("processes", "process"):
        value = getattr(flags, name)
        if value is not None and not flags.coordinator:
            raise UserError(f"--{name}: goes with --coordinator=HOST:PORT, which is missing")
        if value is None and flags.coordinator:
            raise UserError(f"--{name}: missing; --coordinator=HOST:PORT goes with --processes=N and --process=I")
    if flags.coordinator:
        match = re.fullmatch(r"(\S+):(\d{1,5})", flags.coordinator)
        if not match or not 0 < int(match[2]) < 65536:
            raise UserError(f"--coordinator: {flags.coordinator!r} found; write HOST:PORT, such as node1:12345")
        assert flags.processes is not None
        assert flags.process is not None
        if flags.processes < 1:
            raise UserError(f"--processes: {flags.processes} found; write how many there are, at least 1")
        if not 0 <= flags.process < flags.processes:
            raise UserError(
                f"--process: {flags.process} found; {flags.processes} processes have the numbers 0 to "
                f"{flags.processes - 1}"
            )
    if flags.local_devices and not together:
        raise UserError(
            "--local_devices: goes with --distributed or --coordinator; config.train.devices counts devices"
        )
    if flags.local_devices:
        from fgis import hosts

        with naming("--local_devices: "):
            hosts.parse_devices(flags.local_devices)
    if flags.wait_seconds < 1:
        raise UserError(f"--wait_seconds: {flags.wait_seconds} found; write at least 1")


@contextmanager
def among_hosts(flags: HostFlags) -> Iterator[None]:
    """Runs the body with the other processes, if flags name any; JAX may be imported and not yet used."""
    if not (flags.distributed or flags.coordinator):
        yield
        return
    from fgis import hosts

    place = None
    if flags.coordinator:
        assert flags.processes is not None
        assert flags.process is not None
        place = hosts.Place(flags.process, flags.processes)
    try:
        hosts.join(flags.coordinator or None, place, devices=flags.local_devices, wait_seconds=flags.wait_seconds)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            "--distributed: no SLURM, Open MPI, Kubernetes or Cloud TPU started this process; start it by one, or name "
            "--coordinator=HOST:PORT, --processes=N and --process=I"
        ) from error
    with hosts.together():
        yield
