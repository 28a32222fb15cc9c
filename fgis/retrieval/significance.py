"""How sure a difference between two rows of a table is: paired by class, tested by sign flips, corrected by Holm.

The images of a class are not independent, and neither are the seeds that trained on the same data: a class is the unit
that intervals resample (``intervals.summarize``) and that the test flips.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fgis.retrieval.intervals import summarize

FLIPS = 9999
BLOCK = 1024  # flips at a time: 1024 · classes signs in memory


def sign_flip_p(
    differences: Float[np.ndarray, "s n"], classes: Int[np.ndarray, " n"], flips: int = FLIPS, seed: int = 0
) -> float:
    """Two-sided p of paired differences: would classes be better and worse in one of the rows by chance alone?

    T = Σ_c s_c D_c / N, with D_c the sum of the differences of a class over its images and seeds, N the number of all
    differences and s_c = ±1; observed, where every s_c is 1, T is the mean difference. p = (1 + #{|T_flipped| ≥
    |T_observed|}) / (1 + flips) over random draws of all signs: the observed one counts, so p is never 0.

    Args:
      differences: [seeds, images]; NaN for images that were no query in one of the two rows: they count nowhere.
      classes: of the images, [n].
      flips: how many draws of all signs.
      seed: of the draws.

    Returns:
      p in (0, 1]. A draw that ties with the observed one counts against it (up to rounding, 1e-9 of Σ|D_c|).
      Differences that are all 0 have p = 1, and so has a single class; no difference at all has NaN.

    Reference: Fisher, The Design of Experiments (1935), §21; Smucker et al., CIKM 2007, for retrieval.

    >>> sign_flip_p(np.array([[1.0, 2.0, 1.0]]), np.array([0, 0, 0]))
    1.0
    """
    names, index = np.unique(classes, return_inverse=True)
    valued = np.isfinite(differences)
    if not valued.any():
        return float("nan")
    sums = np.bincount(index, np.where(valued, differences, 0).sum(axis=0), len(names))
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, flips, BLOCK):
        signs = rng.integers(0, 2, (min(BLOCK, flips - start), len(names)), np.int8) * 2.0 - 1
        extreme += int((np.abs(signs @ sums) >= least).sum())
    return (1 + extreme) / (1 + flips)


def holm(p: Sequence[float] | Float[np.ndarray, " r"]) -> list[float]:
    """p adjusted for as many comparisons as there are.

    The i-th smallest of m becomes max_{j ≤ i} min(1, (m − j + 1) p_(j)): rejecting those below .05 makes one false
    claim or more with a probability of at most .05, whatever the dependence between rows.

    Args:
      p: of each comparison; NaN is no comparison: it stays NaN and m does not count it.

    Returns:
      Adjusted p, in the order given.

    Reference: Holm, A simple sequentially rejective multiple test procedure, 1979.

    >>> holm([0.5, 0.25])
    [0.5, 0.5]
    """
    values = np.asarray(p, np.float64)
    adjusted = np.full(len(values), np.nan)
    real = np.flatnonzero(np.isfinite(values))
    order = real[np.argsort(values[real], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.maximum.accumulate(np.minimum(factors * values[order], 1))
    return adjusted.tolist()


def paired_difference(
    values: Float[np.ndarray, "s n"],
    others: Float[np.ndarray, "s2 n"],
    classes: Int[np.ndarray, " n"],
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """The mean of ``values`` − ``others``, image by image and seed by seed, its interval and its p.

    Args:
      values: [seeds, images], NaN as in ``summarize``.
      others: [seeds, images]; a row with one seed (frozen features) is compared with every seed of the other.
      classes: of the images, [n].
      resamples: how many bootstrap samples.
      seed: of the bootstrap and of the flips.

    Returns:
      {"mean": float, "ci95": [low, high], "p": float}.
    """
    differences = np.asarray(values - others)
    return {**summarize(differences, classes, resamples, seed), "p": sign_flip_p(differences, classes, seed=seed)}


def corrected(comparisons: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The comparisons of one family, corrected together.

    Args:
      comparisons: {row: as of ``paired_difference``}.

    Returns:
      {row: the same, with "p_holm", which is p adjusted for all of them}.
    """
    adjusted = holm([comparison["p"] for comparison in comparisons.values()])
    return {
        row: {**comparison, "p_holm": p} for (row, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }
