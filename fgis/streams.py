"""The random streams: every use of random numbers has a name here, and no bare integer is folded into a key elsewhere.

All randomness is a function of (seed, step), so that a run resumed at a step goes on as it would have. A stream keeps
the numbers of different uses apart: ``stream_key`` on devices, ``stream_generator`` on the host.
"""

from enum import IntEnum
from typing import Any

import jax
import numpy as np

from fgis.base import Key


class Stream(IntEnum):
    """What random numbers are used for. The numbers are part of every result: never change or reuse one."""

    PK_CLASSES = 0  # the order of classes in an epoch
    PK_MEMBERS = 1  # the images of a class, below PK_CLASSES
    PUBLISHED_TRIPLETS = 2
    PUBLISHED_ORDER = 3
    STEP = 4  # of one train step: dropout and mining
    LEARNED = 5  # what a loss learns, such as proxies
    UNIFORM = 6
    BALANCED = 7
    FREQUENCY = 8
    DEEP_RANKING_ORDER = 9
    DEEP_RANKING_TRIPLETS = 10
    SCORED_TRIPLETS = 11


def stream_key(seed: Any, stream: Stream, *counters: Any) -> Key:
    """The key of ``stream`` under ``seed``, folded with ``counters`` (a step, an epoch) one after the other.

    Args:
      seed: an integer, [] int32, or a key that a stream of its own has been derived from.
      stream: what the numbers are for.
      counters: integers, [] int32 each.

    Returns:
      One typed key.
    """
    is_key = isinstance(seed, jax.Array) and jax.dtypes.issubdtype(seed.dtype, jax.dtypes.prng_key)
    key = seed if is_key else jax.random.key(seed)
    for number in (int(stream), *counters):
        key = jax.random.fold_in(key, number)
    return key


def stream_generator(seed: int, stream: Stream | None = None) -> np.random.Generator:
    """NumPy's generator of ``stream`` under ``seed``; without a stream, that of the seed itself.

    (The seed itself serves what was drawn before streams had numbers: folds, and which images a head is fitted to.)
    """
    return np.random.default_rng(seed if stream is None else [seed, int(stream)])
