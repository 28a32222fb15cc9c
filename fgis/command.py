"""What the command line may say: the flags, and which function each mode is."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from fgis import modes, picture_search, reporting
from fgis.errors import UserError
from fgis.retrieval.rerank import RERANKERS

USAGE = "python -m fgis.main --config=configs/ukbench.py [--workdir=DIR] [--mode=MODE] [--config.KEY=VALUE ...]"
DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    bool: flags.DEFINE_boolean,
}


class Arguments(NamedTuple):
    """The parsed command line."""

    config: Any
    workdir: Path | None  # None: a search among the features as they are
    mode: str
    step: int | None
    options: Any = None  # what the mode takes besides, see OPTIONS


def parse(arguments: Sequence[str]) -> Arguments | None:
    """The flags, or None after ``--help``; what is wrong with them is one line instead of a traceback."""
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file(
        "config", None, "The experiment: a file such as configs/ukbench.py[:variant]; --config.KEY=VALUE changes it.",
        flag_values=values, sys_argv=["fgis.main", *arguments],
    )  # fmt: skip
    workdir = flags.DEFINE_string("workdir", None, "Where the run lives; runs/NAME without it.", flag_values=values)
    mode = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.", flag_values=values)
    step = flags.DEFINE_integer("step", None, "The checkpoint to restore; the latest without it.", flag_values=values)
    for options in OPTIONS.values():
        for name, default in options._field_defaults.items():
            DEFINE[type(default)](name, default, HELP[name], flag_values=values)
    if {"--help", "-h", "--helpfull"} & set(arguments):
        print(f"{USAGE}\n\n{values.main_module_help() or values.get_help()}")
        return None
    try:
        rest = values(["fgis.main", *arguments])[1:]
        if config.value is None:
            raise UserError("--config: missing; name an experiment, such as --config=configs/ukbench.py")
        list(config.value)  # a file that could not be loaded reports it now
    except AttributeError as error:  # an override of a key that does not exist
        raise UserError(_no_such_key(str(error), arguments)) from error
    except (flags.Error, OSError, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{lines[0].rstrip(':')}: {lines[-1]}" if len(lines) > 1 else lines[0]) from error
    if rest:
        raise UserError(f"{rest[0]}: not a flag; every argument has the form --name=value")
    for other in OPTIONS:
        stray = [name for name in OPTIONS[other]._fields if values[name].present and mode.value != other]
        if stray:
            raise UserError(f"--{stray[0]}: --mode={mode.value} does not read it, --mode={other} does; leave one out")
    options = OPTIONS.get(mode.value)
    given = options._make(values[name].value for name in options._fields) if options else None
    place = workdir.value or (None if mode.value == "search" else _default_workdir(values))
    return Arguments(config.value, Path(place) if place else None, mode.value, step.value, given)


def _no_such_key(message: str, arguments: Sequence[str]) -> str:
    word = re.search(r"'([^'\\]+)", message)
    close = re.search(r'Did you mean "([^"]+)"', message)
    override = rf"--config\.(.*\.)?{re.escape(word[1])}(=|\.|$)" if word else "--config"
    found = next((argument for argument in arguments if re.match(override, argument)), "--config")
    hint = f"did you mean {close[1]!r}?" if close else "nothing near it; the config file lists its keys"
    return f"{found}: no such key in the config; {hint}"


def _default_workdir(values: flags.FlagValues) -> str:
    """``runs/ukbench``, ``runs/ukbench-published``, ``runs/ukbench,miner.name=semi_hard``: one place per experiment."""
    file, _, variant = config_flags.get_config_filename(values["config"]).partition(":")
    overrides = config_flags.get_override_values(values["config"])
    name = Path(file).stem + (f"-{variant}" if variant else "")
    changed = "".join(f",{key}={value}" for key, value in sorted(overrides.items()))
    return "runs/" + re.sub(r"[^\w.,=+-]+", "_", name + changed)[:200]


MODES: dict[str, Callable[..., None]] = {**modes.MODES, "search": picture_search.search_mode}
OPTIONS: dict[str, Any] = {"search": picture_search.Question, "evaluate": reporting.Wanted}  # one flag per field
HELP = {
    "image": "search: the picture to search with, or a folder of pictures.",
    "crop": "search: x,y,w,h, the part of the upright picture to search with, in pixels.",
    "k": "search: how many images to list.",
    "rerank": f"search: order the answers again by one of {', '.join(RERANKERS)}.",
    "farthest": "search: the farthest images first.",
    "json": "search: one JSON document on standard output, and nothing else there.",
    "triplets": "evaluate: a file of (query, positive, negative) images to score as well.",
    "neighbours": "evaluate: save the neighbours of every query as well.",
}
