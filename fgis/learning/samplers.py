"""Which rows make a batch: functions of (seed, step) and nothing else, so that resuming a run needs no sampler state.

A run samples from its own images only. What it may draw from is an array of its own, which can be stacked over runs and
mapped by ``vmap``: a ``ClassTable``, or triplets drawn beforehand. ``partial(sample_pk, table, ...)`` is a ``Sampler``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from fgis.base import Key
from fgis.learning.relevance import draw_deep_ranking_triplets


class ClassTable(NamedTuple):
    """The rows of each class, padded with -1: classes and rows in ascending order, and all padding at the end."""

    rows: Int[Array, "... classes members"]
    counts: Int[Array, "... classes"]  # 0 for a padded class


def class_table(labels: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"]) -> ClassTable:
    """The table of the ``rows`` that a run may use, as large as all of ``labels`` need: runs' tables can be stacked."""
    everything, sizes = np.unique(labels, return_counts=True)
    rows = np.sort(np.asarray(rows))
    _, index, counts = np.unique(labels[rows], return_inverse=True, return_counts=True)
    table = np.full((len(everything), sizes.max(initial=1)), -1, np.int32)
    order = np.argsort(index, kind="stable")
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    table[index[order], place] = rows[order]
    padded = np.zeros(len(table), np.int32)
    padded[: len(counts)] = counts
    return ClassTable(jnp.asarray(table), jnp.asarray(padded))


def sample_uniform(table: ClassTable, seed: Any, step: Any, batch: int = 128) -> Int[Array, " b"]:
    """Images without regard to classes: each epoch walks a new random order of all of the run's images.

    An epoch has ceil(n / batch) steps; its last batch is filled from the start of the same order. Where the run has
    fewer than ``batch`` images, the places left are padding (row -1).
    """
    key = jax.random.fold_in(jax.random.key(seed), 6)
    total = jnp.sum(table.counts)
    epoch, place = _walk(step, total, batch)
    noise = jax.random.uniform(jax.random.fold_in(key, epoch), table.rows.shape)
    order = jnp.argsort(jnp.where(table.rows >= 0, noise, jnp.inf).reshape(-1))
    return jnp.where(jnp.arange(batch) < total, table.rows.reshape(-1)[order[place]], -1)


def sample_balanced(table: ClassTable, seed: Any, step: Any, batch: int = 128) -> Int[Array, " b"]:
    """Independent draws with replacement: a class uniformly, then an image of it, so P(i) = 1 / (C · images of class).

    All padding (row -1) where the run has no image.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 7), step)
    class_key, image_key = jax.random.split(key)
    chosen = jax.random.randint(class_key, (batch,), 0, jnp.sum(table.counts > 0))
    return table.rows[chosen, jax.random.randint(image_key, (batch,), 0, table.counts[chosen])]


def sample_pk(table: ClassTable, seed: Any, step: Any, classes: int = 64, per_class: int = 4) -> Int[Array, " b"]:
    """P classes × K images: each epoch walks a new random order of all classes, so every class is seen in every epoch.

    An epoch has ceil(C / P) steps; its last batch is filled from the start of the same order. The K images of a class
    are distinct while it has K, then repeat in turn. Where the run has fewer than P classes, the places left are
    padding (row -1).
    """
    key = jax.random.fold_in(jax.random.key(seed), 0)
    total = jnp.sum(table.counts > 0)
    epoch, place = _walk(step, total, classes)
    noise = jax.random.uniform(jax.random.fold_in(key, epoch), table.counts.shape)
    order = jnp.argsort(jnp.where(table.counts > 0, noise, jnp.inf))
    rows = _members(table, jax.random.fold_in(jax.random.fold_in(key, 1), step), order[place], per_class)
    return jnp.where((jnp.arange(classes) < total)[:, None], rows, -1).reshape(-1)


def sample_frequency(
    table: ClassTable, seed: Any, step: Any, classes: int = 64, per_class: int = 4, power: float = 1.0
) -> Int[Array, " b"]:
    """P classes × K images, where a class counts by (images of the class)^power: large classes come more often.

    The P classes of a step are distinct, and drawn one after the other with chances in proportion to that weight among
    those not drawn yet: the P largest of power · log(images) + Gumbel noise (arXiv:1903.06059). The K images of a class
    and the padding are those of ``sample_pk``. ``power`` 0 draws classes uniformly.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 8), step)
    class_key, image_key = jax.random.split(key)
    total = jnp.sum(table.counts > 0)
    score = power * jnp.log(jnp.maximum(table.counts, 1)) + jax.random.gumbel(class_key, table.counts.shape)
    order = jnp.argsort(jnp.where(table.counts > 0, -score, jnp.inf))
    rows = _members(table, image_key, order[_walk(0, total, classes)[1]], per_class)
    return jnp.where((jnp.arange(classes) < total)[:, None], rows, -1).reshape(-1)


def _walk(step: Any, total: Any, batch: int) -> tuple[Any, Int[Array, " b"]]:
    """(epoch, places of the batch in the order of the epoch); the last batch goes on at the start of that order."""
    epoch_steps = jnp.maximum((total + batch - 1) // batch, 1)
    place = step % epoch_steps * batch + jnp.arange(batch)
    return step // epoch_steps, place % jnp.maximum(total, 1)


def _members(table: ClassTable, key: Key, chosen: Int[Array, " p"], per_class: int) -> Int[Array, "p k"]:
    """``per_class`` random images of each chosen class: distinct while it has so many, then repeating in turn."""
    noise = jax.random.uniform(key, (len(chosen), table.rows.shape[1]))
    counts = table.counts[chosen]
    real = jnp.arange(table.rows.shape[1]) < counts[:, None]
    members = jnp.argsort(jnp.where(real, noise, jnp.inf), axis=1)
    turn = jnp.arange(per_class) % jnp.maximum(counts, 1)[:, None]
    return jnp.take_along_axis(table.rows[chosen], jnp.take_along_axis(members, turn, axis=1), axis=1)


def draw_published_triplets(
    labels: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"], seed: int, triplets: int
) -> Int[np.ndarray, "t 3"]:
    """The published experiment's triplets as rows (anchor, positive, negative), drawn once per run from its ``rows``.

    Two entries of the label *array* are drawn without replacement, so classes count by their images and both entries
    may bear the same label. Anchor and positive are the first and the last image of the first label, the negative is
    the first image of the second.
    """
    rows = np.sort(np.asarray(rows))
    _, index = np.unique(labels[rows], return_inverse=True)
    first, last = (np.zeros(index.max() + 1, np.int32) for _ in range(2))
    first[index[::-1]], last[index] = rows[::-1], rows
    rng = np.random.default_rng([seed, 2])
    one = rng.integers(0, len(rows), triplets)
    other = (one + rng.integers(1, len(rows), triplets)) % len(rows)
    return np.stack([first[index[one]], last[index[one]], first[index[other]]], axis=1)


def sample_published(
    drawn: Int[Array, "t 3"], seed: Any, step: Any, batch: int = 32, held_out: float = 0.25
) -> Int[Array, " b"]:
    """``batch`` of the drawn triplets in the order (a, p, n), (a, p, n), ..., reshuffled each epoch.

    The last ``held_out`` share of the triplets is left for validation; the last batch of an epoch is filled with
    padding.
    """
    train = drawn[: len(drawn) - int(len(drawn) * held_out)]
    return _reshuffled(train, jax.random.fold_in(jax.random.key(seed), 3), step, batch)


def published_validation(drawn: Int[Array, "t 3"], seed: Any, held_out: float = 0.25) -> Int[Array, " v"]:
    """All held-out triplets of ``sample_published``; ``seed`` is not used, since they were drawn with it."""
    del seed
    return drawn[len(drawn) - int(len(drawn) * held_out) :].reshape(-1)


def sample_deep_ranking(drawn: Int[Array, "t 3"], seed: Any, step: Any, batch: int = 42) -> Int[Array, " b"]:
    """``batch`` of Deep Ranking's triplets in the order (a, p, n), (a, p, n), ..., reshuffled each epoch.

    The last batch of an epoch is filled with padding, and all is padding where the run allows no triplet. See
    ``draw_deep_ranking_triplets``.
    """
    return _reshuffled(drawn, jax.random.fold_in(jax.random.key(seed), 9), step, batch)


def _reshuffled(drawn: Int[Array, "t 3"], key: Key, step: Any, batch: int) -> Int[Array, " b"]:
    """``batch`` triplets, one after the other: each epoch walks a new random order of all, and ends in padding."""
    total = len(drawn)
    epoch_steps = -(-total // batch)
    noise = jax.random.uniform(jax.random.fold_in(key, step // epoch_steps), (total,))
    order = jnp.argsort(noise)  # a permutation; ties, too rare to matter, stay in order
    place = (step % epoch_steps) * batch + jnp.arange(batch)
    return jnp.where((place < total)[:, None], drawn[order[place % total]], -1).reshape(-1)


def _table_pool(
    labels: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"], seed: int, coarse: Int[np.ndarray, " n"] | None = None
) -> ClassTable:
    del seed, coarse
    return class_table(labels, rows)


SAMPLERS: dict[str, Callable[..., Any]] = {
    "pk": sample_pk,
    "uniform": sample_uniform,
    "balanced": sample_balanced,
    "frequency": sample_frequency,
    "published": sample_published,
    "deep_ranking": sample_deep_ranking,
}
# What a run of each sampler draws from: (labels, rows, seed, coarse or None) -> pool, alike in shape for all runs.
POOLS: dict[str, Callable[..., Any]] = {
    "pk": _table_pool,
    "uniform": _table_pool,
    "balanced": _table_pool,
    "frequency": _table_pool,
    "published": lambda labels, rows, seed, coarse=None, *, triplets: draw_published_triplets(
        labels, rows, seed, triplets
    ),
    "deep_ranking": draw_deep_ranking_triplets,
}
