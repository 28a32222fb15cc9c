"""fgis: fine-grained image similarity in JAX; these names are the library, ``python -m fgis.main`` the command."""

from fgis.distances import pairwise_distances
from fgis.features.store import load_features
from fgis.learning.checkpoint import restore_params
from fgis.learning.heads import EmbeddingHead
from fgis.learning.losses import triplet_loss
from fgis.learning.miners import batch_hard, distance_weighted, semi_hard
from fgis.learning.samplers import sample_pk
from fgis.learning.step import make_train_step
from fgis.learning.train import train
from fgis.retrieval.evaluate import evaluate
from fgis.retrieval.search import search

__all__ = [
    "EmbeddingHead",
    "batch_hard",
    "distance_weighted",
    "evaluate",
    "load_features",
    "make_train_step",
    "pairwise_distances",
    "restore_params",
    "sample_pk",
    "search",
    "semi_hard",
    "train",
    "triplet_loss",
]
