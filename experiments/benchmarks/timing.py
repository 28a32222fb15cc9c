"""Interleaved timing of ours against a peer, each in a process of its own; a table, and one JSON line for programs.

A case is a module-level function ``make(*arguments) -> run`` whose ``run()`` does the work once and returns when it is
done. Both sides are made and run once untimed (so everything is compiled), then run in turns: whatever else the
machine does hits both. Times are the minimum of the turns; memory is the peak resident size of the side's process.
"""

import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from tabulate import tabulate


class Measured(NamedTuple):
    """The best time of one side and its peak memory."""

    seconds: float
    megabytes: float


def interleave(sides: Sequence[tuple[Callable[..., Callable[[], Any]], tuple]], repeats: int = 3) -> list[Measured]:
    """Measure the sides, each (make, arguments), in turns; one process each, started afresh."""
    context = multiprocessing.get_context("spawn")
    children, pipes = [], []
    for make, arguments in sides:
        ours, theirs = context.Pipe()
        child = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        child.start()
        theirs.close()
        children.append(child)
        pipes.append(ours)
        ours.recv()  # ready: one side is made and warmed up at a time
    best = [float("inf")] * len(sides)
    for _ in range(repeats):
        for side, pipe in enumerate(pipes):
            pipe.send(True)
            best[side] = min(best[side], pipe.recv())
    peaks = []
    for pipe, child in zip(pipes, children, strict=True):
        pipe.send(False)
        peaks.append(pipe.recv())
        child.join()
    return [Measured(seconds, peak) for seconds, peak in zip(best, peaks, strict=True)]


def row(case: str, ours: Measured, peer_name: str, peer: Measured, **more: Any) -> dict[str, Any]:
    """Return one row of the report; ``more`` are further figures of the case."""
    return {
        "case": case,
        "ours_s": round(ours.seconds, 4),
        "peer": peer_name,
        "peer_s": round(peer.seconds, 4),
        "ratio": round(peer.seconds / ours.seconds, 2),
        "ours_mb": round(ours.megabytes),
        "peer_mb": round(peer.megabytes),
        **more,
    }


def alone(case: str, ours: Measured, peer_name: str) -> dict[str, Any]:
    """Return the row of a case that the peer cannot do."""
    return row(case, ours, peer_name, ours) | {"peer_s": None, "ratio": None, "peer_mb": None}


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own: the peak memory of a parent counts as that of its children."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def report(benchmark: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows as a table, the machine's state, and the JSON line that ends every benchmark."""
    print(tabulate(rows, headers="keys", floatfmt=".4g"))
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} CPU cores, Python {platform.python_version()}, load average {load} at the end")
    print(json.dumps({"benchmark": benchmark, "rows": list(rows)}), flush=True)


def _serve(pipe: Connection, make: Callable[..., Callable[[], Any]], arguments: tuple) -> None:
    """Child: make and warm up, then run whenever told to, and say how long it took; at the end, the peak memory."""
    run = make(*arguments)
    run()
    pipe.send(True)
    while pipe.recv():
        began = time.perf_counter()
        run()
        pipe.send(time.perf_counter() - began)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)
