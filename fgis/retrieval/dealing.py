"""Several devices search together: each holds the whole gallery and takes some of the blocks of queries.

A block runs through the same compiled program on whichever device it is, and its queries know nothing of other blocks:
results are those of one device, bit for bit, where devices are of one kind.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from fgis.retrieval.prepare import Gallery


class _Chosen:
    """The module's only variable."""

    devices: tuple[jax.Device, ...] = ()


def search_on(devices: Sequence[jax.Device]) -> None:
    """Says which devices searches of this process deal their queries to; none or one: each gallery's own.

    Args:
      devices: of this process.
    """
    _Chosen.devices = tuple(devices) if len(devices) > 1 else ()


def dealt(
    function: Callable[..., Any], gallery: Gallery, blocks: Sequence[slice], *of_queries: np.ndarray | None
) -> list[Any]:
    """``function(gallery, *of_queries)`` of consecutive shares of the queries, each on a device of its own.

    Args:
      function: of a gallery and arrays of as many rows as there are queries, or None.
      gallery: prepared. One that was divided among devices by ``prepare_gallery``, and a search of one block, stay
        where they are.
      blocks: of the queries, in order; shares are made of whole ones.
      of_queries: what is divided.

    Returns:
      What the function returned for each share, in order.
    """
    devices = _Chosen.devices[: len(blocks)]
    if len(devices) < 2 or len(gallery.shards) > 1:
        return [function(gallery, *of_queries)]
    shares = [share for share in np.array_split(np.arange(len(blocks)), len(devices)) if len(share)]
    parts = [slice(blocks[share[0]].start, blocks[share[-1]].stop) for share in shares]

    def one(part: slice, device: jax.Device) -> Any:
        return function(_on(gallery, device), *(None if rows is None else rows[part] for rows in of_queries))

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(one, parts, devices))


def _on(gallery: Gallery, device: jax.Device) -> Gallery:
    """The gallery with what products read on ``device``."""
    (shard,) = gallery.shards
    centred, offsets = jax.device_put((shard.centred, shard.offsets), device)
    return gallery._replace(shards=(shard._replace(centred=centred, offsets=offsets),))
