"""The command line that all tables share: ``python -m experiments.NAME [--dataset=...] [--folds=5] ...``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.tables import DATASETS, Options
from fgis.errors import UserError, naming
from fgis.features.shares import Share, parse_shard

ROWS_HELP = "i/n: run the i-th of n shares of the rows, and write no table; the command without it does"


def parse(name: str, arguments: Sequence[str], trains: bool = True) -> Options:
    """The flags of a table; ``trains`` adds those of training.

    Raises:
      UserError: features of one data set were named for all of them.
    """
    parser, default = argparse.ArgumentParser(prog=f"python -m experiments.{name}"), Options()
    parser.add_argument("--dataset", choices=[*DATASETS, "all"], default="all")
    if trains:
        parser.add_argument("--seeds", type=int, default=default.seeds)
        parser.add_argument("--rows", default="", help=ROWS_HELP)
        parser.add_argument("--steps", type=int, help="of every row; those of the configuration without it")
    parser.add_argument("--folds", type=int, default=default.folds)
    parser.add_argument("--workdir", type=Path, default=default.workdir, help="where rows and tables live")
    parser.add_argument("--features.path", dest="features_path", default="", help="a feature file of the data set")
    found = vars(parser.parse_args(arguments))
    dataset, share = found.pop("dataset"), read_share(found.pop("rows", ""))
    if found["features_path"] and dataset == "all":
        raise UserError("--features.path: holds the features of one data set; name it with --dataset")
    return Options(tuple(DATASETS) if dataset == "all" else (dataset,), share=share, **found)


def read_share(text: str) -> Share | None:
    """The share of ``--rows``; None without it.

    Raises:
      UserError: it is none.
    """
    with naming("--rows: "):
        return parse_shard(text)


def is_own(index: int, share: Share | None) -> bool:
    """Whether the row at ``index`` is one of a share: rows are dealt out in turn.

    >>> [is_own(index, Share(2, 3)) for index in range(5)]
    [False, True, False, False, True]
    """
    return share is None or index % share.of == share.number - 1


def say_share(name: str, share: Share) -> None:
    """Says what is left to do after one share of the rows of a table."""
    print(
        f"{name}: rows {share.number}/{share.of} are there; the same command without --rows runs what is missing and "
        "writes the table",
        flush=True,
    )


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
