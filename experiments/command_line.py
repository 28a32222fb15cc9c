"""The command line that all tables share: ``python -m experiments.NAME [--dataset=...] [--folds=5] ...``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.tables import DATASETS, Options
from fgis.errors import UserError


def parse(name: str, arguments: Sequence[str], trains: bool = True) -> Options:
    """The flags of a table; ``trains`` adds those of training.

    Raises:
      UserError: features of one data set were named for all of them.
    """
    parser, default = argparse.ArgumentParser(prog=f"python -m experiments.{name}"), Options()
    parser.add_argument("--dataset", choices=[*DATASETS, "all"], default="all")
    if trains:
        parser.add_argument("--seeds", type=int, default=default.seeds)
        parser.add_argument("--steps", type=int, help="of every row; those of the configuration without it")
    parser.add_argument("--folds", type=int, default=default.folds)
    parser.add_argument("--workdir", type=Path, default=default.workdir, help="where rows and tables live")
    parser.add_argument("--features.path", dest="features_path", default="", help="a feature file of the data set")
    found = vars(parser.parse_args(arguments))
    dataset = found.pop("dataset")
    if found["features_path"] and dataset == "all":
        raise UserError("--features.path: holds the features of one data set; name it with --dataset")
    return Options(tuple(DATASETS) if dataset == "all" else (dataset,), **found)


def guarded(name: str, work: Callable[[], int], interrupted: str) -> int:
    """What ``work`` returns; 2 after one line about a mistake of the user, 130 after an interruption."""
    try:
        return work()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {interrupted}", file=sys.stderr)
        return 130
