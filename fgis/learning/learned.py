"""Parameters that belong to a loss and not to the network: how they begin, and the optimiser that moves them.

They are the collection ``learned`` of a run's variables, by the names of the loss's arguments.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from fgis.base import Key
from fgis.ranges import Finite, NonNegative


class LossParameters(NamedTuple):
    """What a loss learns."""

    init: Callable[[Key, Bool[Array, " classes"], int], dict[str, Array]]  # (key, seen, dimensions) -> arrays by name
    optimizer: optax.GradientTransformation


def boundary(*, start: Finite = 1.2, learning_rate: NonNegative = 0.1) -> LossParameters:
    """The margin loss's β: one scalar, by plain gradient descent at a rate of its own (Wu 2017, arXiv:1706.07567).

    Args:
      start: the first value, in units of the distance.
      learning_rate: 0 leaves the boundary where it is.

    Returns:
      The parameter ``beta``, [].
    """
    return LossParameters(lambda key, seen, dimensions: {"beta": jnp.float32(start)}, optax.sgd(learning_rate))


def class_proxies(*, learning_rate: NonNegative = 0.03) -> LossParameters:
    """One proxy per class, normal at first, by Adam at a rate of its own (Kim 2020, arXiv:2003.13911).

    Args:
      learning_rate: 0 leaves the proxies where they are.

    Returns:
      The parameter ``proxies``, [classes, d]. A class that the run may not see has the zero proxy, which no loss reads
      and no gradient moves.
    """

    def init(key: Key, seen: Bool[Array, " classes"], dimensions: int) -> dict[str, Array]:
        return {"proxies": jax.random.normal(key, (len(seen), dimensions)) * seen[:, None]}

    return LossParameters(init, optax.adam(learning_rate))


NOTHING = LossParameters(lambda key, seen, dimensions: {}, optax.identity())
LEARNED: dict[str, Callable[..., LossParameters]] = {"margin": boundary, "proxy_anchor": class_proxies}  # by loss
