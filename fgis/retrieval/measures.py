"""How each distance is searched: what is compared, pair by pair, and whether a matrix product can select candidates.

These are the distances of ``fgis.distances``, written for the host: NumPy sums every pair in the same order, whatever
the shape of the block around it, which compiled reductions do not. Pairs come as ``a`` [..., d] and ``c`` [..., d] of
prepared vectors; ``exact`` gives their key, a number that ranks as the distance does, and ``finish`` the distance of a
key. ``exact`` may be given ``room`` [..., d] of pairs to write in: memory that is used again stays in the cache.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fgis.distances import find_distance

Vectors = Float[np.ndarray, "n d"]
Pairs = Float[np.ndarray, "... d"]
Keys = Float[np.ndarray, "..."]


class Measure(NamedTuple):
    """How one distance is searched."""

    prepare: Callable[[Vectors], Vectors]  # [n, d] -> [n, d]: vectors as they are compared
    exact: Callable[..., Keys]  # [..., d], [..., d] -> [...]
    finish: Callable[[Keys], Keys]  # [...] -> [...]
    product: str = ""  # "squares": the key is ½‖a − c‖², "dot": it is −a·c, "": no product gives it
    zero_is_far: bool = False  # a zero vector has the key 1 with everything


def as_given(x: Vectors) -> Vectors:
    """x itself."""
    return x


def to_unit(x: Vectors) -> Vectors:
    """x / ‖x‖; a zero vector stays zero."""
    norms = np.sqrt(np.einsum("nd,nd->n", x, x))
    return x / np.where(norms > 0, norms, 1)[:, None]


def to_histogram(x: Vectors) -> Vectors:
    """max(x, 0), divided by its sum; an empty histogram stays empty."""
    x = np.maximum(x, 0)
    total = x.sum(axis=1, keepdims=True)
    return x / np.where(total > 0, total, 1)


def half_square(a: Pairs, c: Pairs, room: Pairs | None = None) -> Keys:
    """½ Σ (a − c)²."""
    difference = np.subtract(a, c, out=room)
    return np.einsum("...d,...d->...", difference, difference) * np.float32(0.5)


def half_square_of_directions(a: Pairs, c: Pairs, room: Pairs | None = None) -> Keys:
    """½ Σ (a − c)² of unit vectors, which is 1 − a·c; 1 where either is zero."""
    keys = np.asarray(half_square(a, c, room))
    # A zero c leaves ½‖a‖². Only where the key is about that, or a is about zero, the vectors are looked at again.
    alone = np.einsum("...d,...d->...", a, a) * np.float32(0.5)
    doubtful = (np.abs(keys - alone) <= 1e-3 * alone) | (alone == 0)
    if doubtful.any():
        one, other = (np.broadcast_to(x, (*keys.shape, x.shape[-1]))[doubtful] for x in (a, c))
        keys[doubtful] = np.where(one.any(axis=-1) & other.any(axis=-1), keys[doubtful], 1)
    return keys


def negative_dot(a: Pairs, c: Pairs, room: Pairs | None = None) -> Keys:
    """−Σ a c."""
    return -np.einsum("...d,...d->...", a, c)


def absolute(a: Pairs, c: Pairs, room: Pairs | None = None) -> Keys:
    """Σ |a − c|."""
    return np.abs(a - c).sum(axis=-1)


def half_chi2(a: Pairs, c: Pairs, room: Pairs | None = None) -> Keys:
    """½ Σ (a − c)² / (a + c); empty bins contribute 0."""
    total = a + c
    return ((a - c) ** 2 / np.where(total > 0, total, 1)).sum(axis=-1) * np.float32(0.5)


def same(key: Keys) -> Keys:
    """The key itself."""
    return key


def double(key: Keys) -> Keys:
    """2 key."""
    return 2 * key


def root(key: Keys) -> Keys:
    """√(2 key)."""
    return np.sqrt(2 * key)


# Every key of ``fgis.distances.DISTANCES``, and how it is searched.
MEASURES: dict[str, Measure] = {
    "euclidean": Measure(as_given, half_square, root, "squares"),
    "unit_euclidean": Measure(to_unit, half_square, root, "squares"),
    "squared_euclidean": Measure(as_given, half_square, double, "squares"),
    "inner_product": Measure(as_given, negative_dot, same, "dot"),
    "manhattan": Measure(as_given, absolute, same),
    "cosine": Measure(to_unit, half_square_of_directions, same, "squares", zero_is_far=True),
    "chi2": Measure(to_histogram, half_chi2, same),
}


def find_measure(distance: str) -> Measure:
    """How ``distance`` is searched; ``ValueError`` where no distance has this name."""
    find_distance(distance)
    return MEASURES[distance]
