"""Which rows make a batch: functions of (seed, step) and nothing else, so that resuming a run needs no sampler state.

A run samples from its own images only; they are described by a ``ClassTable``, an array that can be stacked over runs
and mapped by ``vmap``. ``partial(sample_pk, table, ...)`` has the type ``Sampler``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


class ClassTable(NamedTuple):
    """The rows of each class, padded with -1: classes and rows in ascending order, and all padding at the end."""

    rows: Int[Array, "... classes members"]
    counts: Int[Array, "... classes"]  # 0 for a padded class


def class_table(
    labels: Int[np.ndarray, " n"], rows: Int[np.ndarray, " m"], classes: int | None = None, members: int | None = None
) -> ClassTable:
    """The table of the ``rows`` that a run may use, by ``labels[row]``, padded to a common shape."""
    rows = np.sort(np.asarray(rows))
    _, index, counts = np.unique(labels[rows], return_inverse=True, return_counts=True)
    table = np.full((classes or len(counts), members or counts.max(initial=1)), -1, np.int32)
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


def draw_published_triplets(table: ClassTable, seed: Any, triplets: int) -> Int[Array, "t 3"]:
    """The published experiment's triplets as rows (anchor, positive, negative), drawn once per seed.

    Two entries of the label *array* are drawn without replacement, so classes count by their images and both entries
    may bear the same label. Anchor and positive are the first and the last image of the first label, the negative is
    the first image of the second.
    """
    bounds = jnp.cumsum(table.counts)
    first_key, second_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2))
    first = jax.random.randint(first_key, (triplets,), 0, bounds[-1])
    second = jax.random.randint(second_key, (triplets,), 0, bounds[-1] - 1)
    second = second + (second >= first)
    positive, negative = (jnp.searchsorted(bounds, entry, side="right") for entry in (first, second))
    last = table.rows[positive, table.counts[positive] - 1]
    return jnp.stack([table.rows[positive, 0], last, table.rows[negative, 0]], axis=1)


def sample_published(
    table: ClassTable, seed: Any, step: Any, triplets: int = 1000, batch: int = 32, held_out: float = 0.25
) -> Int[Array, " b"]:
    """One batch of the published triplets in the order (a, p, n), (a, p, n), ..., reshuffled each epoch.

    The last ``held_out`` share of the triplets is left for validation; the last batch of an epoch is filled with
    padding.
    """
    drawn = draw_published_triplets(table, seed, triplets)
    train = triplets - int(triplets * held_out)
    epoch_steps = -(-train // batch)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 3), step // epoch_steps)
    place = (step % epoch_steps) * batch + jnp.arange(batch)
    order = jnp.argsort(
        jax.random.uniform(key, (train,))
    )  # a permutation; ties are too rare to matter and stay in order
    chosen = drawn[order[place % train]]
    return jnp.where((place < train)[:, None], chosen, -1).reshape(-1)


def published_validation(
    table: ClassTable, seed: Any, triplets: int = 1000, held_out: float = 0.25
) -> Int[Array, " v"]:
    """The held-out triplets of ``sample_published``, all of them."""
    return draw_published_triplets(table, seed, triplets)[triplets - int(triplets * held_out) :].reshape(-1)


SAMPLERS = {"pk": sample_pk, "published": sample_published}
