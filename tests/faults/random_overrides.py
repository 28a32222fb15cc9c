"""Random overrides of right keys: refused in one line, or trained to finite figures, or told why not.

    python -m tests.faults.random_overrides [--count=10000] [--train-every=40] [--seed=0]

Every accepted override of which the number divides by `--train-every` is trained for four steps on small features. A
traceback, a figure that is not finite or a training without a triplet is a failure. The tests run a few.
"""

import argparse
import contextlib
import copy
import io
import json
import math
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from configs import ukbench
from fgis.distances import DISTANCES
from fgis.errors import UserError
from fgis.experiment import training
from fgis.experiment.config import CHOICES, read_settings
from fgis.experiment.differences import to_plain
from fgis.experiment.evaluations import evaluate_run
from fgis.experiment.run import Run
from fgis.learning.samplers import SAMPLERS
from tests.tiny import write_features

SMALL: dict[str, Any] = {
    "features.backbone": "", "seeds": 1, "folds": 2, "train.total_steps": 4, "train.record_every_steps": 2,
    "train.checkpoint_every_steps": 4, "head.residual.rank": 3, "head.mlp.widths": [6, 4], "head.mlp.dropouts": [0.2],
    "sampler.pk.classes": 6, "sampler.frequency.classes": 6, "sampler.uniform.batch": 24, "sampler.balanced.batch": 24,
    "sampler.deep_ranking.batch": 8, "sampler.published.triplets": 40, "evaluation.resamples": 5,
}  # fmt: skip
VALUES = (
    0, 1, 2, 5, 7, -1, 0.5, 0.05, 1.5, -0.5, 1e-6, 1e6, 1e30, math.nan, math.inf, True, False, None, (3,), (4, 2), (),
    "", "relu", "drop", "hardest", "easiest", "cosine", "../x", {},
)  # fmt: skip


def small_config(features: Path) -> dict[str, Any]:
    """The shipped configuration, for a training of a second."""
    config = to_plain(ukbench.get_config())
    for key, value in {**SMALL, "features.path": str(features)}.items():
        *groups, last = key.split(".")
        inner = config
        for group in groups:
            inner = inner[group]
        inner[last] = value
    return config


def override(config: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Other names for some of the choices, and other values for some of the options in force."""
    config = copy.deepcopy(config)
    for group, table in CHOICES.items():
        if chance.random() < 0.35:
            config[group]["name"] = chance.choice(list(table))
    if SAMPLERS[config["sampler"]["name"]].lists_triplets:
        config["miner"]["name"] = "given"
    if chance.random() < 0.3:
        config["distance"] = chance.choice(list(DISTANCES))
    if chance.random() < 0.25:
        config["memory"] = {"size": chance.choice([0, 5, 24, 64]), "warmup_steps": chance.choice([0, 2])}
    for _ in range(2):
        group = chance.choice([*CHOICES, "inputs", "evaluation"])
        options = config[group].get(config[group]["name"], {}) if group in CHOICES else config[group]
        if options:
            options[chance.choice(list(options))] = chance.choice(VALUES)
    return config


def one_line(error: UserError, ending: str) -> str:
    """``ending``, once it is sure that the refusal is one line."""
    assert "\n" not in str(error)
    return ending


def outcome(config: dict[str, Any], train: bool) -> str:
    """``refused``, ``accepted``, ``trained``, or ``told`` where the training says why it cannot go on."""
    try:
        settings = read_settings(config)
    except UserError as error:
        return one_line(error, "refused")
    if not train:
        return "accepted"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        run = Run.open(config, folder)
        try:
            training.claim(run, Path(folder))
            training.train_run(run, Path(folder))
        except UserError as error:
            return one_line(error, "told")
        found = evaluate_run(run).evaluations
        records = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    for evaluation in found.values():
        for metric, value in evaluation["trained"].items():
            assert math.isfinite(value["mean"]), (metric, config)
    assert sum(sum(record["triplets"]) for record in records) > 0, config
    assert settings.seeds == 1
    return "trained"


def main(arguments: list[str]) -> int:
    """Prints how many overrides ended in which way."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.random_overrides")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--train-every", type=int, default=40, help="of the accepted ones")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    chance, counts = random.Random(given.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(write_features(Path(folder, "features.h5")))
        accepted = 0
        for _ in range(given.count):
            one = override(config, chance)
            found = outcome(one, train=False)
            if found == "accepted":
                accepted += 1
                found = outcome(one, train=accepted % given.train_every == 0)
            counts[found] += 1
    print(dict(counts))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
