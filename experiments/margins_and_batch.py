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

COMMENTARY = {
    "ukbench": (
        "What it shows: a plateau. Margins from .05 to .4, temperatures from .03 to 1 and batches from 8 to "
        "128 objects lie within .003 of each other, and no difference survives correction. A batch of 32 "
        "images trains as well as one of 512, at a sixth of the time."
    ),
    "grocerystore": (
        "What it shows: a wide plateau with a slope. A triplet margin of .1 to .4 and a soft margin at a "
        "temperature of .3 to 1 gain .004 to .006 MAP@R over the default, all significant over 81 classes and"
        " none of them large; pressing harder (.03) loses as much. Batches of 16 classes are as good as 32 or"
        " 64, of 8 they are worse (−.011); two images of a class are worse than four (−.009), which are as "
        "good as eight in half the time."
    ),
}

TABLE = Table("margins_and_batch", ROWS, "soft margin, T .1, 32 × 4", PUBLISHED, COMMENTARY)

if __name__ == "__main__":
    sys.exit(main(TABLE))
