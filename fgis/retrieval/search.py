"""Exact nearest neighbours: queries in blocks against the whole gallery."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fgis.distances import pairwise_distances
from fgis.types import Neighbours, UserError

BLOCK = 256  # queries ranked at a time: memory is BLOCK · g, and blocks of 256 to 1024 are the fastest on a CPU


def search(
    queries: Float[Array | np.ndarray, "q d"],
    gallery: Float[Array | np.ndarray, "g d"],
    k: int,
    distance: str = "cosine",
    query_rows: Int[np.ndarray, " q"] | None = None,
    gallery_rows: Int[np.ndarray, " g"] | None = None,
) -> Neighbours:
    """The ``k`` nearest gallery rows of every query, by ascending distance; ties go to the first gallery entry.

    ``gallery_rows`` names the gallery entries (0 … g−1 without it; ascending, if ties are to go to the lowest row).
    Where ``query_rows`` is given, the entry with the query's own row is left out of its list: by row id, since a
    duplicate of the query may tie with it. Places beyond the gallery hold row -1 at an infinite distance.

    Raises:
      UserError: the gallery is empty, or an embedding is NaN or infinite (they would rank first).
    """
    gallery_rows = np.arange(len(gallery)) if gallery_rows is None else np.asarray(gallery_rows)
    if not len(gallery):
        raise UserError("the gallery is empty: nothing can be retrieved; give it at least one image")
    for name, embeddings in (("query", queries), ("gallery", gallery)):
        finite = np.isfinite(np.asarray(embeddings)).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            raise UserError(
                f"{name} embeddings: row {first} and {int((~finite).sum()) - 1} more are NaN or infinite; "
                "the training diverged (lower the learning rate) or the features are damaged (extract them again)"
            )
    depth = min(k, len(gallery))
    own = np.full(len(queries), -1) if query_rows is None else np.asarray(query_rows)
    # Whole blocks of one shape, padded before they reach the device: one compilation, and no small programs.
    blocks = -(-len(queries) // BLOCK)
    padded = np.zeros((blocks * BLOCK, queries.shape[1]), np.float32)
    padded[: len(queries)] = queries
    padded_own = np.full(blocks * BLOCK, -1, np.int32)
    padded_own[: len(own)] = own
    ids, gallery = jnp.asarray(gallery_rows, jnp.int32), jnp.asarray(gallery, jnp.float32)
    rows, distances = np.full((len(queries), k), -1), np.full((len(queries), k), np.inf, np.float32)
    for start in range(0, len(padded), BLOCK):
        block = slice(start, start + BLOCK)
        found = _nearest(padded[block], padded_own[block], gallery, ids, depth, distance)
        size = len(rows[block])
        rows[block, :depth], distances[block, :depth] = (np.asarray(x)[:size] for x in found)
    return Neighbours(rows, distances)


@partial(jax.jit, static_argnums=(4, 5))
def _nearest(queries: Array, own: Array, gallery: Array, ids: Array, depth: int, distance: str) -> tuple[Array, Array]:
    distances = pairwise_distances(queries, gallery, distance)
    distances = jnp.where(own[:, None] == ids[None, :], jnp.inf, distances)
    # top_k on float32 alone is fast on a CPU, and gives the lowest index among ties.
    negated, index = jax.lax.top_k(-distances, depth)
    return jnp.where(negated == -jnp.inf, -1, ids[index]), -negated
