"""Where miners, losses over triplets and losses over pairs meet: each choice of them becomes one ``Objective``.

``objective(comparison, learned) -> LossSum``. Sums over anchors add up over devices, so the train step needs to know
nothing else about a strategy. ``learned`` holds the parameters that belong to the loss (a boundary, proxies), by the
names of its arguments; {} for a loss without.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fgis.base import BatchInfo, Comparison, LossSum, Miner, Objective, Triplets
from fgis.distances import Distance, l2_normalize
from fgis.learning.candidates import NO_INFO, next_positive
from fgis.ranges import Whole

Learned = Mapping[str, Any]
Selector = Callable[[Float[Array, " a"], Float[Array, "a c"], Bool[Array, "a c"]], Float[Array, "a c"]]


class Schedule(NamedTuple):
    """One miner for the first ``switch_steps`` steps, another one from then on; both by their names."""

    first: str
    second: str
    switch_steps: int


def schedule(*, first: str = "semi_hard", second: str = "batch_hard", switch_steps: Whole = 100) -> Schedule:
    """Two miners one after the other, by their names: see ``scheduled``, which joins their objectives.

    Args:
      first: the miner of the first steps.
      second: the miner from then on.
      switch_steps: how many steps the first is used for.

    Returns:
      The three as a record.
    """
    return Schedule(first, second, switch_steps)


def given(loss: Callable[..., Array], distance: Distance) -> Objective:
    """No mining: the batch holds triplets in order (anchor, positive, negative), (anchor, positive, negative), ...

    Args:
      loss: over triplets.
      distance: what it is computed from.

    Returns:
      An objective in which a triplet counts unless one of its rows is padding. Candidates are not read.
    """

    def objective(seen: Comparison, learned: Learned) -> LossSum:
        triplets = seen.anchors.reshape(-1, 3, seen.anchors.shape[-1])
        # A padded row is nobody's positive or negative, so its rows of both masks are empty.
        valid = (seen.positives | seen.negatives).any(axis=1).reshape(-1, 3).all(axis=1)
        anchor, positive, negative = triplets[:, 0], triplets[:, 1], triplets[:, 2]
        losses = loss(distance.rowwise(anchor, positive), distance.rowwise(anchor, negative), **learned)
        return _sum_triplets(losses, valid)

    return objective


def mined(
    miner: Miner,
    loss: Callable[..., Array],
    distance: Distance,
    info: BatchInfo = NO_INFO,
    mined_on: Distance | None = None,
) -> Objective:
    """The loss of the triplets that ``miner`` lists.

    Mining sees distances without gradients; the distances of the chosen pairs alone are computed again with them, so
    the backward pass costs O(t d) instead of O(B² d).

    Args:
      miner: a function of ``MINERS``, or any with their signature, its hyperparameters bound.
      loss: over triplets.
      distance: what the loss is computed from.
      info: what the miner may know of every batch; without ``dimensions`` those of the embeddings are filled in.
      mined_on: what the miner sees, if that is another distance (``MINED_ON``).

    Returns:
      An objective with one term per triplet.
    """

    def objective(seen: Comparison, learned: Learned) -> LossSum:
        triplets = _mine(miner, mined_on or distance, seen, info)
        anchors, candidates, rowwise = seen.anchors, seen.candidates, distance.rowwise
        if distance.between_units is not None:  # each embedding is normalised once, not once for each of its pairs
            anchors, candidates = l2_normalize(anchors), l2_normalize(candidates)
            rowwise = distance.between_units.rowwise
        anchor = _rows_of(anchors, triplets.anchor)
        d_ap, d_an = (rowwise(anchor, candidates[others]) for others in (triplets.positive, triplets.negative))
        return _sum_triplets(loss(d_ap, d_an, **learned), triplets.weight)

    return objective


def summed(selector: Selector, loss: Callable[..., Array], distance: Distance) -> Objective:
    """The loss of every triplet that ``selector`` weighs above 0, without listing them: O(B²) memory, any batch.

    Args:
      selector: a function of ``SELECTORS``, its hyperparameters bound.
      loss: over triplets.
      distance: what both see.

    Returns:
      An objective with one term per triplet.
    """
    sum_over_triplets = _sum_over_positives(selector, loss)

    def objective(seen: Comparison, learned: Learned) -> LossSum:
        distances = distance.pairwise(seen.anchors, seen.candidates)
        return sum_over_triplets(distances, dict(learned), seen.positives, seen.negatives)

    return objective


def paired(
    loss: Callable[..., LossSum],
    distance: Distance,
    miner: Miner | None = None,
    info: BatchInfo = NO_INFO,
    mined_on: Distance | None = None,
    graded: bool = False,
) -> Objective:
    """A loss over pairs: over all of them, or over those that occur in the triplets that ``miner`` lists.

    Args:
      loss: over pairs.
      distance: what it is computed from.
      miner: a function of ``MINERS``, its hyperparameters bound; None for all pairs.
      info: what the miner may know of every batch; without ``dimensions`` those of the embeddings are filled in.
      mined_on: what the miner sees, if that is another distance (``MINED_ON``).
      graded: whether the loss also takes which of the negatives are opposites.

    Returns:
      An objective with the terms of the loss.
    """

    def objective(seen: Comparison, learned: Learned) -> LossSum:
        positives, negatives = seen.positives, seen.negatives
        if miner is not None:
            anchor, positive, negative, weight = _mine(miner, mined_on or distance, seen, info)
            none = jnp.zeros_like(positives)
            positives = none.at[anchor, positive].max(weight > 0)
            negatives = none.at[anchor, negative].max(weight > 0)
        more = (seen.opposites & negatives,) if graded else ()
        return loss(distance.pairwise(seen.anchors, seen.candidates), positives, negatives, *more, **learned)

    return objective


def proxied(loss: Callable[..., LossSum], distance: Distance) -> Objective:
    """A loss over pairs of a class proxy and an image: learned ``proxies`` [classes, d] take the anchors' place.

    A proxy that is zero stands for a class that the run may not see, and counts nowhere. Devices share the proxies out
    among themselves, each against the candidates of all.

    Args:
      loss: a function of ``PROXY_LOSSES``, its hyperparameters bound.
      distance: what it is computed from.

    Returns:
      An objective with the terms of the loss.
    """

    def objective(seen: Comparison, learned: Learned) -> LossSum:
        proxies = learned["proxies"]
        classes, (device, devices) = jnp.arange(len(proxies)), seen.share
        present = (classes % devices == device) & (proxies != 0).any(axis=1)
        valid = present[:, None] & (seen.rows >= 0)[None, :]
        same = classes[:, None] == seen.labels[None, :]
        return loss(distance.pairwise(proxies, seen.candidates), valid & same, valid & ~same)

    return objective


def scheduled(first: Objective, second: Objective, switch_steps: int) -> Objective:
    """``first`` for the first ``switch_steps`` steps, then ``second``; only the one in force is computed.

    (Both are where runs are trained together by ``vmap``, whose steps are data.)
    """

    def objective(seen: Comparison, learned: Learned) -> LossSum:
        return jax.lax.cond(seen.step < switch_steps, first, second, seen, dict(learned))

    return objective


def _mine(miner: Miner, distance: Distance, seen: Comparison, info: BatchInfo) -> Triplets:
    if info.dimensions is None:
        info = info._replace(dimensions=seen.anchors.shape[-1])
    distances = distance.pairwise(jax.lax.stop_gradient(seen.anchors), jax.lax.stop_gradient(seen.candidates))
    return miner(seen.keys, distances, seen.positives, seen.negatives, info)


def _rows_of(vectors: Float[Array, "a d"], rows: Any) -> Float[Array, "t d"]:
    """``vectors[rows]``; of 0, 1, ... a − 1 again and again, as most miners list anchors, without a gather."""
    times, rest = divmod(len(rows), len(vectors))
    every_row = np.arange(len(rows)) % len(vectors)
    if rest == 0 and isinstance(rows, np.ndarray) and np.array_equal(rows, every_row):  # known when it is compiled
        return jnp.tile(vectors, (times, 1))  # the gradient of a gather is a scatter, and of this a sum
    return vectors[rows]


def _sum_triplets(losses: Float[Array, "t ..."], weight: Array) -> LossSum:
    return jax.tree.map(jnp.sum, _terms(losses, weight))


def _terms(losses: Float[Array, "t ..."], weight: Array) -> LossSum:
    """What is summed, of losses [t], or [t, 2] where both pairs of a triplet have one of their own and count on it."""
    weight = jnp.broadcast_to(weight.astype(losses.dtype).reshape(-1, *[1] * (losses.ndim - 1)), losses.shape)
    return LossSum(jnp.where(weight > 0, weight * losses, 0), weight, jnp.where(losses > 0, weight, 0))


def _sum_over_positives(selector: Selector, loss: Callable[..., Array]) -> Callable[..., LossSum]:
    """Takes the j-th positives of all anchors together, one j after the other, for as long as any anchor has one left.

    The gradient with respect to the distances is gathered in the same loop: it is one [a, c] array, where automatic
    differentiation would keep one per positive, and could not run backwards through a loop of unknown length.
    """

    def sums_and_gradients(
        distances: Array, learned: dict[str, Array], positives: Array, negatives: Array
    ) -> tuple[LossSum, tuple[Array, dict[str, Array]]]:
        columns, zero = jnp.arange(distances.shape[1]), jnp.zeros((), distances.dtype)

        def one_positive(carry: Any) -> Any:
            remaining, sums, (gradient, learned_gradient) = carry
            positive, valid, remaining = next_positive(remaining)
            d_ap = jnp.take_along_axis(distances, positive[:, None], axis=1)
            weight = selector(d_ap[:, 0], distances, negatives) * valid[:, None]
            pairs = jnp.broadcast_to(d_ap, distances.shape)
            losses, pull = jax.vjp(
                lambda ap, an, learned: loss(ap.ravel(), an.ravel(), **learned), pairs, distances, learned
            )
            terms = _terms(losses, weight.ravel())
            to_ap, to_an, to_learned = pull(terms.valid)
            # One reduction of four operands: apart, each would be written out [a, c] first.
            of_pairs = (*(x.reshape(*pairs.shape, -1).sum(axis=-1) for x in terms), to_ap)
            *found, to_positive = jax.lax.reduce(of_pairs, (zero,) * 4, _add, (1,))
            gradient = gradient + to_an + jnp.where(columns == positive[:, None], to_positive[:, None], 0)
            sums = jax.tree.map(lambda total, rows: total + jnp.sum(rows), sums, LossSum(*found))
            return remaining, sums, (gradient, jax.tree.map(jnp.add, learned_gradient, to_learned))

        start = positives, LossSum(zero, zero, zero), jax.tree.map(jnp.zeros_like, (distances, learned))
        _, sums, gradients = jax.lax.while_loop(lambda carry: carry[0].any(), one_positive, start)
        return sums, gradients

    @jax.custom_vjp
    def sums(distances: Array, learned: dict[str, Array], positives: Array, negatives: Array) -> LossSum:
        return sums_and_gradients(distances, learned, positives, negatives)[0]

    def backward(gradients: Any, cotangent: LossSum) -> tuple[Any, Any, None, None]:
        # valid and active are piecewise constant
        return *jax.tree.map(lambda gradient: cotangent.total * gradient, gradients), None, None

    sums.defvjp(sums_and_gradients, backward)
    return sums


def _add(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(x + y for x, y in zip(first, second, strict=True))
