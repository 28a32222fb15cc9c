"""The records of arrays that packages exchange, and the types of the functions that can be chosen.

Shapes use one letter per axis throughout the project: ``n`` images, ``b`` rows of a batch, ``f`` features, ``d``
embedding dimensions, ``a`` anchors, ``c`` candidates, ``t`` triplets, ``q`` queries, ``g`` gallery, ``k`` ranks,
``r`` runs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Key = jax.Array  # one typed PRNG key


class FeatureSet(NamedTuple):
    """The content of one feature file: row ``i`` of every field but ``label_names`` describes the same image."""

    features: Any  # [n, ...] float, or a mapping of such arrays
    labels: Int[np.ndarray, " n"]
    image_ids: np.ndarray  # [n] str
    source: Mapping[str, Any]  # provenance: backbone, weights_sha256, image_size, ...
    coarse: Int[np.ndarray, " n"] | None = None  # coarse labels, where there are such: each holds whole labels
    label_names: tuple[str, ...] | None = None  # the name of label 0, 1, ..., where labels have names
    is_query: Bool[np.ndarray, " n"] | None = None  # queries, or else in the gallery; None: every image is both


class Batch(NamedTuple):
    """Rows of a feature set; ``rows`` is -1 where the batch is padded, ``coarse`` None without such labels."""

    features: Float[Array, "b ..."]
    labels: Int[Array, " b"]
    rows: Int[Array, " b"]
    coarse: Int[Array, " b"] | None = None


class BatchInfo(NamedTuple):
    """What miners may know of every batch beforehand, from the sampler and the head."""

    max_positives: int | None = None  # no anchor has more positives; None: no bound is known
    dimensions: int | None = None  # of the embeddings


class Comparison(NamedTuple):
    """One batch as strategies see it: the anchors of this device against the candidates of all devices.

    Candidates are the whole batch and, behind it, the memory. The opposites are those negatives that have another
    coarse label. ``keys`` holds one random key per anchor, which depends on its place in the global batch alone.
    """

    anchors: Float[Array, "a d"]
    candidates: Float[Array, "c d"]
    labels: Int[Array, " c"]
    rows: Int[Array, " c"]  # -1 where there is no candidate
    positives: Bool[Array, "a c"]
    negatives: Bool[Array, "a c"]
    opposites: Bool[Array, "a c"]
    keys: Key  # [a]
    step: Any = 0  # [] int32
    share: tuple[Any, int] = (0, 1)  # (this device, how many there are)


class Triplets(NamedTuple):
    """Indices into the anchors and the candidates of one batch; ``weight`` is 0 where a triplet is invalid."""

    anchor: Int[Array | np.ndarray, " t"]  # in numpy where it does not depend on the batch
    positive: Int[Array, " t"]
    negative: Int[Array, " t"]
    weight: Float[Array, " t"]


class LossSum(NamedTuple):
    """The value of every objective: sums over anchors, so that the sums of several devices add up.

    Scalars; or vectors of one length, one entry per kind of term that is averaged by itself, such as [positive pairs,
    negative pairs]. A term is what the strategy counts: a triplet, a pair, an anchor or a proxy.
    """

    total: Float[Array, "..."]  # sum of weight * loss
    valid: Float[Array, "..."]  # sum of weight
    active: Float[Array, "..."]  # sum of weight where the loss is above 0


class Neighbours(NamedTuple):
    """The ranked gallery of each query: rows by ascending distance, ties by the lowest row, -1 where there is none."""

    rows: Int[np.ndarray, "q k"]
    distances: Float[np.ndarray, "q k"]
    tied: Bool[np.ndarray, " q"] | None = None  # whether an entry that was cut off is as near as the last one listed


class Protocol(NamedTuple):
    """Which rows are queries, which rows form the gallery, and how many neighbours of a query are needed."""

    query_rows: Int[np.ndarray, " q"]
    gallery_rows: Int[np.ndarray, " g"]
    depth: int


class RunPlan(NamedTuple):
    """One training run: its seed, and the fold that it is not trained on (-1: it is trained on all images)."""

    seed: int
    fold: int
    photos: bool = False  # whether the fold is one of photos and not one of objects


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes; arrays only, so it can be stacked, sharded and saved as it is."""

    step: Any  # [] int32, and [r] where runs are stacked
    params: Any
    opt_state: Any
    memory: Any = ()


Miner = Callable[..., Triplets]  # (key, distances [a, c], positives [a, c], negatives [a, c], BatchInfo)
TripletLoss = Callable[..., Float[Array, "t ..."]]  # (d_ap [t], d_an [t], learned ...) -> [t], or [t, 2 pairs]
PairLoss = Callable[..., LossSum]  # (distances [a, c], positives [a, c], negatives [a, c])
Objective = Callable[[Comparison, Mapping[str, Any]], LossSum]  # the second: what the loss has learned, or {}
Reduction = Callable[[LossSum], Float[Array, ""]]
Metric = Callable[..., Float[np.ndarray, " q"]]  # (what it reads of the ranking of each query) -> a value per query
