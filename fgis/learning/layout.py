"""Several devices, also of several processes: which of them train which runs, and which share the batches of a run.

Devices form a table of ``runs`` rows and ``data`` columns. Runs are dealt out over the rows; the columns of a row share
each batch of its runs, and mine over the whole of it. Many small runs fill the devices by themselves; one large run is
shared by all. ``PARALLEL`` has the ways in which one program runs on all of them; what is computed is the same.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

RUNS, DATA = "runs", "data"  # the axes of the table
WHOLE = 3  # rows of a triplet, which lie on one device
Parallel = Literal["shard_map", "pmap", "jit"]  # the names of ``PARALLEL``


class DeviceTable(NamedTuple):
    """The table of devices, and the batches that they share."""

    mesh: Mesh
    runs: int
    data: int
    rows: int  # images of a whole batch
    parallel: Parallel = "shard_map"

    @property
    def axis(self) -> str | None:
        """The axis that a batch is shared over by name; None where no batch is, or where the compiler shares it."""
        return DATA if self.data > 1 and self.parallel != "jit" else None

    @property
    def by_compiler(self) -> bool:
        """Whether the compiler divides a program for one device: runs have to be one array, not the turns of a loop."""
        return self.parallel == "jit"


def lay_out(
    runs: int, rows: int, devices: Sequence[jax.Device], parallel: Parallel = "shard_map"
) -> DeviceTable | None:
    """A table that uses all devices: as many rows as divide both the devices and the runs.

    Args:
      runs: how many are trained.
      rows: images of a batch.
      devices: at least one.
      parallel: a key of ``PARALLEL``. "pmap" knows one axis: every device has runs of its own, or all share batches.

    Returns:
      The layout; None for one device.

    >>> lay_out(18, 128, jax.devices()[:1]) is None
    True
    """
    if len(devices) == 1:
        return None
    heights = (1, len(devices)) if parallel == "pmap" else range(1, len(devices) + 1)
    height = max(k for k in heights if len(devices) % k == 0 and runs % k == 0)
    width = len(devices) // height
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((height, width), (RUNS, DATA), axis_types=axes, devices=list(devices))
    return DeviceTable(mesh, height, width, rows, parallel)


def fill_up(rows: Int[Array, "... b"], layout: DeviceTable) -> Int[Array, "... c"]:
    """A batch with padding (−1) behind it, so that the devices can share it in whole triplets."""
    extra = -rows.shape[-1] % (WHOLE * layout.data) if layout.data > 1 else 0
    return jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, extra)], constant_values=-1)


def own_share(rows: Int[Array, " b"], layout: DeviceTable) -> Int[Array, " c"]:
    """The rows of a batch that the calling device holds, inside ``over_devices``; for the compiler, all of them."""
    if layout.data == 1:
        return rows
    filled = fill_up(rows, layout)
    if layout.by_compiler:
        return jax.lax.with_sharding_constraint(filled, NamedSharding(layout.mesh, PartitionSpec(DATA)))
    return filled.reshape(layout.data, -1)[jax.lax.axis_index(DATA)]


def over_devices(function: Any, layout: DeviceTable, batched: Sequence[bool], shared: Sequence[bool] = ()) -> Any:
    """``function`` on each device, on the runs of its row.

    Args:
      function: of arguments whose leaves are stacked over runs, or are the same everywhere; it returns the former.
      layout: the table.
      batched: for each argument, whether it is stacked over runs.
      shared: for each argument, whether its second axis is a batch that the devices of a row share; False without it.
    """
    return PARALLEL[layout.parallel](function, layout, batched, shared or [False] * len(batched))


def _by_shard_map(function: Any, layout: DeviceTable, batched: Sequence[bool], shared: Sequence[bool]) -> Any:
    """One program for each device, which sees its own part of arrays that lie on all of them."""
    specs = tuple(
        PartitionSpec(RUNS, DATA) if split else PartitionSpec(RUNS) if stacked else PartitionSpec()
        for stacked, split in zip(batched, shared, strict=True)
    )
    return jax.shard_map(function, mesh=layout.mesh, in_specs=specs, out_specs=PartitionSpec(RUNS), check_vma=False)


def _by_pmap(function: Any, layout: DeviceTable, batched: Sequence[bool], shared: Sequence[bool]) -> Any:
    """One program for each device, which sees its entry along an axis that has one entry for each."""
    devices = list(layout.mesh.devices.ravel())
    split = lambda axis: partial(
        jax.tree.map, lambda x: x.reshape(*x.shape[:axis], len(devices), -1, *x.shape[axis + 1 :])
    )
    if layout.data == 1:
        axes = tuple(0 if stacked else None for stacked in batched)
        mapped = jax.pmap(function, RUNS, in_axes=axes, devices=devices)
    else:
        axes = tuple(1 if here else None for here in shared)
        # There has to be an argument with such an axis: the number of the device is one.
        numbered = lambda _, *arguments: function(*arguments)
        by_number = jax.pmap(numbered, DATA, in_axes=(0, *axes), out_axes=None, devices=devices)
        mapped = partial(by_number, jnp.arange(len(devices)))

    def call(*arguments: Any) -> Any:
        placed = (one if axis is None else split(axis)(one) for axis, one in zip(axes, arguments, strict=True))
        found = mapped(*placed)
        return found if layout.data > 1 else jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)

    return call


def _by_compiler(function: Any, layout: DeviceTable, batched: Sequence[bool], shared: Sequence[bool]) -> Any:
    """The program of one device, which the compiler divides as its arrays lie (``by_runs``, ``own_share``)."""
    del batched, shared
    sharding = NamedSharding(layout.mesh, PartitionSpec(RUNS))
    return lambda *arguments: jax.lax.with_sharding_constraint(function(*arguments), sharding)


PARALLEL: dict[str, Callable[..., Any]] = {"shard_map": _by_shard_map, "pmap": _by_pmap, "jit": _by_compiler}


def everywhere(tree: Any, layout: DeviceTable) -> Any:
    """The same arrays on all devices; every process has the whole."""
    return _put(tree, NamedSharding(layout.mesh, PartitionSpec()))


def by_runs(tree: Any, layout: DeviceTable) -> Any:
    """Arrays that are stacked over runs, on the devices of each; every process has the whole."""
    return _put(tree, NamedSharding(layout.mesh, PartitionSpec(RUNS)))


def gathered(
    take: Callable[[Int[np.ndarray, "q c"]], Any], rows: Int[np.ndarray, "r b"], layout: DeviceTable, *, shared: bool
) -> jax.Array:
    """What ``take`` gives of ``rows``, on the devices that train these runs.

    Args:
      take: called in each process for the rows of its own devices alone; [q, c] -> [q, c, ...].
      rows: of a batch of every run, the same in all processes.
      layout: the table.
      shared: whether the devices of a row share each batch, which ``fill_up`` has made divisible; otherwise each has
        the whole.
    """
    sharding = NamedSharding(layout.mesh, PartitionSpec(RUNS, DATA) if shared else PartitionSpec(RUNS))
    own = {str(index): index for index in sharding.addressable_devices_indices_map(rows.shape).values() if index}
    taken = {key: np.asarray(take(rows[index])) for key, index in own.items()}  # some devices hold the same
    tail = next(iter(taken.values())).shape[2:]
    return jax.make_array_from_callback((*rows.shape, *tail), sharding, lambda index: taken[str((index or ())[:2])])


def _put(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays on devices; those of other processes get theirs there."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    hosted = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), hosted)
