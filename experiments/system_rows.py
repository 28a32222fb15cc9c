"""The rows and columns of the table of systems: their configurations, and the commands that make their features."""

import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from fgis.experiment.config_file import load_config
from fgis.experiment.differences import to_plain
from fgis.features.backbones import BACKBONES


class Column(NamedTuple):
    """A figure of the table."""

    name: str
    dataset: str
    metric: str
    reranked: bool = False


class System(NamedTuple):
    """A row: what describes the images, and what embeds these features."""

    name: str
    features: str  # the name in feature files; several with + between them, which are joined
    backbone: str  # "": of joined features, which say it themselves
    image_size: tuple[int, int]
    overrides: Mapping[str, Any] = {}  # keys of configs/ukbench.py
    variant: str = ""  # of configs/ukbench.py, whose head is trained; "": features as they are
    weights: str = ""  # the file of a vocabulary, beside the features
    verified: bool = False  # whether the first answers are ordered again by spatial verification


COLUMNS = (
    Column("closed set, N-S", "ukbench", "ns_score"),
    Column("closed set, N-S, re-ranked", "ukbench", "ns_score", True),
    Column("unseen objects, N-S", "ukbench", "ns_score"),
    Column("further objects, N-S", "ukbench_transfer", "ns_score"),
    Column("further objects, N-S, re-ranked", "ukbench_transfer", "ns_score", True),
    Column("GroceryStore, recall@1", "grocerystore", "recall@1"),
    Column("GroceryStore, MAP@R", "grocerystore", "map@r"),
    Column("GroceryStore, MAP@R, re-ranked", "grocerystore", "map@r", True),
    Column("triplets, precision", "deep_ranking", "similarity_precision"),
)
SETS: dict[str, Mapping[str, str]] = {
    "ukbench": {"collection": "ukbench", "images": "ukbench"},
    "ukbench_transfer": {"collection": "ukbench", "images": "ukbench_transfer"},
    "grocerystore": {"collection": "grocerystore", "images": "grocerystore"},
    "deep_ranking": {"collection": "csv", "images": "deep_ranking/images.csv"},
}
BUNDLED = {
    "ukbench.mobilenet_v2_large": "bundled:ukbench",
    "ukbench_transfer.mobilenet_v2_large": "bundled:ukbench_transfer",
}
LARGE = (336, 448)
HEADS = {"the published network": "published", "our head": "rigorous"}
INTERSECTION = {"inputs.power": 1.0, "inputs.normalize": False, "distance": "manhattan"}  # 2 (1 − Σ min) of histograms
SIGNED = {"inputs.power": 1.0}
VIEW = (480, 640)  # at which key points are found
CLASSICAL = (
    System("colour histogram", "colour", "colour_histogram", (224, 224), INTERSECTION),
    System("HOG", "hog", "hog", (224, 224), SIGNED),
    System(
        "bag of words, tf, one word each", "words_hard", "bag_of_words_hard", VIEW, INTERSECTION, weights="words.npz"
    ),
    System("bag of words, tf", "words", "bag_of_words", VIEW, INTERSECTION, weights="words.npz"),
    System("bag of words, spatially verified", "words", "bag_of_words", VIEW, INTERSECTION, "", "words.npz", True),
    System("bag of words, tf-idf", "words_tf_idf", "bag_of_words_tf_idf", VIEW, INTERSECTION, weights="words.npz"),
    System("VLAD", "vlad", "vlad", VIEW, SIGNED, weights="vlad.npz"),
    System("Fisher vectors", "fisher", "fisher", VIEW, SIGNED, weights="fisher.npz"),
)
NETWORKS = (
    *(System(name, name, name, one.image_size) for name, one in BACKBONES.items() if not one.on_host),
    System("mobilenet_v2, 336 × 448", "mobilenet_v2_large", "mobilenet_v2", LARGE),
    System("efficientnet_lite0, 336 × 448", "efficientnet_lite0_large", "efficientnet_lite0", LARGE),
    System("efficientnet_lite2, 336 × 448", "efficientnet_lite2_large", "efficientnet_lite2", LARGE),
)
JOINED = (  # of MobileNetV2 and others, all at 336 × 448
    System("mobilenet_v2 + lite0, 336 × 448", "mobilenet_v2_large+efficientnet_lite0_large", "", LARGE),
    System("mobilenet_v2 + lite2, 336 × 448", "mobilenet_v2_large+efficientnet_lite2_large", "", LARGE),
)
HEADED = tuple(
    System(f"{words} on {one.name}", one.features, one.backbone, one.image_size, variant=variant)
    for words, variant in HEADS.items()
    for one in NETWORKS
    if one.features in ("mobilenet_v2_large", "efficientnet_lite0")
) + tuple(one._replace(name=f"our head on {one.name}", variant="rigorous") for one in JOINED)
VERIFIED = (HEADED[-1]._replace(name=f"{HEADED[-1].name}, spatially verified", verified=True),)
SYSTEMS = (*CLASSICAL, *NETWORKS, *JOINED, *HEADED, *VERIFIED)

# What others printed, none of it measured under this protocol: (system, column, figure, source).
PUBLISHED = (
    ("VGG16, published network", "closed set, N-S", 3.787, "the published experiment"),
    ("bag of visual words, tf-idf", "closed set, N-S", 3.358, "first 1,000 images, histogram intersection"),
    ("bag of visual words, tf", "closed set, N-S", 3.602, "first 1,000 images, histogram intersection"),
    ("HOG", "triplets, precision", 0.684, "Wang 2014, all its triplets"),
    ("Fisher vectors", "triplets, precision", 0.672, "Wang 2014, all its triplets"),
    ("ConvNet", "triplets, precision", 0.828, "Wang 2014, all its triplets"),
    ("single-scale ranking", "triplets, precision", 0.846, "Wang 2014, all its triplets"),
    ("Deep Ranking", "triplets, precision", 0.857, "Wang 2014, all its triplets"),
)


def config_of(system: System, dataset: str, path: str) -> dict[str, Any]:
    """The plain configuration of a system on the features of a set."""
    config = load_config(f"ukbench:{system.variant or 'rigorous'}")
    with config.unlocked():
        config.update_from_flattened_dict({"evaluation.transfer": "", "evaluation.published": (), **system.overrides})
        config.features.update(path=path, collection=SETS[dataset]["collection"], backbone=system.backbone)
        config.features.update(image_size=system.image_size, weights=system.weights or "imagenet")
    return to_plain(config)


def paths_of(system: System, dataset: str, folder: str) -> list[str]:
    """The feature files of a system on a set, each of which may be bundled."""
    parts = (f"{dataset}.{name}" for name in system.features.split("+"))
    return [BUNDLED.get(part, f"{folder}/{part}.h5") for part in parts]


def command_of(system: System, dataset: str, folder: str) -> str:
    """The command that makes the features of a system; of joined features, of all that are not bundled."""
    if "+" in system.features:
        named = {one.features: one for one in NETWORKS}
        parts = [named[name] for name in system.features.split("+") if f"{dataset}.{name}" not in BUNDLED]
        return " && ".join(command_of(part, dataset, folder) for part in parts)
    size = "({},{})".format(*system.image_size)
    keys = {
        **SETS[dataset],
        "backbone": system.backbone,
        "image_size": size,
        "path": f"{folder}/{dataset}.{system.features}.h5",
    }
    keys |= {"weights": f"{folder}/{system.weights}"} if system.weights else {}
    flags = [f"--config.features.{key}={value}" for key, value in keys.items()]
    return shlex.join(["python", "-m", "fgis.main", "--config=configs/ukbench.py", "--mode=extract", *flags])
