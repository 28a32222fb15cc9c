"""Interleaved timing of ours against a peer, each in a process of its own; a table, and one JSON line for programs.

A case is a module-level function ``make(*arguments) -> run``; ``run(...)`` does the work once and returns when it is
done. ``interleave`` makes all sides and runs them once untimed (so everything is compiled), then in turns: whatever
else the machine does hits all of them. ``run_fresh`` times every run of a new process, the first one cold. Memory is
the peak resident size of the side's process.
"""

import argparse
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from tabulate import tabulate

from experiments.machine import peak_megabytes

Make = Callable[..., Callable[..., Any]]


# What makes libraries leave out instructions that the processor has; read when they are loaded.
INSTRUCTIONS = {
    "all": {},
    "avx2": {
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "FAISS_OPT_LEVEL": "avx2", "OPENBLAS_CORETYPE": "Haswell",
        "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
}  # fmt: skip


class Measured(NamedTuple):
    """The best time of one side and its peak memory."""

    seconds: float
    megabytes: float


class Fresh(NamedTuple):
    """What one process did: the seconds and the result of each run, the first of them cold, and its peak memory."""

    seconds: list[float]
    results: list[Any]
    megabytes: float


class Side:
    """One side of a benchmark in a process of its own, started afresh."""

    def __init__(self, make: Make, arguments: tuple) -> None:
        """Starts the process, which calls ``make``."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_run_on_demand, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, *inputs: Any, keep: bool = False) -> tuple[float, Any]:
        """(seconds, result) of one run; the result only where it is to be kept, since it has to be copied.

        Raises:
          SystemExit: the process has ended, after a message of its own.
        """
        try:
            self.pipe.send((inputs, keep))
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            raise SystemExit(f"a side of the benchmark ended with exit code {code}; see above why") from None

    def close(self) -> float:
        """Ends the process; returns its peak memory in megabytes."""
        self.pipe.send(None)
        megabytes = self.pipe.recv()
        self.process.join()
        return megabytes


def interleave(sides: Sequence[tuple[Make, tuple]], repeats: int = 3) -> list[Measured]:
    """Measures the sides, each (make, arguments), in turns; one process each."""
    running = []
    for make, arguments in sides:
        running.append(Side(make, arguments))
        running[-1].run()  # one side is made and warmed up at a time
    best = [float("inf")] * len(running)
    for _ in range(repeats):
        for number, side in enumerate(running):
            best[number] = min(best[number], side.run()[0])
    return [Measured(seconds, side.close()) for seconds, side in zip(best, running, strict=True)]


def run_fresh(make: Make, arguments: tuple, inputs: Sequence[Any]) -> Fresh:
    """Makes a side in a process of its own and runs it on each of the inputs."""
    side = Side(make, arguments)
    seconds, results = zip(*(side.run(one, keep=True) for one in inputs), strict=True)
    return Fresh(list(seconds), list(results), side.close())


def row(
    case: str, ours: Measured, peer_name: str, peer: Measured | None, *, limit: Measured | None = None, **more: Any
) -> dict[str, Any]:
    """One row of the report.

    Args:
      case: its name.
      ours: what was measured.
      peer_name: of the peer.
      peer: the same work by the peer; None where it cannot do it.
      limit: the part of the work that nobody can leave out (a matrix product, the network alone); None where it was
        not measured.
      more: further figures of the case.
    """
    return {
        "case": case,
        "ours_s": round(ours.seconds, 4),
        "peer": peer_name,
        "peer_s": round(peer.seconds, 4) if peer else None,
        "ratio": round(peer.seconds / ours.seconds, 2) if peer else None,
        "limit_s": round(limit.seconds, 4) if limit else None,
        "over_limit": round(ours.seconds / limit.seconds, 2) if limit else None,
        "ours_mb": round(ours.megabytes),
        "peer_mb": round(peer.megabytes) if peer else None,
        **more,
    }


def add_instructions(parser: argparse.ArgumentParser) -> None:
    """Adds ``--instructions``."""
    parser.add_argument(
        "--instructions", choices=INSTRUCTIONS, default="all",
        help="avx2: as on a processor without AVX-512, for XLA's own code, OpenBLAS, faiss and torch; the kernel of "
        "XLA's products asks the processor itself and knows no such setting",
    )  # fmt: skip


def use_instructions(name: str) -> None:
    """For this process and all that it starts, if no library was loaded yet."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ |= INSTRUCTIONS[name]
    if name != "all" and flags:
        os.environ["XLA_FLAGS"] = f"{flags} {INSTRUCTIONS[name]['XLA_FLAGS']}"


def products(queries: np.ndarray, gallery: np.ndarray) -> Callable[[], None]:
    """XLA's matrix product alone, in the blocks of a search: what no exact search can leave out."""
    import jax
    import jax.numpy as jnp

    from fgis.retrieval.search import query_blocks

    product = jax.jit(lambda a, c: jnp.einsum("qd,gd->qg", a, c, precision="highest"))
    columns = jax.device_put(gallery)
    blocks = []
    for block in query_blocks(len(queries), len(gallery)):
        rows = queries[block]
        blocks.append(jax.device_put(np.pad(rows, ((0, block.stop - block.start - len(rows)), (0, 0)))))

    def run() -> None:
        for block in blocks:
            jax.block_until_ready(product(block, columns))

    return run


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of its own, so that nothing of it stays in this one."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def report(benchmark: str, rows: Sequence[dict[str, Any]]) -> None:
    """Prints the rows as a table, the machine's state, and the JSON line that ends every benchmark."""
    filled = {key for one in rows for key, value in one.items() if value is not None}
    shown = [{key: value for key, value in one.items() if key in filled} for one in rows]
    print(tabulate(shown, headers="keys", floatfmt=".4g"))
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, load average {load} at the end")
    print(json.dumps({"benchmark": benchmark, "rows": list(rows)}), flush=True)


def _run_on_demand(pipe: Connection, make: Make, arguments: tuple) -> None:
    """The child: makes the side, then runs it on whatever is sent; at the end, the peak memory."""
    run = make(*arguments)
    while (wanted := pipe.recv()) is not None:
        inputs, keep = wanted
        began = time.perf_counter()
        result = run(*inputs)
        pipe.send((time.perf_counter() - began, result if keep else None))
    pipe.send(peak_megabytes())
