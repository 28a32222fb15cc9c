"""The standard data sets of metric learning: heads are trained on one half of the classes and searched on the other.

    python -m fgis.main --config=configs/metric_learning.py:cub --mode=extract \\
        --config.features.images=CUB_200_2011@train
    python -m fgis.main --config=configs/metric_learning.py:cub --mode=extract \\
        --config.features.images=CUB_200_2011@test --config.features.path=features/cub.test.h5
    python -m fgis.main --config=configs/metric_learning.py:cub

The third command trains on the first file and reports ``transfer`` on the second. Folders are those of the archives:

    variant          folder                    archive              recall@1 of a frozen ResNet-50, as published
    cub              CUB_200_2011              1.2 GB (unverified)  .455
    cars196          cars196                   1.9 GB (unverified)  .247
    online_products  Stanford_Online_Products  3.1 GB               .515
    in_shop          that of the archive       not found            not found

Features are MobileNetV2's at 224 x 224. Not measured yet: the readers are tested on miniature copies of the layouts.
"""

import ml_collections

from configs import ukbench

TRIPLET, FROZEN = "triplet, semi-hard, fine-tuned ResNet-50, as published", "frozen ResNet-50, as published"
PUBLISHED = {"cub": (0.455, 0.614), "cars196": (0.247, 0.752), "online_products": (0.515, 0.740), "in_shop": ()}


def get_config(variant: str = "cub") -> ml_collections.ConfigDict:
    """``cub``, ``cars196``, ``online_products`` or ``in_shop``."""
    if variant not in PUBLISHED:
        raise ValueError(f"configs/metric_learning.py:{variant}: no such variant; write {', '.join(PUBLISHED)}")
    config = ukbench.get_config()
    config.folds = 0
    config.features.update(path=f"features/{variant}.train.h5", collection=variant, image_size=(224, 224))
    config.train.total_steps = 1000
    published = zip((FROZEN, TRIPLET), PUBLISHED[variant], strict=False)
    config.evaluation.update(
        metrics=("recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r"),
        transfer=f"features/{variant}.test.h5",
        published=tuple((name, "transfer", "recall@1", value) for name, value in published),
    )
    return config
