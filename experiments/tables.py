"""What a paper's table is: rows, each an experiment with overrides, and the configurations that they stand for."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fgis.errors import UserError
from fgis.experiment.config import read_settings
from fgis.experiment.config_file import load_config
from fgis.experiment.differences import to_plain
from fgis.features.shares import Share
from fgis.files import json_types


class Row(NamedTuple):
    """One experiment: what it changes in the data set's configuration."""

    name: str
    overrides: Mapping[str, Any] = {}  # dotted keys of the config -> values
    note: str = ""
    kind: str = "trained"  # or "untrained": the head as it begins; or "frozen": no head
    impossible: Mapping[str, str] = {}  # data set -> why this row cannot be there


class Published(NamedTuple):
    """What others printed: a row of its own, with a dash for every metric that it does not give on this data set."""

    name: str
    source: str
    protocol: str
    figures: Mapping[str, float] = {}  # of this data set's metrics, though perhaps under another protocol
    elsewhere: str = ""  # figures on other data sets, as text


class Table(NamedTuple):
    """One module of experiments: its rows, and what others published beside them."""

    name: str
    rows: Sequence[Row]
    reference: str  # the name of the row that the others are compared with: batch-hard, the default
    published: Mapping[str, Sequence[Published]] = {}  # data set -> rows of others
    base: Mapping[str, Any] = {}  # overrides that all rows share


class Dataset(NamedTuple):
    """A configuration, the folder of its images as README names it, and what its tables show."""

    file: str
    images: str
    metrics: tuple[str, ...]
    headline: str


DATASETS = {
    "ukbench": Dataset("configs/ukbench.py", "ukbench", ("ns_score", "recall@1", "map@r"), "ns_score"),
    "grocerystore": Dataset("configs/grocerystore.py", "grocerystore", ("recall@1", "map@r", "r_precision"), "map@r"),
}


class Options(NamedTuple):
    """The command line of a table."""

    datasets: Sequence[str] = tuple(DATASETS)
    seeds: int = 10
    folds: int = 5
    steps: int | None = None
    workdir: Path = Path("runs/tables")
    features_path: str = ""
    share: Share | None = None  # of the rows, where several processes or machines run them


FROZEN = Row("frozen features", note="no head, no training", kind="frozen")
UNTRAINED = Row("untrained head", note="its whitened start, fitted without labels", kind="untrained")


@cache
def _shipped(file: str) -> str:
    return json.dumps(to_plain(load_config(file)))


def base_config(dataset: str) -> dict[str, Any]:
    """The plain configuration of a data set, as it is shipped."""
    return json.loads(_shipped(DATASETS[dataset].file))


def row_config(table: Table, dataset: str, row: Row, options: Options) -> dict[str, Any]:
    """The plain configuration of one row; a key that does not exist is left for ``read_settings`` to name."""
    shared: dict[str, Any] = {
        "seeds": options.seeds, "folds": options.folds, "closed_set": False, "evaluation.published": (),
        "evaluation.metrics": DATASETS[dataset].metrics,
    }  # fmt: skip
    if options.steps is not None:
        shared["train.total_steps"] = options.steps
    if options.features_path:  # a file of the user's own: taken as it is, and described in the table by what it says
        shared |= {"features.path": options.features_path, "features.backbone": ""}
    config = base_config(dataset)
    for key, value in {**shared, **table.base, **row.overrides}.items():
        *groups, last = key.split(".")
        inner = config
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = json_types(value)
    return config


def reason_against(dataset: str, row: Row, config: Mapping[str, Any]) -> str:
    """Why a row cannot run: what the data set has not, what its configuration has wrong, or which file is missing."""
    if dataset in row.impossible:
        return row.impossible[dataset]
    try:
        path = read_settings(config).features.path
    except UserError as error:
        return f"failed: {error}"
    if not path or Path(path).expanduser().exists():
        return ""
    changed = {key: value for key, value in row.overrides.items() if key.startswith("features.")}
    flags = {"features.images": DATASETS[dataset].images, "features.path": path, **changed}
    given = " ".join(shlex.quote(f"--config.{key}={value}".replace(" ", "")) for key, value in flags.items())
    command = f"python -m fgis.main --config={DATASETS[dataset].file} --mode=extract {given}"
    return f"needs {path}; run `{command}` and then this command again"


def place_of(folder: Path, kind: str, overrides: Mapping[str, Any]) -> Path:
    """A folder for each experiment, the same in all tables: readable at the front, unique by its end."""
    settled = json.dumps([kind, overrides], sort_keys=True)
    words = [kind, *(f"{key}={value}" for key, value in sorted(overrides.items()))]
    readable = re.sub(r"[^\w.,=+-]+", "_", ",".join(words))[:60]
    return folder / f"{readable}-{hashlib.sha256(settled.encode()).hexdigest()[:8]}"
