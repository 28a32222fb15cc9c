"""A row of a table: its runs in one compiled program against the same runs one by one, compilation included.

``python -m experiments.benchmarks.runs [--seeds=3] [--steps=200] [--repeats=5]``, about three minutes on two cores. The
runs are those of ``configs/ukbench.py`` on its bundled features: seeds × 5 folds. Cases: against a program of its own
for each run (as one process per run has it), and against one program that is called run by run. Before it times them
it checks that both give the same parameters within 1e-5; plain gradients, since Adam turns rounding into a sign.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import timing
from fgis.experiment.config_file import load_config
from fgis.experiment.run import Run
from fgis.learning.train import Runs, TrainingData, train

TOLERANCE = 1e-5


def make_runs(how: str, seeds: int, steps: int, optimizer: str = "adam") -> Callable[[], list[Any]]:
    """Return the training of all runs ``together``, ``one by one``, or one by one and ``compiled`` for each."""
    config = load_config("ukbench")
    config.update_from_flattened_dict({
        "seeds": seeds, "closed_set": False, "train.total_steps": steps, "optimizer.name": optimizer,
    })  # fmt: skip
    opened = Run.open(config)
    experiment = opened.experiment
    data = TrainingData(opened.training_features(), opened.rows.labels)
    record_every = opened.settings.train.record_every_steps

    def train_some(runs: Runs) -> Any:
        return train(experiment.recipe, runs, data, steps=steps, record_every=record_every).params["params"]

    def run() -> list[Any]:
        jax.clear_caches()
        if how == "together":
            return [train_some(experiment.runs)]
        found = []
        for number in range(len(experiment.plans)):
            if how == "compiled":
                jax.clear_caches()
            found.append(train_some(jax.tree.map(lambda x, number=number: x[number : number + 1], experiment.runs)))
        return found

    return run


def check_equal(steps: int) -> None:
    """Raise SystemExit unless runs trained together end where they end one by one."""
    (together,) = make_runs("together", 1, steps, "sgd")()
    alone = make_runs("one by one", 1, steps, "sgd")()
    joined = jax.tree.map(lambda *x: np.concatenate(x), *alone)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (together, joined)), strict=True))
    if not apart <= TOLERANCE:
        raise SystemExit(f"runs trained together differ from the same runs one by one by {apart:.2g}")
    print(f"parameters of runs together and one by one differ by at most {apart:.2g}")


def main() -> None:
    """Check, measure both cases, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    check_equal(options.steps)
    names = {"together": "", "compiled": "one program per run", "one by one": "one program, run by run"}
    sides = [(make_runs, (how, options.seeds, options.steps)) for how in names]
    together, *others = timing.interleave(sides, options.repeats)
    rows = [
        timing.row(f"{5 * options.seeds}_runs_of_{options.steps}_steps", together, name, peer)
        for name, peer in zip(list(names.values())[1:], others, strict=True)
    ]
    timing.report("runs", rows)


if __name__ == "__main__":
    main()
