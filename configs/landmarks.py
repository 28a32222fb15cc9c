"""Landmarks without training: revisited Oxford, revisited Paris, INRIA Holidays.

    python -m fgis.main --config=configs/landmarks.py:roxford5k --mode=extract --config.features.images=roxford5k
    python -m experiments.landmarks --dataset=roxford5k

The folder roxford5k holds the images as ``jpg`` and beside it ``gnd_roxford5k.pkl`` (rparis6k likewise); holidays holds
the images. Not measured yet. For Oxford and Paris, the tables of Radenovic et al. (CVPR 2018) say what to expect of
networks that were not trained on landmarks.
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
    config.evaluation.update(metrics=("map", "recall@1"), published=(), transfer="")
    return config
