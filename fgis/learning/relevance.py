"""Deep Ranking's triplets (Wang 2014, arXiv:1404.4661, section 5.2): drawn by graded relevance from online buffers.

A category is a coarse class, or the label itself where there are no coarse ones. The relevance r_ij of two different
images is 2 where they share the label, 1 where they share the category alone, and 0 otherwise; r_ii = 0. The total
relevance of an image is r_i = Σ_j r_ij over the images of the run.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgis.learning.pools import RunImages
from fgis.ranges import Count, NonNegative, Positive, Range, Share, require
from fgis.streams import Stream, stream_generator

SAME_LABEL, SAME_CATEGORY = 2, 1
STREAM = 16  # a stream brings each buffer this many times its capacity, at least
BLOCK = 1024  # queries that are looked at together: bounds the memory to BLOCK × buffer


def total_relevance(labels: Int[np.ndarray, " m"], category: Int[np.ndarray, " m"]) -> Int[np.ndarray, " m"]:
    """r_i = 2 (f - 1) + (c - f) of an image with f images in its label and c in its category; 0 for a lone image.

    Args:
      labels: of the images of the run, any integers.
      category: of the same images, any integers; images that share a label share it as well.

    Returns:
      Whole numbers [m].
    """
    same_label, same_category = (
        np.unique(groups, return_inverse=True, return_counts=True)[1:] for groups in (labels, category)
    )
    f, c = (counts[index] for index, counts in (same_label, same_category))
    return SAME_LABEL * (f - 1) + SAME_CATEGORY * (c - f)


def fill_buffer(
    arriving: Int[np.ndarray, " s"], keys: Float[np.ndarray, " s"], buffer: int
) -> Int[np.ndarray, " kept"]:
    """What one buffer of ``buffer`` places holds at the end of a stream of images, in no particular order.

    While it has free places, whatever arrives goes in; after that an arrival replaces the smallest key, or is discarded
    where its own is smaller still. What remains is thus the images with the largest keys, in whatever order they
    arrived.

    Args:
      arriving: images; one may arrive several times.
      keys: of each arrival.
      buffer: places of the buffer.

    Returns:
      At most ``buffer`` of ``arriving``.
    """
    return arriving[np.argpartition(-keys, buffer - 1)[:buffer]] if len(keys) > buffer else arriving


def fill_buffers(
    category: Int[np.ndarray, " m"], total: Int[np.ndarray, " m"], buffer: int, rng: np.random.Generator
) -> Int[np.ndarray, "categories buffer"]:
    """The images in the buffer of each category (0, 1, ...) after a stream of passes; key u^(1/r_i), u uniform.

    One place of a buffer, taken at random, is image i with a chance in proportion to r_i as long as the buffer holds a
    small share of what arrived. Few images would not do, so the images of a category arrive once in each of
    ceil(STREAM · buffer / images) passes, with a new key each time, and an image may lie in the buffer several times.
    At a share of 1 / STREAM, a ratio of 2 between total relevances has become 1.94.

    Args:
      category: of each image: 0, 1, ..., each with at least one image.
      total: r_i of each image.
      buffer: places of each buffer.
      rng: what the keys are drawn from.

    Returns:
      Images, as indices into ``category``. Every buffer is full.
    """
    held = []
    for own in np.split(np.argsort(category, kind="stable"), np.cumsum(np.bincount(category))[:-1]):
        arriving = np.tile(own, -(-STREAM * buffer // len(own)))
        # log u^(1/r). A lone image has r = 0 and the key 0: with its category to itself, any key will do.
        keys = np.log1p(-rng.random(len(arriving))) / np.maximum(total[arriving], 1)
        held.append(fill_buffer(arriving, keys, buffer))
    return np.stack(held)


class _Held(NamedTuple):
    """The buffers of a run, and what of each of its images can become a triplet."""

    fine: Int[np.ndarray, " m"]  # label of each image: 0, 1, ...
    category: Int[np.ndarray, " m"]
    total: Int[np.ndarray, " m"]
    buffers: Int[np.ndarray, "categories buffer"]
    least: Int[np.ndarray, " m"]  # relevance of the least relevant image that each query meets
    able: np.ndarray  # [m] bool: which images have a positive and a negative far enough apart


class _Law(NamedTuple):
    """What a triplet has to fulfil."""

    out_of_class: float
    positive_cap: float
    gap: float


def draw_deep_ranking_triplets(
    images: RunImages,
    seed: int,
    *,
    triplets: Count = 8192,
    buffer: Annotated[int, Range(2)] = 1024,
    out_of_class: Share = 0.2,
    positive_cap: Positive = 2.0,
    relevance_gap: NonNegative = 1.0,
) -> Int[np.ndarray, "t 3"]:
    """Triplets (query, positive, negative), drawn once per run from the buffers that its images fill.

    query     a buffer in proportion to Σ r_i of its category, then any place of it: P(i) = r_i / Σ r.
    positive  any place of the same buffer, accepted with min(1, min(T_p, r_ip) / r_p): P(p | i) ∝ min(T_p, r_ip).
    negative  with probability ``out_of_class`` any place of all other buffers, else drawn as positives are.

    T_p is ``positive_cap``, and every triplet has r_ip - r_in ≥ T_r, ``relevance_gap`` (and > 0, whatever T_r). To draw
    until one is accepted is to draw in proportion to acceptance, which is what this function does: a constant factor
    drops out, a chance of 1 in 1000 costs nothing, and no chance at all is seen at once. Then the other kind of
    negative is taken: a positive of another label leaves none in its category, so these are fewer than 1 -
    ``out_of_class``. A positive that has neither kind is not drawn, nor is a query without positives.

    The paper leaves T_p, T_r and the capacity open. Grades up to 2 need no cap, and 1 requires another grade. 1024
    places hold each of 100 images ten times, and 87 % of 500 images; an image in no place is in no triplet.

    Args:
      images: the labels of all images, and the rows that the run may see; images that share a label must share their
        coarse class.
      seed: of the run.
      triplets: how many are drawn.
      buffer: places of the buffer of each category.
      out_of_class: share of negatives from other categories, where there is a choice.
      positive_cap: T_p.
      relevance_gap: T_r.

    Returns:
      Rows [triplets, 3], int32. Where the images form no triplet at all, all rows are -1.

    Raises:
      ValueError: ``buffer`` is below 2 or ``positive_cap`` is not above 0: they allow no triplet.
    """
    require(draw_deep_ranking_triplets, buffer=buffer, positive_cap=positive_cap)
    law = _Law(out_of_class, positive_cap, max(relevance_gap, 1.0))  # grades are whole: less relevant by 1 at least
    return _draw(images, seed, triplets, buffer, law, weighted=True)


def draw_uniform_triplets(
    images: RunImages,
    seed: int,
    *,
    triplets: Count = 8192,
    buffer: Annotated[int, Range(2)] = 1024,
    out_of_class: Share = 0.2,
) -> Int[np.ndarray, "t 3"]:
    """The same without weights, the paper's uniform sampling: what ``draw_deep_ranking_triplets`` is compared with.

    All images that have triplets are queries alike, and all that are relevant to a query, whatever their grade, are its
    positives alike, but that a positive is more relevant than its negative.

    Args:
      images, seed, triplets, buffer, out_of_class: as there.

    Returns:
      As there.

    Raises:
      ValueError: ``buffer`` is below 2.
    """
    require(draw_uniform_triplets, buffer=buffer)
    return _draw(images, seed, triplets, buffer, _Law(out_of_class, 1.0, 1.0), weighted=False)


def _draw(
    images: RunImages, seed: int, triplets: int, buffer: int, law: _Law, *, weighted: bool
) -> Int[np.ndarray, "t 3"]:
    rows = np.sort(np.asarray(images.rows))
    if not len(rows):
        return np.full((triplets, 3), -1, np.int32)
    rng = stream_generator(seed, Stream.DEEP_RANKING_TRIPLETS)
    held = _hold(images._replace(rows=rows), buffer, law.gap, rng, weighted)
    share = np.bincount(held.category, held.total * held.able) / np.maximum(held.able[held.buffers].sum(axis=1), 1)
    chance = held.able[held.buffers] * share[:, None]
    if not chance.any():
        return np.full((triplets, 3), -1, np.int32)
    queries = rng.choice(held.buffers.ravel(), triplets, p=chance.ravel() / chance.sum())
    drawn = [_complete(held, queries[start : start + BLOCK], law, rng) for start in range(0, triplets, BLOCK)]
    return rows[np.concatenate(drawn)].astype(np.int32)


def _hold(images: RunImages, buffer: int, gap: float, rng: np.random.Generator, weighted: bool) -> _Held:
    """Fills the buffers, and finds the most and the least relevant image that each query meets before any is drawn."""
    labels, rows, coarse = images.labels, images.rows, images.coarse
    _, fine = np.unique(labels[rows], return_inverse=True)
    category = fine if coarse is None else np.unique(coarse[rows], return_inverse=True)[1]
    total = total_relevance(fine, category) if weighted else np.ones_like(fine)
    held = fill_buffers(category, total, buffer, rng)
    present = np.zeros(len(rows), bool)
    present[held] = True
    same = np.bincount(fine[present], minlength=fine.max() + 1)[fine] - present  # others of the label that are held
    rest = np.bincount(category[present], minlength=len(held))[category] - present - same
    most = np.where(same > 0, SAME_LABEL, np.where(rest > 0, SAME_CATEGORY, 0))
    least = np.where(rest > 0, SAME_CATEGORY, most) if len(held) == 1 else np.zeros_like(most)
    return _Held(fine, category, total, held, least, most - least >= gap)


def _complete(held: _Held, query: Int[np.ndarray, " t"], law: _Law, rng: np.random.Generator) -> Int[np.ndarray, "t 3"]:
    """A positive and a negative for each query."""
    fine, category, buffers = held.fine, held.category, held.buffers
    places = buffers[category[query]]  # [t, buffer]
    relevance = np.where(fine[places] == fine[query][:, None], SAME_LABEL, SAME_CATEGORY)
    relevance *= places != query[:, None]
    acceptance = np.minimum(law.positive_cap, relevance) / held.total[places]
    positive = _pick(rng, places, acceptance * (relevance >= held.least[query][:, None] + law.gap))
    reached = np.where(fine[positive] == fine[query], SAME_LABEL, SAME_CATEGORY)
    acceptance *= relevance <= (reached - law.gap)[:, None]  # that of an in-class negative
    possible = (len(buffers) > 1) & (reached >= law.gap)
    outside = possible & ((rng.random(len(query)) < law.out_of_class) | ~acceptance.any(axis=1))
    other = (category[query] + rng.integers(1, max(len(buffers), 2), len(query))) % len(buffers)
    away = buffers[other, rng.integers(0, buffers.shape[1], len(query))]
    return np.stack([query, positive, np.where(outside, away, _pick(rng, places, acceptance))], axis=1)


def _pick(
    rng: np.random.Generator, places: Int[np.ndarray, "t buffer"], chance: Float[np.ndarray, "t buffer"]
) -> Int[np.ndarray, " t"]:
    """One of each row of ``places``, in proportion to ``chance``; the first where all chances are 0."""
    below = np.cumsum(chance, axis=1)
    chosen = np.argmax(below > rng.random((len(places), 1)) * below[:, -1:], axis=1)
    return places[np.arange(len(places)), chosen]
