"""Hyperparameters that are chosen on other objects than those whose values they give."""

from collections.abc import Hashable, Mapping

import numpy as np
from jaxtyping import Float, Int


def choose_on_other_folds(
    values: Mapping[Hashable, Float[np.ndarray, " n"]], folds: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], dict[int, Hashable]]:
    """Values by hyperparameters that are chosen without them: each fold has those of the best mean on all other folds.

    Args:
      values: {key: one value per query, the higher the better}; NaN marks queries that count nowhere.
      folds: of each query, [n].

    Returns:
      Values [n], and the key of each fold. Ties go to the first key, and so does the choice where the other folds hold
      no value.
    """
    keys, table = list(values), np.stack([np.asarray(one, np.float64) for one in values.values()])
    valued = np.isfinite(table)
    chosen: dict[int, Hashable] = {}
    combined = np.full(table.shape[1], np.nan)
    for fold in np.unique(folds).tolist():
        others = valued & (folds != fold)
        counts = others.sum(axis=1)
        means = np.where(others, table, 0).sum(axis=1) / np.maximum(counts, 1)
        best = int(np.argmax(np.where(counts > 0, means, -np.inf)))
        chosen[fold] = keys[best]
        combined[folds == fold] = table[best, folds == fold]
    return combined, chosen
