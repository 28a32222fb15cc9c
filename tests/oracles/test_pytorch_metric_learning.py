"""Ours against PyTorch Metric Learning, an independent implementation: ``pip install -e '.[test,oracles]'``."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.distances import DISTANCES, l2_normalize
from fgis.learning import losses, miners, objectives
from fgis.retrieval.evaluate import evaluate, protocol
from tests.tiny import comparison

torch = pytest.importorskip("torch", reason="the oracles are an extra of their own: pip install -e '.[oracles]'")
peer_losses, peer_miners, calculators = (
    pytest.importorskip(f"pytorch_metric_learning.{name}", reason="pip install -e '.[oracles]'")
    for name in ("losses", "miners", "utils.accuracy_calculator")
)

EUCLIDEAN = DISTANCES["euclidean"]
MARGIN = 0.3


def batch(seed, classes=9, n=40, d=6):
    """Unit vectors in loose clusters: some triplets of every kind, and classes of different sizes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, d))[labels] + 0.9 * rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def masks(labels):
    rows = jnp.arange(len(labels))
    return miners.relations(jnp.asarray(labels), rows, jnp.asarray(labels), rows)


@pytest.mark.parametrize("kind", ["semihard", "all"])
@pytest.mark.parametrize("seed", range(3))
def test_sums_over_all_triplets_of_a_kind_and_their_gradients(kind, seed):
    x, labels = batch(seed)
    selector = {"semihard": partial(miners.all_semi_hard_negatives, margin=MARGIN), "all": miners.all_negatives}[kind]
    objective = objectives.summed(selector, partial(losses.triplet_loss, margin=MARGIN), EUCLIDEAN)

    def ours(x):
        z = l2_normalize(x)
        return losses.mean_active(objective(comparison(z, *masks(labels)), {}))

    value, gradient = jax.value_and_grad(ours)(jnp.asarray(x))
    embeddings = torch.tensor(x, requires_grad=True)
    triplets = None
    if kind == "semihard":
        miner = peer_miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard")
        triplets = miner(embeddings, torch.tensor(labels))
        assert len(triplets[0]) > 50
    theirs = peer_losses.TripletMarginLoss(margin=MARGIN)(embeddings, torch.tensor(labels), triplets)
    theirs.backward()
    assert float(value) == pytest.approx(theirs.item(), rel=1e-4)
    np.testing.assert_allclose(gradient, embeddings.grad.numpy(), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_on_shuffled_classes_of_different_sizes(seed):
    pytest.importorskip("faiss", reason="the calculator needs it")
    x, labels = batch(seed, classes=20, n=200)
    counts = np.bincount(labels)
    x, labels = x[counts[labels] > 1], labels[counts[labels] > 1]  # it averages queries without relatives differently
    calculator = calculators.AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"), k="max_bin_count"
    )
    theirs = calculator.get_accuracy(torch.tensor(x), torch.tensor(labels))
    names = ("recall@1", "r_precision", "map@r")
    ours = evaluate(x, labels, protocol(labels, names), names, "euclidean")
    for name, key in zip(names, ("precision_at_1", "r_precision", "mean_average_precision_at_r"), strict=True):
        assert ours[name].mean() == pytest.approx(theirs[key], abs=1e-6)
