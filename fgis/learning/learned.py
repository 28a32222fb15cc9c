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


class Learned(NamedTuple):
    """What a loss learns: ``init(key, seen [classes] bool, dimensions) -> arrays by name``."""

    init: Callable[[Key, Bool[Array, " classes"], int], dict[str, Array]]
    optimizer: optax.GradientTransformation


def boundary(start: float = 1.2, learning_rate: float = 0.1) -> Learned:
    """The margin loss's β: one scalar, by plain gradient descent at a rate of its own (Wu 2017, arXiv:1706.07567)."""
    return Learned(lambda key, seen, dimensions: {"beta": jnp.float32(start)}, optax.sgd(learning_rate))


def class_proxies(learning_rate: float = 0.03) -> Learned:
    """One proxy per class, normal at first, by Adam at a rate of its own (Kim 2020, arXiv:2003.13911).

    A class that the run may not see has the zero proxy, which no loss looks at and no gradient moves.
    """

    def init(key: Key, seen: Bool[Array, " classes"], dimensions: int) -> dict[str, Array]:
        return {"proxies": jax.random.normal(key, (len(seen), dimensions)) * seen[:, None]}

    return Learned(init, optax.adam(learning_rate))


LEARNED: dict[str, Callable[..., Learned]] = {"margin": boundary, "proxy_anchor": class_proxies}  # by loss
