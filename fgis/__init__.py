"""fgis: fine-grained image similarity in JAX; these names are the library, ``python -m fgis.main`` the command.

Names are imported when they are first used, so that ``import fgis`` takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgis import distances as distances
    from fgis.base import BatchInfo as BatchInfo
    from fgis.base import FeatureSet as FeatureSet
    from fgis.base import Triplets as Triplets
    from fgis.distances import pairwise_distances as pairwise_distances
    from fgis.experiment.run import Run as Run
    from fgis.features.store import load_features as load_features
    from fgis.features.store import write_features as write_features
    from fgis.learning import heads as heads
    from fgis.learning import losses as losses
    from fgis.learning import miners as miners
    from fgis.learning import objectives as objectives
    from fgis.learning import pair_losses as pair_losses
    from fgis.learning import samplers as samplers
    from fgis.learning.checkpoint import restore_params as restore_params
    from fgis.learning.heads import EmbeddingHead as EmbeddingHead
    from fgis.learning.heads import prepare as prepare
    from fgis.learning.losses import triplet_loss as triplet_loss
    from fgis.learning.miners import batch_hard as batch_hard
    from fgis.learning.miners import distance_weighted as distance_weighted
    from fgis.learning.miners import semi_hard as semi_hard
    from fgis.learning.recipe import Strategy as Strategy
    from fgis.learning.recipe import make_recipe as make_recipe
    from fgis.learning.recipe import make_runs as make_runs
    from fgis.learning.samplers import sample_pk as sample_pk
    from fgis.learning.step import make_train_step as make_train_step
    from fgis.learning.train import TrainingData as TrainingData
    from fgis.learning.train import train as train
    from fgis.retrieval import metrics as metrics
    from fgis.retrieval import rerank as rerank
    from fgis.retrieval.evaluate import evaluate as evaluate
    from fgis.retrieval.evaluate import protocol as protocol
    from fgis.retrieval.folds import object_folds as object_folds
    from fgis.retrieval.folds import photo_folds as photo_folds
    from fgis.retrieval.search import prepare_gallery as prepare_gallery
    from fgis.retrieval.search import search as search

__version__ = "0.2.0"

# Public name -> (module, name in it; "" for the module itself).
PUBLIC = {
    "BatchInfo": ("fgis.base", "BatchInfo"),
    "EmbeddingHead": ("fgis.learning.heads", "EmbeddingHead"),
    "FeatureSet": ("fgis.base", "FeatureSet"),
    "Run": ("fgis.experiment.run", "Run"),
    "Strategy": ("fgis.learning.recipe", "Strategy"),
    "TrainingData": ("fgis.learning.train", "TrainingData"),
    "Triplets": ("fgis.base", "Triplets"),
    "batch_hard": ("fgis.learning.miners", "batch_hard"),
    "distance_weighted": ("fgis.learning.miners", "distance_weighted"),
    "distances": ("fgis.distances", ""),
    "evaluate": ("fgis.retrieval.evaluate", "evaluate"),
    "heads": ("fgis.learning.heads", ""),
    "load_features": ("fgis.features.store", "load_features"),
    "losses": ("fgis.learning.losses", ""),
    "make_recipe": ("fgis.learning.recipe", "make_recipe"),
    "make_runs": ("fgis.learning.recipe", "make_runs"),
    "make_train_step": ("fgis.learning.step", "make_train_step"),
    "metrics": ("fgis.retrieval.metrics", ""),
    "miners": ("fgis.learning.miners", ""),
    "object_folds": ("fgis.retrieval.folds", "object_folds"),
    "objectives": ("fgis.learning.objectives", ""),
    "pair_losses": ("fgis.learning.pair_losses", ""),
    "pairwise_distances": ("fgis.distances", "pairwise_distances"),
    "photo_folds": ("fgis.retrieval.folds", "photo_folds"),
    "prepare": ("fgis.learning.heads", "prepare"),
    "prepare_gallery": ("fgis.retrieval.search", "prepare_gallery"),
    "protocol": ("fgis.retrieval.evaluate", "protocol"),
    "rerank": ("fgis.retrieval.rerank", ""),
    "restore_params": ("fgis.learning.checkpoint", "restore_params"),
    "sample_pk": ("fgis.learning.samplers", "sample_pk"),
    "samplers": ("fgis.learning.samplers", ""),
    "search": ("fgis.retrieval.search", "search"),
    "semi_hard": ("fgis.learning.miners", "semi_hard"),
    "train": ("fgis.learning.train", "train"),
    "triplet_loss": ("fgis.learning.losses", "triplet_loss"),
    "write_features": ("fgis.features.store", "write_features"),
}
__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'fgis' has no attribute {name!r}")
    module, attribute = PUBLIC[name]
    found = importlib.import_module(module)
    value = getattr(found, attribute) if attribute else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
