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


def sample_pk(table: ClassTable, seed: Any, step: Any, classes: int = 64, per_class: int = 4) -> Int[Array, " b"]:
    """P classes × K images: each epoch walks a new random order of all classes, so every class is seen in every epoch.

    An epoch has ceil(C / P) steps; its last batch is filled from the start of the same order. The K images of a class
    are distinct while it has K, then repeat in turn. Where the run has fewer than P classes, the places left are
    padding (row -1).
    """
    key = jax.random.fold_in(jax.random.key(seed), 0)
    total = jnp.sum(table.counts > 0)
    epoch_steps = (total + classes - 1) // classes
    epoch, position = step // epoch_steps, step % epoch_steps
    noise = jax.random.uniform(jax.random.fold_in(key, epoch), table.counts.shape)
    order = jnp.argsort(jnp.where(table.counts > 0, noise, jnp.inf))
    place = position * classes + jnp.arange(classes)
    chosen = order[place % total]

    member_noise = jax.random.uniform(
        jax.random.fold_in(jax.random.fold_in(key, 1), step), (classes, table.rows.shape[1])
    )
    counts = table.counts[chosen]
    real = jnp.arange(table.rows.shape[1]) < counts[:, None]
    members = jnp.argsort(jnp.where(real, member_noise, jnp.inf), axis=1)
    turn = jnp.arange(per_class) % counts[:, None]
    rows = jnp.take_along_axis(table.rows[chosen], jnp.take_along_axis(members, turn, axis=1), axis=1)
    return jnp.where((jnp.arange(classes) < total)[:, None], rows, -1).reshape(-1)


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
    train = len(drawn) - int(len(drawn) * held_out)
    epoch_steps = -(-train // batch)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 3), step // epoch_steps)
    order = jnp.argsort(jax.random.uniform(key, (train,)))  # a permutation; ties, too rare to matter, stay in order
    place = (step % epoch_steps) * batch + jnp.arange(batch)
    return jnp.where((place < train)[:, None], drawn[order[place % train]], -1).reshape(-1)


def published_validation(drawn: Int[Array, "t 3"], seed: Any, held_out: float = 0.25) -> Int[Array, " v"]:
    """All held-out triplets of ``sample_published``; ``seed`` is not used, since they were drawn with it."""
    del seed
    return drawn[len(drawn) - int(len(drawn) * held_out) :].reshape(-1)


SAMPLERS = {"pk": sample_pk, "published": sample_published}
# What a run of each sampler draws from: (labels, rows, seed) -> pool.
POOLS: dict[str, Callable[..., Any]] = {
    "pk": lambda labels, rows, seed: class_table(labels, rows),
    "published": draw_published_triplets,
}
