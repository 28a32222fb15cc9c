"""Optimisers: optax's, with the hyperparameters that a choice may set."""

from collections.abc import Callable

import optax

from fgis.ranges import NonNegative, Positive, ShareBelowOne


def adam(
    *,
    learning_rate: Positive = 3e-4,
    b1: ShareBelowOne = 0.9,
    b2: ShareBelowOne = 0.999,
    eps: Positive = 1e-8,
) -> optax.GradientTransformation:
    """Adam (Kingma 2014, arXiv:1412.6980): ``optax.adam``.

    Args:
      learning_rate: the length of a step.
      b1: decay of the mean of gradients, per step.
      b2: decay of the mean of squared gradients, per step.
      eps: added to the root of the latter.

    Returns:
      The transformation of gradients.
    """
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


def adamw(
    *,
    learning_rate: Positive = 1e-4,
    b1: ShareBelowOne = 0.9,
    b2: ShareBelowOne = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 1e-4,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov 2017, arXiv:1711.05101): ``optax.adamw``.

    Args:
      learning_rate: the length of a step.
      b1: decay of the mean of gradients, per step.
      b2: decay of the mean of squared gradients, per step.
      eps: added to the root of the latter.
      weight_decay: share of a parameter that is taken off per step, times the learning rate.

    Returns:
      The transformation of gradients.
    """
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def sgd(
    *,
    learning_rate: Positive = 0.1,
    momentum: ShareBelowOne | None = None,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
) -> optax.GradientTransformation:
    """Stochastic gradient descent: ``optax.sgd``.

    Args:
      learning_rate: the length of a step.
      momentum: decay of the sum of gradients, per step; None for none.
      nesterov: whether the momentum looks one step ahead (Sutskever 2013).
      weight_decay: share of a parameter that is added to its gradient.

    Returns:
      The transformation of gradients.
    """
    descent = optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)
    return optax.chain(optax.add_decayed_weights(weight_decay), descent) if weight_decay else descent


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": adam, "adamw": adamw, "sgd": sgd}
