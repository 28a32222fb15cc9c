"""The rows of the table of Deep Ranking and VisNet: which networks and triplets, and what others printed."""

from collections.abc import Mapping
from typing import Any, NamedTuple

FROZEN = "frozen features"


class Row(NamedTuple):
    """One network and its training."""

    name: str
    overrides: Mapping[str, Any] = {}  # of the configuration of its network
    network: str = "deep_ranking"  # or "visnet": the configuration, and what its feature files are called
    kind: str = "trained"  # or "untrained", or "frozen"
    graded: bool = False  # whether it needs coarse labels

    @property
    def light(self) -> bool:
        """Whether no shallow path is trained: then more seeds cost little."""
        return self.overrides.get("features.pixels") == ()


def _pixels(*sides: int) -> dict[str, Any]:
    return {"features.pixels": sides, "head.deep_ranking.pixels": sides}


WHITENED = {"head.deep_ranking.whiten": 0.1}
UNIFORM = {"sampler.name": "uniform_triplets"}
BY_RELEVANCE = {"sampler.name": "deep_ranking"}
OURS = {
    "features.pixels": (), "head.name": "residual", "distance": "cosine", "sampler.name": "pk",
    "miner.name": "batch_hard", "loss.name": "soft_margin", "optimizer.name": "adam",
}  # fmt: skip
ROWS = (
    Row(FROZEN, _pixels(), kind="frozen"),
    Row("single-scale, untrained", _pixels(), kind="untrained"),
    Row("multi-scale, untrained", kind="untrained"),
    Row("single-scale", _pixels()),
    Row("deep path and 57² pixels", _pixels(57)),
    Row("deep path and 29² pixels", _pixels(29)),
    Row("multi-scale", {}),
    Row("single-scale, uniform triplets", {**_pixels(), **UNIFORM}),
    Row("multi-scale, uniform triplets", UNIFORM),
    *(
        Row(
            f"single-scale, {share:.0%} out of class", {**_pixels(), "sampler.deep_ranking.out_of_class": share},
            graded=True,
        )
        for share in (0.0, 0.5, 1.0)
    ),
    Row("single-scale from whitening, untrained", {**_pixels(), **WHITENED}, kind="untrained"),
    Row("single-scale from whitening", {**_pixels(), **WHITENED}),
    Row("multi-scale from whitening", WHITENED),
    Row("single-scale, 4,096 dimensions", {**_pixels(), "head.deep_ranking.width": 4096}),
    Row("multi-scale, 4,096 dimensions as published", {"head.deep_ranking.width": 4096}),
    Row("VisNet, untrained", BY_RELEVANCE, "visnet", "untrained"),
    Row("VisNet", BY_RELEVANCE, "visnet"),
    Row("VisNet, triplets by scorers", {"sampler.name": "scored_triplets"}, "visnet"),
    Row("default head of fgis, untrained", OURS, kind="untrained"),
    Row("default head of fgis", OURS),
)  # fmt: skip

# What is compared seed by seed, on unseen classes.
PAIRS = (
    ("multi-scale", "single-scale"),
    ("multi-scale from whitening", "single-scale from whitening"),
    ("multi-scale, 4,096 dimensions as published", "single-scale, 4,096 dimensions"),
    ("single-scale", "single-scale, uniform triplets"),
    ("multi-scale", "multi-scale, uniform triplets"),
    ("VisNet, triplets by scorers", "VisNet"),
)

# Wang 2014, on all of its triplets: precision, and score@30 in galleries of 1,000 photos, which are not public.
PUBLISHED = (
    ("ConvNet", 0.828, "5772"),
    ("single-scale ranking", 0.846, "6245"),
    ("OASIS on single-scale ranking", 0.825, "6263"),
    ("single-scale ranking and visual features", 0.841, "6765"),
    ("Deep Ranking", 0.857, "7004"),
    ("Deep Ranking, all negatives in class → all out of class, read off a plot", float("nan"), "7155 → 6620"),
)
NOT_FOUND = "VisNet's tables were not found."
