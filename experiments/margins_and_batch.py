"""How hard the loss presses, and what a batch is made of.

    python -m experiments.margins_and_batch [--dataset=ukbench|grocerystore|all] [--seeds=10] [--folds=5]

All rows mine batch-hard for 200 steps: a larger batch also means more images seen, and its row takes longer.
"""

import sys

from experiments.grid import main
from experiments.tables import FROZEN, UNTRAINED, Published, Row, Table

FOUR_VIEWS = {"ukbench": "four images per object: K = 8 would show each of them twice"}
FEW_CLASSES = {"grocerystore": "81 classes, 65 of them in training: P = 128 would be half padding"}
ROWS = [
    FROZEN,
    UNTRAINED,
    *(
        Row(f"triplet, margin {margin:g}", {"loss.name": "triplet", "loss.triplet.margin": margin})
        for margin in (0.05, 0.1, 0.2, 0.4)
    ),
    Row("soft margin, T .03", {"loss.soft_margin.temperature": 0.03}),
    Row("soft margin, T .1, 32 × 4", note="the default"),
    Row("soft margin, T .3", {"loss.soft_margin.temperature": 0.3}),
    Row("soft margin, T 1", {"loss.soft_margin.temperature": 1.0}),
    *(Row(f"P × K = {classes} × 4", {"sampler.pk.classes": classes}) for classes in (8, 16, 64)),
    Row("P × K = 128 × 4", {"sampler.pk.classes": 128}, impossible=FEW_CLASSES),
    Row("P × K = 32 × 2", {"sampler.pk.per_class": 2}),
    Row("P × K = 32 × 8", {"sampler.pk.per_class": 8}, impossible=FOUR_VIEWS),
]

PUBLISHED = {
    "ukbench": (
        Published(
            "margin 1 on the batch mean, 32 triplets", "the blog post", "closed set, VGG16, first 1,000 images",
            {"ns_score": 3.787},
        ),
    ),
}  # fmt: skip

TABLE = Table("margins_and_batch", ROWS, "soft margin, T .1, 32 × 4", PUBLISHED)

if __name__ == "__main__":
    sys.exit(main(TABLE))
