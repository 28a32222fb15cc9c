"""How far trainings on several devices are from those on one: every miner, loss and memory, in both precisions.

    python -m tests.devices.parity [--devices=2,4,8] [--ways=shard_map,pmap,jit] [--processes=2] [--out=FILE.json]

Each combination takes five steps of gradient descent on batches that the devices do not divide. In float64 the losses,
the gradients and the parameters of all steps have to agree within 1e-12 of the largest of them, in float32 the loss and
the gradient of the first step within 1e-5: later, a sharp loss amplifies rounding. The first way is run on each number
of devices, the others on the largest; then the ways but ``pmap`` in as many processes of two devices, in float64. What
is printed is the worst figure of each combination; the whole takes about an hour on two cores.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BOUNDS = {
    "float64": {"losses": 1e-12, "gradients": 1e-12, "parameters": 1e-12},
    "float32": {"first_loss": 1e-5, "first_gradient": 1e-5},
}
# Programs of a few steps are compiled as fast as they can be.
COMPILER = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def free_address() -> str:
    """An address of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


def start(asked: dict[str, Any], kind: str, devices: int) -> subprocess.Popen:
    """A process that compares, with so many devices of its own."""
    flags = f"--xla_force_host_platform_device_count={devices} {COMPILER}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_X64": str(int(kind == "float64"))}
    command = [sys.executable, "-m", "tests.devices.combinations", json.dumps(asked)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def find_rows(
    kind: str, several: list[tuple[int, str]], *, first: int = 0, every: int = 1, processes: int = 1
) -> list[dict[str, Any]]:
    """The rows of every ``every``-th combination, as ``combinations.compare`` gives them, and where they are from."""
    most = max(count for count, _ in several)
    asked: dict[str, Any] = {"several": several, "first": first, "every": every}
    if processes > 1:
        asked |= {"processes": processes, "coordinator": free_address()}
    running = [start({**asked, "process": number}, kind, most // processes) for number in range(processes)]
    rows = []
    try:
        for line in running[0].stdout or ():
            if line.startswith("{"):  # gloo announces its connections
                rows.append({"where": f"{processes} processes" if processes > 1 else "devices", **json.loads(line)})
                print(say(rows[-1]), flush=True)
        ended = [one.wait(timeout=120) for one in running]
    finally:
        for one in running:
            one.kill()
            one.wait()
    if any(ended) or any(row["type"] != kind for row in rows):
        raise SystemExit(f"a process ended with exit codes {ended}; see above why")
    return rows


def worst(row: dict[str, Any]) -> float:
    """The largest figure of a row among those that have a bound."""
    return max(row[name] for name in BOUNDS[row["type"]])


def say(row: dict[str, Any]) -> str:
    """One line of the table."""
    return f"{row['type']}  {row['where']:11}  {worst(row):.1e}  {row['combination']}"


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """The lines of those rows that are beyond a bound, or in which nothing was learned."""
    beyond = lambda row: any(not row[name] <= bound for name, bound in BOUNDS[row["type"]].items())
    return [say(row) for row in rows if beyond(row) or not row["learns"]]


def main() -> int:
    """Prints and writes the table; returns 1 where a figure is beyond its bound."""
    parser = argparse.ArgumentParser(prog="python -m tests.devices.parity")
    parser.add_argument("--devices", default="2,4,8")
    parser.add_argument("--first", type=int, default=0, help="how many combinations are left out at the beginning")
    parser.add_argument("--every", type=int, default=1, help="every so manieth combination alone")
    parser.add_argument("--processes", type=int, default=2, help="how many; 1 leaves them out")
    parser.add_argument("--ways", default="shard_map,pmap,jit")
    parser.add_argument("--kinds", default="float64,float32")
    parser.add_argument("--out", default="", help="a JSON file for the table")
    options = parser.parse_args()
    counts, rows = [int(count) for count in options.devices.split(",")], []
    ways = options.ways.split(",")
    several = [(count, ways[0]) for count in counts] + [(max(counts), way) for way in ways[1:]]
    for kind in filter(None, options.kinds.split(",")):
        rows += find_rows(kind, several, first=options.first, every=options.every)
    if options.processes > 1:
        spread = [(2 * options.processes, way) for way in ways if way != "pmap"]
        more = {"first": options.first, "every": options.every, "processes": options.processes}
        rows += find_rows("float64", spread, **more)
    if options.out:
        Path(options.out).write_text(json.dumps(rows, indent=1))
    for kind, where in sorted({(row["type"], row["where"]) for row in rows}):
        own = [row for row in rows if (row["type"], row["where"]) == (kind, where)]
        figures = ", ".join(f"{name} {max(row[name] for row in own):.1e}" for name in BOUNDS[kind])
        print(f"{kind}, {where}: {len(own)} combinations; at most: {figures}")
    beyond = failures(rows)
    print(f"beyond the bounds: {len(beyond)}", *beyond, sep="\n")
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
