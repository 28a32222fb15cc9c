"""Our miners against those of PyTorch Metric Learning: ``pip install -e '.[test,oracles]'``.

Its ``HDCMiner`` keeps the hardest share of all pairs of a batch; none of ours does that, so it is no oracle here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.base import BatchInfo
from fgis.distances import DISTANCES
from fgis.learning import miners

torch = pytest.importorskip("torch", reason="the oracles are an extra of their own: pip install -e '.[oracles]'")
distances, peer_miners, utils = (
    pytest.importorskip(f"pytorch_metric_learning.{name}", reason="pip install -e '.[oracles]'")
    for name in ("distances", "miners", "utils.loss_and_miner_utils")
)

KEY = jax.random.key(0)
MARGIN = 0.3
EUCLIDEAN = distances.LpDistance(normalize_embeddings=False)


def batch(seed, classes=9, n=40, d=6):
    """Unit vectors in loose clusters: some triplets of every kind, and classes of different sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, d))[labels] + 0.9 * rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def pairwise(x):
    return DISTANCES["euclidean"].pairwise(jnp.asarray(x), jnp.asarray(x))


def ours(miner, x, labels, key=KEY):
    """The triplets [t, 3] of weight above 0."""
    labels, rows = jnp.asarray(labels), jnp.arange(len(labels))
    info = BatchInfo(dimensions=x.shape[1])
    found = miner(key, pairwise(x), *miners.relations(labels, rows, labels, rows), info)
    return np.stack(found[:3], axis=1)[np.asarray(found.weight) > 0]


def theirs(miner, x, labels):
    """The triplets [t, 3], also of a miner that gives positive pairs and negative pairs."""
    found = utils.convert_to_triplets(miner(torch.tensor(x), torch.tensor(labels)), torch.tensor(labels))
    return np.stack([i.numpy() for i in found], axis=1)


SAME = {
    "batch_hard": (miners.batch_hard, peer_miners.BatchHardMiner(distance=EUCLIDEAN)),
    "easy_semi_hard": (miners.easy_semi_hard, peer_miners.BatchEasyHardMiner("easy", "semihard", distance=EUCLIDEAN)),
    "hard_negatives": (miners.hard_negatives, peer_miners.BatchEasyHardMiner("all", "hard", distance=EUCLIDEAN)),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("seed", range(4))
def test_the_same_triplets(name, seed):
    miner, peer = SAME[name]
    found, expected = ours(miner, *batch(seed)), theirs(peer, *batch(seed))
    assert sorted(found.tolist()) == sorted(expected.tolist())
    assert len(found) > 25


@pytest.mark.parametrize("seed", range(4))
def test_semi_hard_lists_the_nearest_of_their_semi_hard_negatives_of_every_pair(seed):
    x, labels = batch(seed)
    d = np.asarray(pairwise(x))
    peer = peer_miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard", distance=EUCLIDEAN)
    nearest: dict = {}
    for a, p, n in theirs(peer, x, labels).tolist():
        nearest[a, p] = min(nearest.get((a, p), n), n, key=lambda n: d[a, n])
    found = ours(partial(miners.semi_hard, margin=MARGIN), x, labels)
    assert {(a, p): n for a, p, n in found.tolist()} == nearest
    pairs = sum(labels[a] == labels[p] for a in range(40) for p in range(40) if a != p)
    assert 25 < len(found) < pairs  # some pairs have none


def counts(triplets, n):
    """How often each negative was drawn for each anchor: [n, n]."""
    found = np.zeros((n, n))
    np.add.at(found, (triplets[:, 0], triplets[:, 2]), 1)
    return found


def test_distance_weighted_draws_as_often_as_they_do():
    """A χ² test of two samples: the counts of every (anchor, negative), given those of every anchor."""
    torch.manual_seed(0)
    (x, labels), rounds = batch(0), 300
    peer = peer_miners.DistanceWeightedMiner()
    one = counts(np.concatenate([theirs(peer, x, labels) for _ in range(rounds)]), 40)
    miner = jax.jit(lambda *arrays: miners.distance_weighted(*arrays, BatchInfo(dimensions=x.shape[1])))
    drawn = [ours(lambda *known: miner(*known[:4]), x, labels, jax.random.key(i)) for i in range(rounds)]
    two = counts(np.concatenate(drawn), 40)
    totals = one.sum(axis=1, keepdims=True), two.sum(axis=1, keepdims=True)
    present = (totals[0] > 0).ravel()
    np.testing.assert_array_equal(present, (totals[1] > 0).ravel())
    shared = (one + two) / (totals[0] + totals[1] + ~present[:, None])
    counted = (shared * np.minimum(*totals) > 5) & present[:, None]  # cells with enough of both for χ²
    statistic = sum(
        ((c - t * shared)[counted] ** 2 / (t * shared)[counted]).sum() for c, t in zip((one, two), totals, strict=True)
    )
    freedom = counted.sum() - present.sum()
    assert freedom > 400
    assert abs(statistic - freedom) < 4 * np.sqrt(2 * freedom)


def test_distance_weighted_keeps_the_anchors_that_they_lose_to_underflow():
    """In 256 dimensions two near antipodes, which ``maximum`` excludes, outweigh all others: they list nothing."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 4)
    x = rng.normal(size=(8, 256))[labels] + rng.normal(size=(32, 256))
    x[31] = -x[0] + 0.2 * x[31]
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    assert len(theirs(peer_miners.DistanceWeightedMiner(), x, labels)) == 0
    found = ours(miners.distance_weighted, x, labels)
    assert len(found) > 32 * 3 * 0.9
