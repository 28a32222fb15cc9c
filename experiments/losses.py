"""What is minimised: losses over triplets, over pairs and over proxies.

    python -m experiments.losses [--dataset=ukbench|grocerystore|all] [--seeds=10] [--folds=5]

Head, sampler (P × K = 32 × 4), optimiser and the number of steps stay as configured. Losses over triplets take those of
their miner; losses over pairs take all pairs of the batch (miner ``batch_all``); proxies need no pairs.
"""

import sys

from experiments.grid import main
from experiments.tables import FROZEN, UNTRAINED, Published, Row, Table

NO_OPPOSITES = {"ukbench": "UKBench has no coarse labels, so no image is another one's opposite"}
ALL_PAIRS = {"miner.name": "batch_all"}
ROWS = [
    FROZEN,
    UNTRAINED,
    Row("soft margin", note="the default: batch-hard, temperature .1"),
    Row("triplet, margin .1", {"loss.name": "triplet", "loss.triplet.margin": 0.1}, note="batch-hard"),
    Row("triplet, margin .2", {"loss.name": "triplet", "loss.triplet.margin": 0.2}, note="batch-hard"),
    Row(
        "triplet, all semi-hard",
        {"loss.name": "triplet", "miner.name": "all_semi_hard", "reduction.name": "mean_active"},
        note="margin .2, mean over active triplets",
    ),
    Row(
        "margin, distance-weighted",
        {
            "loss.name": "margin",
            "miner.name": "distance_weighted",
            "distance": "unit_euclidean",
            "reduction.name": "mean_active",
        },
        note="Wu 2017 with a learned β",
    ),
    Row("contrastive", {"loss.name": "contrastive", **ALL_PAIRS}, note="each kind of pair averaged over all its pairs"),
    Row(
        "contrastive, active pairs",
        {"loss.name": "contrastive", **ALL_PAIRS, "reduction.name": "mean_active"},
        note="each kind of pair averaged over those that still learn",
    ),
    Row("N-pair / NT-Xent", {"loss.name": "nt_xent", **ALL_PAIRS}),
    Row("supervised contrastive", {"loss.name": "sup_con", **ALL_PAIRS}),
    Row("multi-similarity", {"loss.name": "multi_similarity", **ALL_PAIRS}),
    Row("Smooth-AP", {"loss.name": "smooth_ap", **ALL_PAIRS}),
    Row("proxy-anchor", {"loss.name": "proxy_anchor", **ALL_PAIRS}, note="one learned proxy per training class"),
    Row(
        "selectively contrastive",
        {"loss.name": "selectively_contrastive", "miner.name": "easy_semi_hard"},
        note="easy positive, semi-hard negative",
    ),
    Row("selectively contrastive, batch-hard", {"loss.name": "selectively_contrastive"}),
    Row(
        "opposites",
        {"loss.name": "opposites", **ALL_PAIRS, "reduction.name": "mean_active"},
        note="the blog's proposal: images of another coarse class lie farther than other negatives; active pairs",
        impossible=NO_OPPOSITES,
    ),
    Row(
        "published: hinge of the batch mean",
        {"loss.name": "difference", "reduction.name": "hinge_of_mean"},
        note="the published loss on batch-hard triplets, margin 1",
    ),
]

ROTH = "Roth and Brattoli, Deep-Metric-Learning-Baselines"
DISJOINT = "fine-tuned {}, unseen classes"
R50 = DISJOINT.format("ResNet-50")
BASELINES = (
    Published("triplet, semi-hard", ROTH, R50, elsewhere="R@1 CUB 61.4, Cars 75.2, SOP 74.0"),
    Published("margin, distance-weighted", ROTH, R50, elsewhere="R@1 CUB 63.4, Cars 79.3, SOP 76.1"),
    Published("N-pair", ROTH, R50, elsewhere="R@1 CUB 59.0, Cars 69.5, SOP 70.9"),
    Published(
        "multi-similarity", "Wang 2019", DISJOINT.format("BN-Inception"), elsewhere="R@1 CUB 65.7, Cars 84.1, SOP 78.2"
    ),
    Published("proxy-anchor", "Kim 2020, authors' repository", R50, elsewhere="R@1 CUB 69.9, Cars 87.7"),
    Published(
        "recall@k surrogate",
        "Patel 2022, as listed by Papers with Code",
        DISJOINT.format("ViT-B/16"),
        elsewhere="R@1 Cars 89.5, SOP 88.0",
    ),
    Published("selectively contrastive", "Xuan 2020", R50, elsewhere="R@1 CUB 57.71, Cars 73.35, SOP 81.90"),
)
PUBLISHED = {
    "ukbench": (
        Published(
            "hinge of the batch mean", "the blog post", "closed set, VGG16, first 1,000 images", {"ns_score": 3.787}
        ),
        *BASELINES,
    ),
    "grocerystore": BASELINES,
}

TABLE = Table("losses", ROWS, "soft margin", PUBLISHED)

if __name__ == "__main__":
    sys.exit(main(TABLE))
