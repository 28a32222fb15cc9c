"""Cross-batch memory: embeddings of earlier batches as further candidates (XBM), its size and its warm-up.

    python -m experiments.memory [--dataset=ukbench|grocerystore|all] [--seeds=10] [--folds=5]

Batches are 32 × 4 images. A fold of UKBench trains on 800 images: a memory of 1,024 holds each of them more than once.
NT-Xent takes all pairs of the batch and the memory, batch-hard the hardest of them.
"""

import sys

from experiments.grid import main
from experiments.tables import FROZEN, UNTRAINED, Published, Row, Table

NT_XENT = {"loss.name": "nt_xent", "miner.name": "batch_all"}
SIZES = (256, 512, 1024)
ROWS = [
    FROZEN,
    UNTRAINED,
    Row("batch-hard, no memory", note="the default"),
    *(Row(f"batch-hard, {size}", {"memory.size": size}) for size in SIZES),
    Row("batch-hard, 1024 from step 100", {"memory.size": 1024, "memory.warmup_steps": 100}),
    Row("NT-Xent, no memory", NT_XENT),
    *(Row(f"NT-Xent, {size}", {**NT_XENT, "memory.size": size}) for size in SIZES),
    Row("NT-Xent, 1024 from step 100", {**NT_XENT, "memory.size": 1024, "memory.warmup_steps": 100}),
]

BASELINES = (
    Published(
        "contrastive with XBM", "Wang 2020, as listed by Papers with Code", "fine-tuned network, unseen classes",
        elsewhere="R@1 SOP 80.6, In-Shop 91.3; 12 to 22.5 points above contrastive alone",
    ),
)  # fmt: skip
PUBLISHED = {"ukbench": BASELINES, "grocerystore": BASELINES}

TABLE = Table("memory", ROWS, "batch-hard, no memory", PUBLISHED)

if __name__ == "__main__":
    sys.exit(main(TABLE))
