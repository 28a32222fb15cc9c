"""The distance that is trained on and ranked by, and the same distance on the features without a head.

    python -m experiments.distances [--dataset=ukbench|grocerystore|all] [--seeds=10] [--folds=5]

The soft margin divides by its temperature, .1, and distances differ in scale: squared Euclidean is twice the cosine
distance of unit vectors, and Manhattan sums 1,280 differences. These two are trained at a temperature of their own.
Manhattan and χ² have no matrix product to rest on: their rows take several minutes each.
"""

import sys

from experiments.grid import main
from experiments.tables import FROZEN, UNTRAINED, Published, Row, Table

CHI2 = "of histograms: negative entries count as 0; frozen features have none, the head's centred embeddings have"
NAMES = {
    "euclidean": "Euclidean",
    "squared_euclidean": "squared Euclidean",
    "unit_euclidean": "Euclidean at unit length",
    "manhattan": "Manhattan",
    "chi2": "χ²",
}
TEMPERATURES = {"squared_euclidean": 0.2, "manhattan": 2.0}
NOTES = {
    "squared_euclidean": "temperature .2",
    "unit_euclidean": "ranks as cosine does, and differs in its gradients",
    "manhattan": "temperature 2",
    "chi2": CHI2,
}
ROWS = [
    FROZEN,
    *(
        Row(f"frozen, {name}", {"distance": distance}, kind="frozen")
        for distance, name in NAMES.items()
        if distance != "unit_euclidean"
    ),
    UNTRAINED,
    Row("cosine", note="the default"),
    *(
        Row(
            name,
            {"distance": distance, "loss.soft_margin.temperature": TEMPERATURES.get(distance, 0.1)},
            NOTES.get(distance, ""),
        )
        for distance, name in NAMES.items()
    ),
]

BAG_OF_WORDS = "github.com/willard-yuan/image-retrieval, bag-of-words-dev-version"
PUBLISHED = {
    "ukbench": (
        Published("VGG16, Euclidean", "the blog post", "closed set, first 1,000 images", {"ns_score": 3.787}),
        Published(
            "bag of words, histogram intersection, tf",
            BAG_OF_WORDS,
            "first 1,000 images, no training",
            {"ns_score": 3.602},
        ),
        Published(
            "bag of words, histogram intersection, tf-idf",
            BAG_OF_WORDS,
            "first 1,000 images, no training",
            {"ns_score": 3.358},
        ),
    ),
}

TABLE = Table("distances", ROWS, "cosine", PUBLISHED)

if __name__ == "__main__":
    sys.exit(main(TABLE))
