"""Which rows make a batch: functions of (pool, seed, step) and nothing else, so that a run resumes without any state.

A sampler is a ``Sampler``, a record of functions; ``SAMPLERS`` is the one table. All its functions share the
hyperparameters of the choice: the union of their keyword-only parameters. Row -1 is padding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from fgis.base import Key
from fgis.learning.pools import ClassTable, class_table, draw_published_triplets
from fgis.learning.relevance import draw_deep_ranking_triplets, draw_uniform_triplets
from fgis.learning.scorers import draw_scored_triplets
from fgis.ranges import Count, Finite, ShareBelowOne
from fgis.streams import Stream, stream_key


class BatchShape(NamedTuple):
    """The size of one batch."""

    rows: int  # padding included
    per_class: int | None = None  # images of each class, where the sampler fixes how many


class Sampler(NamedTuple):
    """One way of drawing batches."""

    sample: Callable[..., Int[Array, " b"]]  # (pool, seed, step, *, ...) -> rows [b]
    pool: Callable[..., Any]  # (RunImages, seed, *, ...) -> what a run draws from, alike in shape for all runs
    batch: Callable[..., BatchShape]  # (*, ...) -> the size of every batch
    lists_triplets: bool = False  # whether a batch is (a, p, n), (a, p, n), ..., to be taken without mining
    held_out: Callable[..., Int[Array, " v"]] | None = None  # (pool, seed, *, ...) -> rows of validation triplets


def most_positives(batch: BatchShape, memory_size: int = 0) -> int | None:
    """How many positives an anchor can have at most: what ``BatchInfo.max_positives`` is for.

    Args:
      batch: the size of every batch.
      memory_size: places of the cross-batch memory, whose images are candidates as well.

    Returns:
      A number of at least 1, or None where the sampler does not fix the images per class.

    >>> most_positives(BatchShape(rows=128, per_class=4))
    3
    """
    if batch.per_class is None:
        return None
    batches = 1 + -(-memory_size // batch.rows)  # those whose images are candidates
    return max(batches * batch.per_class - 1, 1)


def sample_uniform(table: ClassTable, seed: Any, step: Any, *, batch: Count = 128) -> Int[Array, " b"]:
    """Images without regard to classes: each epoch takes all of the run's images in a new random order.

    An epoch has ceil(n / batch) steps; its last batch is filled from the start of the same order.

    Args:
      table: the images of the run, by class.
      seed: [] integer, of the run.
      step: [] integer.
      batch: images of a batch.

    Returns:
      Rows [batch]. Where the run has fewer than ``batch`` images, the places left are padding.
    """
    total = jnp.sum(table.counts)
    epoch, place = _epoch_places(step, total, batch)
    noise = jax.random.uniform(stream_key(seed, Stream.UNIFORM, epoch), table.rows.shape)
    order = jnp.argsort(jnp.where(table.rows >= 0, noise, jnp.inf))
    return jnp.where(jnp.arange(batch) < total, table.rows[order[place]], -1)


def sample_balanced(table: ClassTable, seed: Any, step: Any, *, batch: Count = 128) -> Int[Array, " b"]:
    """Independent draws with replacement: a class uniformly, then an image of it, so P(i) = 1 / (C · images of class).

    Args:
      table: the images of the run, by class.
      seed: [] integer, of the run.
      step: [] integer.
      batch: images of a batch.

    Returns:
      Rows [batch]; all padding where the run has no image.
    """
    class_key, image_key = jax.random.split(stream_key(seed, Stream.BALANCED, step))
    chosen = jax.random.randint(class_key, (batch,), 0, jnp.sum(table.counts > 0))
    drawn = table.rows[table.starts[chosen] + jax.random.randint(image_key, (batch,), 0, table.counts[chosen])]
    return jnp.where(table.counts[chosen] > 0, drawn, -1)


def sample_pk(
    table: ClassTable, seed: Any, step: Any, *, classes: Count = 64, per_class: Count = 4
) -> Int[Array, " b"]:
    """P classes × K images: each epoch takes all classes in a new random order, so every class occurs in every epoch.

    An epoch has ceil(C / P) steps; its last batch is filled from the start of the same order (Hermans 2017,
    arXiv:1703.07737).

    Args:
      table: the images of the run, by class.
      seed: [] integer, of the run.
      step: [] integer.
      classes: P, different ones.
      per_class: K; the images of a class are distinct while it has K, then repeat in turn.

    Returns:
      Rows [P · K], class by class. Where the run has fewer than P classes, the places left are padding.
    """
    key = stream_key(seed, Stream.PK_CLASSES)
    total = jnp.sum(table.counts > 0)
    epoch, place = _epoch_places(step, total, classes)
    noise = jax.random.uniform(jax.random.fold_in(key, epoch), table.counts.shape)
    order = jnp.argsort(jnp.where(table.counts > 0, noise, jnp.inf))
    rows = _members(table, stream_key(key, Stream.PK_MEMBERS, step), order[place], per_class)
    return jnp.where((jnp.arange(classes) < total)[:, None], rows, -1).reshape(-1)


def sample_frequency(
    table: ClassTable, seed: Any, step: Any, *, classes: Count = 64, per_class: Count = 4, power: Finite = 1.0
) -> Int[Array, " b"]:
    """P classes × K images, where a class counts by (images of the class)^power: large classes come more often.

    The P classes of a step are distinct, and drawn one after the other with chances in proportion to that weight among
    those not drawn yet: the P largest of power · log(images) + Gumbel noise (arXiv:1903.06059).

    Args:
      table: the images of the run, by class.
      seed: [] integer, of the run.
      step: [] integer.
      classes: P, different ones.
      per_class: K, as for ``sample_pk``.
      power: 0 draws classes uniformly.

    Returns:
      Rows [P · K], class by class. Where the run has fewer than P classes, the places left are padding.
    """
    class_key, image_key = jax.random.split(stream_key(seed, Stream.FREQUENCY, step))
    total = jnp.sum(table.counts > 0)
    score = power * jnp.log(jnp.maximum(table.counts, 1)) + jax.random.gumbel(class_key, table.counts.shape)
    order = jnp.argsort(jnp.where(table.counts > 0, -score, jnp.inf))
    rows = _members(table, image_key, order[_epoch_places(0, total, classes)[1]], per_class)
    return jnp.where((jnp.arange(classes) < total)[:, None], rows, -1).reshape(-1)


def _epoch_places(step: Any, total: Any, batch: int) -> tuple[Any, Int[Array, " b"]]:
    """(epoch, places of the batch in the order of the epoch); the last batch goes on at the start of that order."""
    epoch_steps = jnp.maximum((total + batch - 1) // batch, 1)
    place = step % epoch_steps * batch + jnp.arange(batch)
    return step // epoch_steps, place % jnp.maximum(total, 1)


def _members(table: ClassTable, key: Key, chosen: Int[Array, " p"], per_class: int) -> Int[Array, "p k"]:
    """``per_class`` random images of each chosen class: distinct while it has so many, then repeating in turn."""
    counts, members = table.counts[chosen][:, None], len(table.slots)
    noise = jax.random.uniform(key, (len(chosen), members))
    _, places = jax.lax.top_k(jnp.where(table.slots < counts, -noise, -jnp.inf), min(per_class, members))
    turn = jnp.arange(per_class) % jnp.maximum(counts, 1)
    rows = table.rows[table.starts[chosen][:, None] + jnp.take_along_axis(places, turn, axis=1)]
    return jnp.where(counts > 0, rows, -1)


def sample_published(
    drawn: Int[Array, "t 3"], seed: Any, step: Any, *, batch: Count = 32, held_out: ShareBelowOne = 0.25
) -> Int[Array, " b"]:
    """Some of the published experiment's triplets, in a new random order each epoch.

    Args:
      drawn: triplets of rows (anchor, positive, negative), see ``draw_published_triplets``.
      seed: [] integer, of the run.
      step: [] integer.
      batch: triplets of a batch.
      held_out: the share of the triplets, the last ones, that is left for validation.

    Returns:
      Rows [3 · batch], (a, p, n), (a, p, n), ...; the last batch of an epoch is filled with padding.
    """
    train = drawn[: len(drawn) - int(len(drawn) * held_out)]
    return _reshuffled(train, stream_key(seed, Stream.PUBLISHED_ORDER), step, batch)


def published_validation(drawn: Int[Array, "t 3"], seed: Any, *, held_out: ShareBelowOne = 0.25) -> Int[Array, " v"]:
    """All triplets that ``sample_published`` holds out, as rows [v]; ``seed`` is not used: they were drawn with it."""
    del seed
    return drawn[len(drawn) - int(len(drawn) * held_out) :].reshape(-1)


def sample_deep_ranking(drawn: Int[Array, "t 3"], seed: Any, step: Any, *, batch: Count = 42) -> Int[Array, " b"]:
    """Some of the triplets of Deep Ranking, or of VisNet, in a new random order each epoch.

    Args:
      drawn: triplets of rows (query, positive, negative), see ``draw_deep_ranking_triplets``, ``draw_scored_triplets``.
      seed: [] integer, of the run.
      step: [] integer.
      batch: triplets of a batch.

    Returns:
      Rows [3 · batch], (a, p, n), (a, p, n), ...; the last batch of an epoch is filled with padding, and all is padding
      where the images of the run form no triplet.
    """
    return _reshuffled(drawn, stream_key(seed, Stream.DEEP_RANKING_ORDER), step, batch)


def _reshuffled(drawn: Int[Array, "t 3"], key: Key, step: Any, batch: int) -> Int[Array, " b"]:
    """``batch`` triplets, one after the other: each epoch takes all in a new random order, and ends in padding."""
    total = len(drawn)
    epoch_steps = -(-total // batch)
    noise = jax.random.uniform(jax.random.fold_in(key, step // epoch_steps), (total,))
    order = jnp.argsort(noise)  # a permutation; ties, too rare to matter, stay in order
    place = (step % epoch_steps) * batch + jnp.arange(batch)
    return jnp.where((place < total)[:, None], drawn[order[place % total]], -1).reshape(-1)


def _pk_shape(*, classes: Count = 64, per_class: Count = 4) -> BatchShape:
    return BatchShape(classes * per_class, per_class)


def _batch_shape(*, batch: Count = 128) -> BatchShape:
    return BatchShape(batch)


def _published_shape(*, batch: Count = 32) -> BatchShape:
    return BatchShape(3 * batch)


def _deep_ranking_shape(*, batch: Count = 42) -> BatchShape:
    return BatchShape(3 * batch)


SAMPLERS: dict[str, Sampler] = {
    "pk": Sampler(sample_pk, class_table, _pk_shape),
    "uniform": Sampler(sample_uniform, class_table, _batch_shape),
    "balanced": Sampler(sample_balanced, class_table, _batch_shape),
    "frequency": Sampler(sample_frequency, class_table, _pk_shape),
    "published": Sampler(
        sample_published, draw_published_triplets, _published_shape, lists_triplets=True, held_out=published_validation
    ),
    "deep_ranking": Sampler(sample_deep_ranking, draw_deep_ranking_triplets, _deep_ranking_shape, lists_triplets=True),
    "uniform_triplets": Sampler(sample_deep_ranking, draw_uniform_triplets, _deep_ranking_shape, lists_triplets=True),
    "scored_triplets": Sampler(sample_deep_ranking, draw_scored_triplets, _deep_ranking_shape, lists_triplets=True),
}
