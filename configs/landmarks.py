"""Landmarks without training: revisited Oxford (4,993 images), revisited Paris (6,322), INRIA Holidays (1,491).

    python -m fgis.main --config=configs/landmarks.py:roxford5k --mode=extract --config.features.images=roxford5k
    python -m experiments.landmarks --dataset=roxford5k

The folder roxford5k holds the images as ``jpg`` and beside it ``gnd_roxford5k.pkl`` (rparis6k likewise); holidays holds
the images. Two CPU cores describe about 30 images a second at 512 x 512. Nothing was measured on these data sets here,
since their images could not be had: for Oxford and Paris, the tables of Radenovic et al. (CVPR 2018) say what to
expect of networks that were not trained on landmarks.
"""

import ml_collections

from configs import ukbench

COLLECTIONS = {"roxford5k": "landmarks", "rparis6k": "landmarks", "holidays": "holidays"}


def get_config(variant: str = "roxford5k") -> ml_collections.ConfigDict:
    """``roxford5k``, ``rparis6k`` or ``holidays``: MobileNetV2 at 512 x 512, GeM pooling."""
    if variant not in COLLECTIONS:
        raise ValueError(f"configs/landmarks.py:{variant}: no such variant; write {', '.join(COLLECTIONS)}")
    config = ukbench.get_config()
    config.features.update(path=f"features/{variant}.h5", collection=COLLECTIONS[variant], image_size=(512, 512))
    config.features.pooling = "gem"
    config.inputs.power = 1.0
    config.evaluation.update(metrics=("map", "recall@1"), published=())
    return config
