"""Losses and their gradients against PyTorch Metric Learning: ``pip install -e '.[test,oracles]'``.

Wherever the two conventions differ, the test says how and brings ours to theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.base import LossSum
from fgis.distances import DISTANCES, l2_normalize
from fgis.learning import losses, miners, pair_losses

torch = pytest.importorskip("torch", reason="the oracles are an extra of their own: pip install -e '.[oracles]'")
distances, peer_losses, peer_miners, utils = (
    pytest.importorskip(f"pytorch_metric_learning.{name}", reason="pip install -e '.[oracles]'")
    for name in ("distances", "losses", "miners", "utils.loss_and_miner_utils")
)
seeds = pytest.mark.parametrize("seed", range(3))


def batch(seed, classes=7, n=30, d=6, labels=None):
    """Loose clusters, not normalised: classes of different sizes, and the last row is alone in its class."""
    rng = np.random.default_rng(seed)
    if labels is None:
        labels = rng.integers(0, classes, n)
        labels[-1] = classes
    x = 0.7 * rng.normal(size=(labels.max() + 1, d))[labels] + 0.7 * rng.normal(size=(len(labels), d))
    return x.astype(np.float32), labels


def masks(labels):
    labels, rows = jnp.asarray(labels), jnp.arange(len(labels))
    return miners.relations(labels, rows, labels, rows)


def agree(ours, theirs, *arrays, rtol=1e-4, atol=1e-5):
    """The same value and the same gradient with respect to every array."""
    values, gradients = jax.value_and_grad(ours, argnums=tuple(range(len(arrays))))(*map(jnp.asarray, arrays))
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    expected = theirs(*tensors)
    expected.backward()
    assert expected.item() > 0.01
    assert float(values) == pytest.approx(expected.item(), rel=rtol)
    for found, tensor in zip(gradients, tensors, strict=True):
        assert tensor.grad.abs().max() > 1e-3
        np.testing.assert_allclose(found, tensor.grad.numpy(), rtol=1e-3, atol=atol)


def paired(loss, labels, reduction, distance="cosine", **numbers):
    """Our loss of a batch. The peer normalises embeddings before it takes the Euclidean distance."""

    def ours(x):
        z = l2_normalize(x) if distance == "euclidean" else x
        return reduction(loss(DISTANCES[distance].pairwise(z, z), *masks(labels), **numbers))

    return ours


@seeds
def test_margin_loss_and_its_learned_boundary(seed):
    x, labels = batch(seed)
    a, p, n = (i.numpy() for i in utils.get_all_triplets_indices(torch.tensor(labels)))
    picked = np.random.default_rng(seed).choice(len(a), 200, replace=False)
    a, p, n = a[picked], p[picked], n[picked]

    def ours(x, beta):
        z, rowwise = l2_normalize(x), DISTANCES["euclidean"].rowwise
        found = losses.margin_loss(rowwise(z[a], z[p]), rowwise(z[a], z[n]), beta[0], margin=0.2)
        pairs = jnp.asarray(found.size, jnp.float32)
        return losses.mean_active(LossSum(found.sum(), pairs, (found > 0).sum().astype(jnp.float32)))

    def theirs(x, beta):
        loss = peer_losses.MarginLoss(margin=0.2, beta=0.9, learn_beta=True)
        loss.beta = torch.nn.Parameter(beta.detach())
        value = loss(x, torch.tensor(labels), tuple(map(torch.tensor, (a, p, n))))
        (beta.grad,) = torch.autograd.grad(value, loss.beta, retain_graph=True)
        return value

    agree(ours, theirs, x, np.array([0.9], np.float32))


@seeds
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_contrastive_averages_the_pairs_that_violate_their_margin(seed, distance):
    # By default the peer averages losses above 0. On cosine similarities its margins are similarities: 1 − ours.
    x, labels = batch(seed)
    if distance == "euclidean":
        theirs = peer_losses.ContrastiveLoss(pos_margin=0.2, neg_margin=0.9)
    else:
        theirs = peer_losses.ContrastiveLoss(1 - 0.2, 1 - 0.9, distance=distances.CosineSimilarity())
    ours = paired(
        pair_losses.contrastive, labels, losses.mean_active, distance, positive_margin=0.2, negative_margin=0.9
    )
    agree(ours, lambda x: theirs(x, torch.tensor(labels)), x)


@seeds
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_nt_xent(seed, distance):
    x, labels = batch(seed)
    peer = distances.LpDistance() if distance == "euclidean" else distances.CosineSimilarity()
    theirs = peer_losses.NTXentLoss(temperature=0.2, distance=peer)
    ours = paired(pair_losses.nt_xent, labels, losses.mean, distance, temperature=0.2)
    agree(ours, lambda x: theirs(x, torch.tensor(labels)), x)


@seeds
@pytest.mark.parametrize("reduction", ["mean", "mean_active"])
def test_sup_con(seed, reduction):
    # The peer averages losses above 0, which leaves out the anchors without a positive: here both reductions do.
    x, labels = batch(seed)
    theirs = peer_losses.SupConLoss(temperature=0.2)
    ours = paired(pair_losses.sup_con, labels, losses.REDUCTIONS[reduction], temperature=0.2)
    agree(ours, lambda x: theirs(x, torch.tensor(labels)), x)


@seeds
@pytest.mark.parametrize("mined", [True, False])
def test_multi_similarity_with_and_without_its_mining(seed, mined):
    x, labels = batch(seed)
    theirs = peer_losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)

    def their_value(x):
        pairs = peer_miners.MultiSimilarityMiner(epsilon=0.1)(x, torch.tensor(labels)) if mined else None
        assert not mined or 20 < len(pairs[0]) < int(masks(labels)[0].sum())
        return theirs(x, torch.tensor(labels), pairs)

    ours = paired(pair_losses.multi_similarity, labels, losses.mean, epsilon=0.1 if mined else None)
    agree(ours, their_value, x)


@seeds
def test_smooth_ap_where_every_anchor_finds_itself_first(seed):
    # The peer (like the authors) ranks each anchor among its own candidates and counts it as its first positive, at
    # similarity 1. It demands classes of one size, each in consecutive rows, and averages over all anchors. In 2.9.0 it
    # takes images per class for the number of classes, so that only a square batch (as many classes as images of each)
    # is cut where the classes are.
    x, labels = batch(seed, labels=np.repeat([2, 0, 3, 1, 4], 5))
    positives, negatives = masks(labels)
    itself = jnp.eye(len(labels), dtype=bool)

    def ours(x):
        return losses.mean(
            pair_losses.smooth_ap(DISTANCES["cosine"].pairwise(x, x), positives | itself, negatives, temperature=0.05)
        )

    theirs = peer_losses.SmoothAPLoss(temperature=0.05)
    agree(ours, lambda x: theirs(x, torch.tensor(labels)), x)


@seeds
def test_proxy_anchor_and_its_proxies(seed):
    # Class 8 has a proxy and no image: it counts among those that are pushed, as in the peer.
    x, labels = batch(seed)
    proxies = np.random.default_rng(seed).normal(size=(9, x.shape[1])).astype(np.float32)
    same = jnp.arange(9)[:, None] == jnp.asarray(labels)

    def ours(x, proxies):
        found = pair_losses.proxy_anchor(DISTANCES["cosine"].pairwise(proxies, x), same, ~same, margin=0.1, scale=32.0)
        return losses.mean(found)

    def theirs(x, proxies):
        loss = peer_losses.ProxyAnchorLoss(num_classes=9, embedding_size=x.shape[1], margin=0.1, alpha=32)
        del loss.proxies
        loss.proxies = proxies
        return loss(x, torch.tensor(labels))

    agree(ours, theirs, x, proxies, atol=1e-4)
