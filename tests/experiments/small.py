"""A table of seconds, also as a command: ``python -m tests.experiments.small --dataset=ukbench ...``."""

import sys

from experiments.grid import main
from experiments.tables import FROZEN, UNTRAINED, Published, Row, Table

ROWS = [
    FROZEN,
    UNTRAINED,
    Row("batch-hard", note="the reference"),
    Row("semi_hard & 100 %", {"miner.name": "semi_hard"}),
    Row("elsewhere", {"features.path": "features/none.h5", "features.image_size": (299, 299)}),
    Row("opposites", {"loss.name": "triplet"}, impossible={"ukbench": "no coarse labels"}),
]
PUBLISHED = {"ukbench": (Published("others", "their paper", "all images", {"ns_score": 3.5}, "R@1 CUB 61.4"),)}
BASE = {
    "train.total_steps": 12,
    "train.record_every_steps": 2,
    "train.checkpoint_every_steps": 4,
    "head.residual.rank": 4,
    "sampler.pk.classes": 6,
}
TABLE = Table("small", ROWS, "batch-hard", PUBLISHED, BASE)

if __name__ == "__main__":
    sys.exit(main(TABLE, module="tests.experiments.small"))
