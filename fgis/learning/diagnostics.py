"""What tells a healthy embedding from a collapsed one, computed on the device from one batch."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fgis.distances import Distance, l2_normalize
from fgis.learning.miners import relations


def diagnose(
    embeddings: Float[Array, "b d"], labels: Int[Array, " b"], rows: Int[Array, " b"], distance: Distance
) -> dict[str, Float[Array, ""]]:
    """The state of one batch of embeddings, each a scalar; padding (row -1) counts nowhere, nothing is ever NaN.

    positive_distance, negative_distance: means over pairs of the same and of different labels; 0 without such a pair.
    variance: mean ‖u − ū‖² of the embeddings at unit length, u; in [0, 1], and 0 where all point the same way.
    effective_rank: (Σ λ)² / Σ λ² over the eigenvalues λ of the covariance of u: how many directions share the variance.
    dead_units: share of dimensions that are the same in every row.
    collapsed: 1 where the variance is below 1e-3 or the effective rank below 1.5: nearly one point, or nearly one line.

    Args:
      embeddings: of the batch.
      labels: of the batch.
      rows: of the batch, -1 for padding.
      distance: what the first two are measured in.

    Returns:
      The six scalars by these names.
    """
    valid = rows >= 0
    count = jnp.maximum(valid.sum(), 1)
    distances = distance.pairwise(embeddings, embeddings)
    positives, negatives = relations(labels, rows, labels, rows)
    unit = l2_normalize(embeddings.astype(jnp.float32))
    centered = jnp.where(valid[:, None], unit - jnp.sum(unit * valid[:, None], axis=0) / count, 0)
    gram = centered @ centered.T  # the eigenvalues of the covariance, times count
    trace, square = jnp.trace(gram), jnp.sum(gram**2)
    variance = trace / count
    rank = trace**2 / jnp.where(square > 0, square, 1.0)
    high = jnp.max(jnp.where(valid[:, None], embeddings, -jnp.inf), axis=0)
    low = jnp.min(jnp.where(valid[:, None], embeddings, jnp.inf), axis=0)
    return {
        "positive_distance": _mean_of_pairs(distances, positives),
        "negative_distance": _mean_of_pairs(distances, negatives),
        "variance": variance,
        "effective_rank": rank,
        "dead_units": jnp.mean(high <= low),
        "collapsed": ((variance < 1e-3) | (rank < 1.5)).astype(jnp.float32) * (valid.sum() > 2),
    }


def _mean_of_pairs(values: Float[Array, "a c"], mask: Bool[Array, "a c"]) -> Float[Array, ""]:
    return jnp.sum(jnp.where(mask, values, 0), dtype=jnp.float32) / jnp.maximum(mask.sum(), 1)
