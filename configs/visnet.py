"""VisNet (Shankar 2017) on frozen deep features, trained on GroceryStore: its paths, normalisation, gap and optimiser.

    python -m fgis.main --config=configs/visnet.py --mode=extract --config.features.images=grocerystore
    python -m fgis.main --config=configs/visnet.py

The deep path is EfficientNet-Lite0 in place of VGG16. The copies are maxima of cells, 56² and 28² of 224² pixels.
Triplets are drawn without labels, by the ranks of two basic scorers: the deep features, and a histogram of colours.
"""

import ml_collections

from configs import deep_ranking


def get_config() -> ml_collections.ConfigDict:
    """The recipe of ``configs/deep_ranking.py`` with what the public definition of VisNet sets."""
    config = deep_ranking.get_config()
    config.features.update(path="features/visnet.h5", pixels=(56, 28), shrink="max")
    config.head.visnet.pixels = (56, 28)
    config.head.name = "visnet"
    config.sampler.name = "scored_triplets"
    config.sampler.scored_triplets.batch = config.sampler.deep_ranking.batch = 20
    config.loss.triplet.margin = 0.0009
    config.optimizer.sgd = dict(learning_rate=0.01, momentum=0.9, weight_decay=0.0)
    return config
