"""From the rows of a feature file to embeddings, in memory or, where they are too many, whenever rows are wanted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from fgis.errors import UserError
from fgis.experiment.build import Scoring
from fgis.experiment.config import ExperimentSettings
from fgis.retrieval.stored import StoredVectors

CHUNK = 1024  # rows that are prepared and embedded together, filled up: so they are the same whatever others there are


def refuse_copies(settings: ExperimentSettings) -> None:
    """Raises ``UserError`` where features hold copies of pixels: distances would be between these as well."""
    if settings.features.pixels:
        raise UserError(
            "config.features.pixels: heads on copies of pixels are trained and evaluated, and rank no search; name "
            "a run without them"
        )


def in_chunks(function: Callable[[np.ndarray], Any], rows: np.ndarray) -> Float[np.ndarray, "m d"]:
    """``function`` of ``CHUNK`` rows at a time, the last ones filled up by repeating the first; of one row, of itself.

    Args:
      function: rows [b, ...] -> [b, d], each for itself.
      rows: [m, ...], m of at least 1.
    """
    if len(rows) == 1:
        return np.asarray(function(rows))
    found = None
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        filled = chunk if len(chunk) == CHUNK else np.concatenate([chunk, np.repeat(chunk[:1], CHUNK - len(chunk), 0)])
        values = np.asarray(function(filled))[: len(chunk)]
        found = np.empty((len(rows), values.shape[1]), values.dtype) if found is None else found
        found[start : start + CHUNK] = values
    assert found is not None
    return found


def prepared_rows(
    read: Callable[[Int[np.ndarray, " m"]], Float[np.ndarray, "m f"]], shape: tuple[int, int], *, resident: bool
) -> Float[np.ndarray, "n f"] | StoredVectors:
    """All prepared features: an array where they are to stay in memory, otherwise read again whenever they are used.

    Args:
      read: rows -> their prepared features.
      shape: (images, features).
      resident: whether they are to stay in memory.
    """
    stored = StoredVectors(shape, lambda rows: in_chunks(read, rows))
    return np.asarray(stored) if resident else stored


def first_columns(
    features: Float[np.ndarray, "n f"] | StoredVectors, width: int
) -> Float[np.ndarray, "n w"] | StoredVectors:
    """The first ``width`` numbers of each row."""
    if isinstance(features, StoredVectors) and width < features.shape[1]:
        return StoredVectors((len(features), width), lambda rows: features[rows][:, :width])
    return features if isinstance(features, StoredVectors) else features[:, :width]


def embed_with(scoring: Scoring, params: Any, features: Float[np.ndarray, "m f"] | StoredVectors, run: int) -> Any:
    """The embeddings of prepared features under the parameters of one run of those that are stacked.

    Returns:
      Embeddings [m, d]: an array, or ``StoredVectors`` where the features are.

    Raises:
      UserError: one is not finite; of stored features, when it is read.
    """
    own = jax.tree.map(lambda leaf: jnp.asarray(leaf[run]), params)

    def embed(values: Float[np.ndarray, "m f"]) -> Float[np.ndarray, "m d"]:
        embeddings = in_chunks(lambda chunk: scoring.embed(own, jnp.asarray(chunk)), values)
        if not np.isfinite(embeddings).all():
            raise UserError(
                f"the head of run {run} gives embeddings that are NaN or infinite; train again with a lower learning "
                "rate"
            )
        return embeddings

    if not isinstance(features, StoredVectors):
        return embed(features)
    one = jax.ShapeDtypeStruct((1, features.shape[1]), jnp.float32)
    width = jax.eval_shape(scoring.embed, own, one).shape[-1]
    return StoredVectors((len(features), width), lambda rows: embed(features[rows]))
