"""The embedding network: rank and start of the residual head, the published network and smaller ones.

    python -m experiments.heads [--dataset=ukbench|grocerystore|all] [--seeds=10] [--folds=5]

Miner, loss, sampler and optimiser stay as configured (batch-hard, soft margin, P × K = 32 × 4, Adam 3e-4, 200 steps). A
network that begins at random has farther to go than one that begins next to the features: two rows let it go faster.
"""

import sys

from experiments.grid import main
from experiments.tables import FROZEN, UNTRAINED, Published, Row, Table

MLP = {"head.name": "mlp"}
RELU = {**MLP, "head.mlp.final": "relu"}
AS_PUBLISHED = {**RELU, "inputs.power": 1.0, "inputs.normalize": False, "distance": "euclidean"}
FASTER = {"optimizer.adam.learning_rate": 1e-3}
SMALL = {**MLP, "head.mlp.widths": (512,), "head.mlp.dropouts": ()}
VGG16 = {
    "features.path": "features/ukbench_vgg16.h5",
    "features.backbone": "vgg16",
    "features.image_size": (299, 299),
    "features.pooling": "spatial",
}
UKBENCH_ALONE = {"grocerystore": "the published network was published on UKBench alone"}
ROWS = [
    FROZEN,
    UNTRAINED,
    Row("residual, rank 32", {"head.residual.rank": 32}),
    Row("residual, rank 64", {"head.residual.rank": 64}),
    Row("residual, rank 128", note="the default: whitened start of strength .1"),
    Row("residual, rank 256", {"head.residual.rank": 256}),
    Row("residual, rank 128, identity start", {"head.residual.whiten": 0.0}, note="begins at the frozen features"),
    Row("linear 512", SMALL, note="one layer from a random start, unit length"),
    Row("MLP 512-256", {**MLP, "head.mlp.widths": (512, 256), "head.mlp.dropouts": (0.5,)}, note="dropout .5"),
    Row("MLP 512-512-256", MLP, note="the published widths and dropouts; linear end of unit length"),
    Row("MLP 512-512-256, ReLU end", RELU, note="the published network, ranked and trained by cosine"),
    Row("published network", AS_PUBLISHED, note="the same on plain features, ranked and trained by Euclidean distance"),
    Row("published network, untrained", AS_PUBLISHED, note="its random start", kind="untrained"),
    Row("linear 512, Adam .001", {**SMALL, **FASTER}),
    Row("MLP 512-512-256, Adam .001", {**MLP, **FASTER}),
    Row(
        "frozen VGG16", {**VGG16, "inputs.power": 1.0, "inputs.normalize": False, "distance": "euclidean"},
        "the published features, averaged over space", "frozen", UKBENCH_ALONE,
    ),
    Row("published network on VGG16", {**AS_PUBLISHED, **VGG16}, "the published features", impossible=UKBENCH_ALONE),
]  # fmt: skip

ALL_IMAGES = "all 10,200 images"
ZOO = "Open Metric Learning, docs/readme/zoo.md"
BASELINES = (
    Published("frozen ResNet-50", ZOO, "unseen classes", elsewhere="R@1 CUB 45.5, Cars 24.7, SOP 51.5"),
    Published("frozen CLIP L/14", ZOO, "unseen classes", elsewhere="R@1 CUB 74.5, Cars 84.4, SOP 67.0"),
    Published(
        "frozen DINOv2 B/14 with registers", ZOO, "unseen classes", elsewhere="R@1 CUB 83.3, Cars 82.8, SOP 55.7"
    ),
)
PUBLISHED = {
    "ukbench": (
        Published("MLP on VGG16", "the blog post", "closed set, first 1,000 images", {"ns_score": 3.787}),
        Published("OverFeat", "Razavian 2014, table 7", ALL_IMAGES, {"ns_score": 3.04}),
        Published("OverFeat, spatial search, augmented", "Razavian 2014, table 7", ALL_IMAGES, {"ns_score": 3.64}),
        Published("ViT-B/16", "arXiv:2101.03771", ALL_IMAGES, {"ns_score": 3.759}),
        *BASELINES,
    ),
    "grocerystore": BASELINES,
}

TABLE = Table("heads", ROWS, "residual, rank 128", PUBLISHED)

if __name__ == "__main__":
    sys.exit(main(TABLE))
