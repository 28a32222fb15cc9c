"""The command line: flags, the configuration and its overrides; whatever is wrong with them is one line.

A mode's own flags are the fields of its ``Options``: ``name: Annotated[type, "help"] = default``. Its ``WORKDIR`` says
whether it needs a work directory, takes one or has no use for it, and ``READS_SAVED_CONFIG`` whether the configuration
of the run in that directory will do. A mode with a flag ``--gallery`` has a ``CONFIG``: the shipped configuration that
it takes where neither a gallery nor a run says how images are described. One with ``SEVERAL_PROCESSES`` has the flags
of ``HostFlags`` as well.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from absl import flags

from fgis import files
from fgis.commands import COMMANDS
from fgis.commands.host_flags import HostFlags, check_hosts
from fgis.errors import UserError, naming
from fgis.ranges import nearest

USAGE = "python -m fgis.main --config=CONFIG [--workdir=DIR] [--mode=MODE] [--config.KEY=VALUE ...]"
CONFIG_HELP = (
    "the experiment: a file such as configs/ukbench.py or the name of a shipped one, and :VARIANT if it has any"
)
DEFINE: dict[type, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
}


class Call(NamedTuple):
    """A parsed command line."""

    mode: str
    config: Any  # a locked ConfigDict
    workdir: Path | None  # None where a mode does without one and none was named
    options: Any  # the ``Options`` of the mode
    hosts: HostFlags = HostFlags()


def parse(arguments: Sequence[str]) -> Call | None:
    """The call that ``arguments`` describe; None after ``--help``.

    Raises:
      UserError: a flag or a key is unknown, a value has the wrong type, a flag belongs to another mode, or there is no
        configuration.
    """
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, CONFIG_HELP, flag_values=values)
    flags.DEFINE_string("workdir", None, "where the run lives; runs/NAME without it", flag_values=values)
    flags.DEFINE_enum("mode", "train", list(COMMANDS), "what to do", flag_values=values)
    owners = _define_options(values)
    if {"--help", "-h", "--helpfull", "-help"} & set(arguments):
        print(help_text())
        return None
    overrides = [word for word in arguments if re.match(r"--?config\.", word)]
    _parse(values, [word for word in arguments if word not in overrides])
    mode = str(values["mode"].value)
    for name, modes in owners.items():
        if values[name].present and mode not in modes:
            others = " and ".join(f"--mode={other}" for other in modes)
            raise UserError(f"--{name}: --mode={mode} does not read it, {others} does; leave one out")
    given, others = (_read(group, values) for group in (COMMANDS[mode].Options, HostFlags))
    check_hosts(others)
    named, workdir = values["config"].value, values["workdir"].value
    if workdir and COMMANDS[mode].WORKDIR == "unused":
        raise UserError(f"--workdir: --mode={mode} does not read it; leave it out")
    gallery = str(values["gallery"].value) if "gallery" in COMMANDS[mode].Options._fields else ""
    config = _load(named, Path(workdir) if workdir else None, mode, gallery)
    changed = apply_overrides(config, overrides)
    if workdir is None and COMMANDS[mode].WORKDIR == "needed":
        workdir = default_workdir(str(named), changed)
        if COMMANDS[mode].READS_SAVED_CONFIG and not Path(workdir).exists():
            workdir = _trained_workdir(str(named), changed)
    return Call(mode, config, Path(workdir).expanduser() if workdir else None, given, others)


def help_text() -> str:
    """What ``--help`` prints: the usage, the common flags, and those of every mode."""
    lines = [USAGE, "", f"  --config   {CONFIG_HELP}", "  --workdir  where the run lives; runs/NAME without it"]
    lines += [f"  --mode     what to do: {', '.join(COMMANDS)} (default: train)"]
    lines += ["  --config.KEY=VALUE  changes one key of the configuration, such as --config.miner.name=semi_hard"]
    for mode, command in COMMANDS.items():
        lines += ["", f"--mode={mode}: {(command.__doc__ or '').splitlines()[0]}"]
        for name, (_, words, default) in _options(command).items():
            lines.append(
                f"  --{name}  {words}" + (f" (default: {default})" if default not in ("", None, False) else "")
            )
    return "\n".join(lines)


def apply_overrides(config: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """Sets the keys of ``--config.KEY=VALUE`` arguments in ``config``; returns {key: value} of what was set.

    A value is read as the type of what it replaces. Of several values of a key the last one counts.

    Raises:
      UserError: there is no such key, the key is a group of keys, or the value has another type.
    """
    from ml_collections import config_flags

    keys = {}
    for word in overrides:
        name, equals, _ = word.lstrip("-").partition("=")
        key = name.removeprefix("config.")
        _check_key(config, key, word)
        if not equals:
            raise UserError(f"{word}: no value; write --config.{key}=VALUE")
        keys[key] = word
    values = flags.FlagValues()
    last = list(keys.values())  # of a tuple that is given twice the library would make one
    held = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["fgis", *last])
    _parse(values, last)
    del held
    flat = {key: _look_up(config, key) for key in keys}
    return flat


def default_workdir(config: str, changed: Mapping[str, Any]) -> str:
    """``runs/ukbench``, ``runs/ukbench-published``, ``runs/ukbench,miner.name=semi_hard``: one place per experiment."""
    file, _, variant = config.partition(":")
    name = Path(file).stem + (f"-{variant}" if variant else "")
    parts = "".join(f",{key}={value}" for key, value in sorted(changed.items()))
    return "runs/" + re.sub(r"[^\w.,=+-]+", "_", name + parts)[:200]


def _trained_workdir(config: str, changed: Mapping[str, Any]) -> str:
    """Where the run of an evaluation lies: overrides that concern the evaluation alone name no other run."""
    from fgis.experiment.differences import OF_EVALUATION

    return default_workdir(config, {key: value for key, value in changed.items() if not key.startswith(OF_EVALUATION)})


def _options(command: Any) -> dict[str, tuple[type, str, Any]]:
    """{name: (type, help, default)} of the flags that a command reads besides the common ones."""
    found = {}
    for group in [command.Options, *([HostFlags] if getattr(command, "SEVERAL_PROCESSES", False) else [])]:
        for name, hint in get_type_hints(group, include_extras=True).items():
            kind, words = get_args(hint)
            real = next((one for one in get_args(kind) if one is not type(None)), kind)
            found[name] = (real, words, group._field_defaults[name])
    return found


def _define_options(values: flags.FlagValues) -> dict[str, list[str]]:
    """Defines the flags of all modes; returns {flag: the modes that read it}."""
    owners: dict[str, list[str]] = {}
    for mode, command in COMMANDS.items():
        for name, (kind, words, default) in _options(command).items():
            if name not in owners:
                DEFINE[kind](name, default, words, flag_values=values)
            owners.setdefault(name, []).append(mode)
    return owners


def _read(group: Any, values: flags.FlagValues) -> Any:
    """A group of flags with the values that were given."""
    return group(**{name: values[name].value for name in group._fields})


def _parse(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    try:
        rest = values(["fgis.main", *arguments])[1:]
    except (flags.Error, ValueError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{lines[0].rstrip(':')}: {lines[-1]}" if len(lines) > 1 else lines[0]) from error
    if rest:
        raise UserError(f"{rest[0]}: not a flag; every argument has the form --name=value")


def _load(argument: str | None, workdir: Path | None, mode: str, gallery: str) -> Any:
    """The configuration that was named, or that of the run in ``workdir``, or of the gallery, or the mode's default."""
    from fgis.experiment import config_file, gallery_about

    if argument is not None:
        return config_file.load_config(argument)
    if gallery and workdir is None and (made := gallery_about.read_about(Path(gallery).expanduser())):
        return _saved_config(made.config, Path(gallery) / gallery_about.NAME)
    if gallery and workdir is None:
        return config_file.load_config(COMMANDS[mode].CONFIG)
    if workdir is not None and COMMANDS[mode].READS_SAVED_CONFIG:
        saved = files.read_object(workdir / "config.json") or _config_of_checkpoint(workdir)
        if saved is None:
            raise UserError(f"--workdir={workdir}: holds no config.json of a run; name the experiment by --config")
        return _saved_config(saved, workdir / "config.json")
    if "gallery" in COMMANDS[mode].Options._fields:
        raise UserError(
            "--gallery: missing; name the folder of a gallery (or, for images of an experiment, a --config)"
        )
    raise UserError("--config: missing; name an experiment, such as --config=configs/ukbench.py")


def _saved_config(saved: Mapping[str, Any], path: Path) -> Any:
    """The configuration that a file holds."""
    from fgis.experiment import differences

    with naming(f"{path}: "):
        return differences.from_plain(saved).lock()


def _config_of_checkpoint(workdir: Path) -> Mapping[str, Any] | None:
    """The configuration in the checkpoints of a run whose ``config.json`` is lost; None where there are none."""
    if not (workdir / "checkpoints").is_dir():
        return None
    from fgis.learning import checkpoint

    kept = checkpoint.read_saved(workdir)
    return kept.config if kept else None


def _check_key(config: Any, key: str, word: str) -> None:
    """Refuses a key that does not exist, and one that is a group."""
    from ml_collections import ConfigDict

    place, parts = config, key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(place, ConfigDict):
            value = ".".join(["config", *parts[:depth]])
            raise UserError(f"{word}: {value} is a value and holds no keys; leave out {part!r}")
        if part not in place:
            prefix = ".".join(["config", *parts[:depth]])
            raise UserError(f"{word}: no such key in {prefix}; {nearest(part, place.keys())}")
        place = place[part]
    if isinstance(place, ConfigDict):
        hint = f"config.{key}.name" if "name" in place else f"config.{key}.{next(iter(place.keys()), 'KEY')}"
        raise UserError(f"{word}: config.{key} is a group of keys; write --{hint}=VALUE")


def _look_up(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config
