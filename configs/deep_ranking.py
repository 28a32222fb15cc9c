"""Deep Ranking (Wang 2014) on frozen deep features, trained on GroceryStore: two shallow paths see small copies.

    python -m fgis.main --config=configs/deep_ranking.py --mode=extract --config.features.images=grocerystore
    python -m fgis.main --config=configs/deep_ranking.py
    python -m fgis.main --config=configs/deep_ranking.py:single_scale

The deep path is EfficientNet-Lite0, whose features are kept; copies of 57² and 29² pixels lie beside them in the
feature file. Triplets are drawn by relevance: photos of the same fine class go before those of the same coarse class,
and these before others. Variants: ``single_scale`` has the deep path alone, ``uniform`` draws all images alike. One of
the six heads took 4 minutes on two CPU cores that other work was busy on. docs/systems.md has figures to expect.
"""

import ml_collections

from configs import grocerystore


def get_config(variant: str = "multi_scale") -> ml_collections.ConfigDict:
    """``multi_scale``, ``single_scale`` or ``uniform``."""
    config = grocerystore.get_config()
    config.features.update(path="features/deep_ranking.h5", backbone="efficientnet_lite0")
    config.features.pixels = config.head.deep_ranking.pixels = (57, 29)
    config.head.name = "deep_ranking"
    config.distance = "squared_euclidean"
    config.sampler.name = "deep_ranking"
    config.miner.name = "given"
    config.loss.name = "triplet"
    config.loss.triplet.margin = 0.3  # the paper names none; chosen on unseen classes of GroceryStore, like the rate
    config.optimizer.name = "sgd"
    config.optimizer.sgd = dict(learning_rate=0.05, momentum=0.9, weight_decay=1e-3)
    config.seeds, config.folds = 1, 5
    config.train.update(total_steps=400, record_every_steps=20, checkpoint_every_steps=200)
    if variant == "single_scale":
        config.features.pixels = config.head.deep_ranking.pixels = ()
    elif variant == "uniform":
        config.sampler.name = "uniform_triplets"
    elif variant != "multi_scale":
        raise ValueError(
            f"configs/deep_ranking.py:{variant}: no such variant; write multi_scale, single_scale, uniform"
        )
    return config
