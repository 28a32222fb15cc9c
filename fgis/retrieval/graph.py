"""What re-rankings need of a gallery and of no query: computed once for all searches in it, or read from a file."""

from collections.abc import Callable, Hashable
from threading import RLock
from typing import Any

import numpy as np

from fgis.base import Neighbours

DEEPEST = 32  # neighbours of each member that are kept: more than the usual hyperparameters read


class GalleryGraph:
    """The neighbours of the members of one gallery, and what methods derive from them; threads may share it."""

    def __init__(self, load: Callable[[], Neighbours | None] = lambda: None) -> None:
        """Takes a function that gives the nearest members of every member [g, k], itself included, or None."""
        self._load, self._parts, self._mutex = load, dict[Hashable, Any](), RLock()

    def part(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` returned when ``key`` was first asked for."""
        with self._mutex:
            if key not in self._parts:
                self._parts[key] = make()
            return self._parts[key]

    def neighbours(self, n: int, own: bool) -> Neighbours | None:
        """The ``n`` nearest members of every member, [g, n]; None where they are not known so deep.

        Args:
          n: how many.
          own: whether a member is among its own neighbours.
        """
        known = self.part("neighbours", self._load)
        if known is None or known.rows.shape[1] < n + (not own):
            return None
        if own:
            return Neighbours(known.rows[:, :n], known.distances[:, :n])
        return without_own(known, n)


def without_own(known: Neighbours, n: int) -> Neighbours:
    """Neighbours [g, n] of members by their places, without themselves: one fewer of each line, which may be its last.

    >>> found = without_own(Neighbours(np.array([[0, 1], [0, 1]]), np.array([[0.0, 0.2], [0.2, 0.0]])), 1)
    >>> found.rows.tolist(), found.distances.tolist()
    ([[1], [0]], [[0.2], [0.2]])
    """
    places = np.arange(len(known.rows))[:, None]
    is_own = known.rows == places
    is_own[~is_own.any(axis=1), -1] = True  # so many copies that the member itself is not listed
    order = np.argsort(is_own, axis=1, kind="stable")[:, :n]
    return Neighbours(np.take_along_axis(known.rows, order, axis=1), np.take_along_axis(known.distances, order, axis=1))
