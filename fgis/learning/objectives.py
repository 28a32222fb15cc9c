"""Where strategies that list triplets and strategies that sum over all of them meet: both become an ``Objective``.

``objective(key, anchors [a, d], candidates [c, d], positives [a, c], negatives [a, c]) -> LossSum``. Sums over
anchors add up over devices, so the train step needs to know nothing else about a strategy.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fgis.distances import Distance
from fgis.learning.mining import next_positive
from fgis.types import Key, Loss, LossSum, Miner, Objective

Selector = Callable[[Float[Array, " a"], Float[Array, "a c"], Bool[Array, "a c"]], Float[Array, "a c"]]


def given(loss: Loss, distance: Distance) -> Objective:
    """No mining: the batch holds triplets in order (anchor, positive, negative), (anchor, positive, negative), ...

    A triplet counts unless one of its rows is padding. Candidates are not looked at.
    """

    def objective(key: Key, anchors: Array, candidates: Array, positives: Array, negatives: Array) -> LossSum:
        del key, candidates
        triplets = anchors.reshape(-1, 3, anchors.shape[-1])
        # A padded row is nobody's positive or negative, so its rows of both masks are empty.
        valid = (positives | negatives).any(axis=1).reshape(-1, 3).all(axis=1)
        anchor, positive, negative = triplets[:, 0], triplets[:, 1], triplets[:, 2]
        losses = loss(distance.rowwise(anchor, positive), distance.rowwise(anchor, negative))
        return _sums(losses, valid.astype(losses.dtype))

    return objective


def mined(miner: Miner, loss: Loss, distance: Distance) -> Objective:
    """The loss of the triplets that ``miner`` lists.

    Mining sees distances without gradients; the distances of the chosen pairs alone are computed again with them, so
    the backward pass costs O(t d) instead of O(B² d).
    """

    def objective(key: Key, anchors: Array, candidates: Array, positives: Array, negatives: Array) -> LossSum:
        distances = distance.pairwise(jax.lax.stop_gradient(anchors), jax.lax.stop_gradient(candidates))
        triplets = miner(key, distances, positives, negatives)
        anchor = anchors[triplets.anchor]
        d_ap = distance.rowwise(anchor, candidates[triplets.positive])
        d_an = distance.rowwise(anchor, candidates[triplets.negative])
        return _sums(loss(d_ap, d_an), triplets.weight)

    return objective


def summed(selector: Selector, loss: Loss, distance: Distance) -> Objective:
    """The loss of every triplet that ``selector`` weighs above 0, without listing them: O(B²) memory, any batch."""
    sum_over_triplets = _sum_over_positives(selector, loss)

    def objective(key: Key, anchors: Array, candidates: Array, positives: Array, negatives: Array) -> LossSum:
        del key
        return sum_over_triplets(distance.pairwise(anchors, candidates), positives, negatives)

    return objective


def _sums(losses: Float[Array, "..."], weight: Float[Array, "..."]) -> LossSum:
    active = jnp.where(losses > 0, weight, 0)
    return LossSum(jnp.sum(jnp.where(weight > 0, weight * losses, 0)), jnp.sum(weight), jnp.sum(active))


def _sum_over_positives(selector: Selector, loss: Loss) -> Callable[[Array, Array, Array], LossSum]:
    """Walks the positives of all anchors at once, the j-th of each together, for as long as any anchor has one left.

    The gradient with respect to the distances is gathered on the same walk: it is one [a, c] array, where automatic
    differentiation would keep one per positive, and could not run backwards through a loop of unknown length.
    """

    def walk(distances: Array, positives: Array, negatives: Array) -> tuple[LossSum, Array]:
        def one_positive(carry: Any) -> Any:
            remaining, sums, gradient = carry
            positive, valid, remaining = next_positive(remaining)
            d_ap = jnp.take_along_axis(distances, positive[:, None], axis=1)[:, 0]
            weight = selector(d_ap, distances, negatives) * valid[:, None]

            def total(d_ap: Array, d_an: Array) -> tuple[Array, LossSum]:
                pairs = jnp.broadcast_to(d_ap[:, None], d_an.shape)
                found = _sums(loss(pairs.ravel(), d_an.ravel()), weight.ravel())
                return found.total, found

            (from_positive, from_negatives), found = jax.grad(total, argnums=(0, 1), has_aux=True)(d_ap, distances)
            at_positive = jnp.arange(distances.shape[1]) == positive[:, None]
            gradient = gradient + from_negatives + jnp.where(at_positive, from_positive[:, None], 0)
            return remaining, jax.tree.map(jnp.add, sums, found), gradient

        zero = jnp.zeros((), distances.dtype)
        start = positives, LossSum(zero, zero, zero), jnp.zeros_like(distances)
        _, sums, gradient = jax.lax.while_loop(lambda carry: carry[0].any(), one_positive, start)
        return sums, gradient

    @jax.custom_vjp
    def sums(distances: Array, positives: Array, negatives: Array) -> LossSum:
        return walk(distances, positives, negatives)[0]

    def backward(gradient: Array, cotangent: LossSum) -> tuple[Array, None, None]:
        return cotangent.total * gradient, None, None  # valid and active are piecewise constant

    sums.defvjp(walk, backward)
    return sums
