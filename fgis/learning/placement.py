"""Trees of arrays between the memory of the host and devices, whatever devices they came from."""

import hashlib
from typing import Any

import jax
import numpy as np

from fgis.hosts import to_own_host


def digest_leaves(tree: Any) -> str:
    """SHA-256 of the names, types, shapes and values of all leaves; the same wherever the arrays lie.

    >>> one, other = {"b": np.ones(2), "a": np.zeros(1)}, {"a": np.zeros(1), "b": np.ones(2)}
    >>> digest_leaves(one) == digest_leaves(other), digest_leaves(one) == digest_leaves({"b": np.ones(2)})
    (True, False)
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = to_own_host(leaf)
        digest.update(
            f"{jax.tree_util.keystr(path, simple=True, separator='/')} {array.dtype} {array.shape}\0".encode()
        )
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def placeholders(tree: Any) -> Any:
    """The same tree of read-only NumPy arrays that take no memory: what Orbax restores into host memory."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), tree)


def without_others() -> Any:
    """Orbax's options for checkpoints that one of several processes opens, without waiting for the others."""
    from orbax.checkpoint import options

    if jax.process_count() == 1:
        return options.MultiprocessingOptions()
    process = jax.process_index()
    return options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process_{process}"
    )


def place_like(tree: Any, like: Any) -> Any:
    """Arrays of the host on devices: where the leaves of ``like`` say, those that say nothing on the default device.

    Raises:
      ValueError: a leaf has another shape than that of ``like``.
    """

    def place(array: np.ndarray, leaf: Any) -> jax.Array:
        if array.shape != leaf.shape:
            raise ValueError(f"an array of shape {array.shape}, where {leaf.shape} belongs")
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            return jax.numpy.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree, like)
