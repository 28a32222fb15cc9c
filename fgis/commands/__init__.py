"""The commands: one module per ``--mode``, each with its options and its ``run``, listed in one table.

A module imports nothing heavy until its ``run`` is called, so that ``--help`` and refusals of flags are immediate.
"""

from types import ModuleType

from fgis.commands import (
    duplicates,
    evaluate,
    explore,
    export,
    extract,
    index,
    search,
    serve,
    train,
)

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "evaluate": evaluate,
    "extract": extract,
    "index": index,
    "duplicates": duplicates,
    "search": search,
    "serve": serve,
    "explore": explore,
    "export": export,
}
