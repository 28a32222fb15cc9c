"""Orbax checkpoints: parameters, the rest of the train state and the configuration, each an item of its own.

Parameters restore without the optimiser, and everything restores on any devices. The two latest checkpoints and the
best one (lowest ``loss``) are kept. A save that was killed leaves a temporary folder, which the next opening ignores.
Digests of what is saved are an item as well: what is restored is compared with them, and a damaged checkpoint gives way
to the one before.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fgis.base import TrainState
from fgis.errors import UserError, reason_of, warn
from fgis.learning.checkpoint_paths import plain_path, shown_path
from fgis.learning.placement import digest_leaves, place_like, placeholders, without_others

if TYPE_CHECKING:  # imported where it is used: it takes longer than a search
    import orbax.checkpoint as ocp

ASIDE = "checkpoints-damaged"  # where a resumed training puts what it cannot use


class Saved(NamedTuple):
    """What a checkpoint says of itself, without its parameters."""

    step: int
    config: dict[str, Any]
    images: str  # the digest of the images that it was trained on; "" of a checkpoint that does not say


@contextmanager
def open_checkpoints(directory: str | Path, read_only: bool = False) -> Iterator["ocp.CheckpointManager"]:
    """The checkpoints under ``directory``; leaving the context waits for the saves under way.

    Args:
      directory: the folder ``checkpoints`` of a run.
      read_only: neither creates the folder nor removes anything from it.

    Yields:
      Orbax's manager, which keeps the two latest checkpoints and the best one.

    Raises:
      UserError: the folder cannot be read, or a save under way cannot be finished.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    worst = {"loss": float("inf")}  # of a checkpoint whose own metrics are lost
    latest_and_best = policies.AnyPreservationPolicy(
        [
            policies.LatestN(2),
            policies.BestN(
                get_metric_fn=lambda metrics: (metrics or worst).get("loss", worst["loss"]), reverse=True, n=1
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=None if read_only else latest_and_best, read_only=read_only, create=False,
        multiprocessing_options=without_others(),
    )  # fmt: skip
    with plain_path(Path(directory).absolute(), create=not read_only) as path, _without_late_errors():
        try:
            if not read_only:
                path.mkdir(parents=True, exist_ok=True)
            manager = ocp.CheckpointManager(path, options=options)
        except Exception as error:  # whatever Orbax makes of a folder that it cannot read
            raise UserError(f"{directory}: cannot be opened ({reason_of(error)}); look at its permissions") from error
        try:
            yield manager
        except BaseException:
            with suppress(Exception):  # what went wrong first is what matters
                manager.close()
            raise
        try:
            manager.close()
        except Exception as error:
            raise _not_saved(Path(directory), error) from error


def save(
    manager: "ocp.CheckpointManager", state: TrainState, config: Mapping[str, Any], loss: float, images: str = ""
) -> None:
    """Saves the state of all runs under their common step, which no checkpoint may have yet.

    Args:
      manager: from ``open_checkpoints``.
      state: stacked over runs; where several processes train them, in the memory of this one.
      config: JSON types, saved beside it.
      loss: decides which checkpoint is the best (the lowest).
      images: a digest of the images that the runs are trained on, saved beside it.

    Raises:
      UserError: this checkpoint, or the one before, which is written meanwhile, cannot be written.
    """
    import orbax.checkpoint as ocp

    step, plain = int(np.ravel(state.step)[0]), dict(config)
    rest = {"opt_state": state.opt_state, "memory": state.memory}
    digests = {
        "step": step,
        "params": digest_leaves(state.params),
        "rest": digest_leaves(rest),
        "config": _digest_json(plain),
        "images": images,
    }
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        rest=ocp.args.StandardSave(rest),
        config=ocp.args.JsonSave(plain),
        digests=ocp.args.JsonSave(digests),
    )
    try:
        manager.save(step, args=items, metrics={"loss": loss}, force=True)
    except Exception as error:  # the file system's reasons come as errors of several libraries
        raise _not_saved(shown_path(manager.directory), error) from error


def restore_latest(
    manager: "ocp.CheckpointManager", like: TrainState, say: Callable[[str], None] = warn
) -> TrainState | None:
    """The latest state that is whole; damaged ones after it are moved to ``checkpoints-damaged`` beside the folder.

    Args:
      manager: from ``open_checkpoints``.
      like: its structure and shapes; leaves with a sharding say where theirs go, others go to the default device.
      say: called with a sentence for each damaged checkpoint.

    Returns:
      The state, or None where nothing was saved.

    Raises:
      UserError: every checkpoint is damaged, or the latest whole one is of other shapes.
    """
    rest_like = {"opt_state": like.opt_state, "memory": like.memory}

    def read(step: int) -> tuple[int, Any, Any]:
        digests = _read_digests(manager, step)
        read_item = lambda name, tree: _read_arrays(manager, step, name, placeholders(tree), digests)
        return step, read_item("params", like.params), read_item("rest", rest_like)

    found = _first_whole(manager, read, say, aside=True)
    if found is None:
        return None
    step, params, rest = found
    try:
        placed, rest = place_like(params, like.params), place_like(rest, rest_like)
    except ValueError as error:
        raise UserError(
            f"{shown_path(manager.directory)}: the checkpoint of step {step} is of another training "
            f"({reason_of(error)}); name another folder"
        ) from error
    step_like = place_like(np.full(like.step.shape, step, like.step.dtype), like.step)
    return TrainState(step=step_like, params=placed, opt_state=rest["opt_state"], memory=rest["memory"])


def restore_params(
    directory: str | Path, step: int | None = None, say: Callable[[str], None] = warn
) -> tuple[int, Any, dict[str, Any]]:
    """Reads the parameters of a run, without its optimiser.

    Args:
      directory: the folder of the run, which holds ``checkpoints``.
      step: of the checkpoint; None for the latest that is whole.
      say: called with a sentence about damaged checkpoints that are passed over.

    Returns:
      (step, parameters of all runs stacked, configuration) as NumPy arrays and JSON types.

    Raises:
      UserError: the folder holds no checkpoints, none of this step, or none that is whole; the line names the folder
        and the steps it has.
    """
    folder = Path(directory) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{directory}: no checkpoints here; train first, or name the folder of a finished run")
    with open_checkpoints(folder, read_only=True) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise UserError(f"{folder}: no checkpoint was saved yet; train first, or name the folder of a finished run")
        if step is not None and step not in steps:
            raise UserError(f"{folder}: no checkpoint of step {step}; take one of {', '.join(map(str, steps))}")

        def read(one: int) -> tuple[int, Any, dict[str, Any]]:
            digests = _read_digests(manager, one)
            target = placeholders(_saved_shapes(manager, one, "params"))
            params = _read_arrays(manager, one, "params", target, digests)
            return one, params, _read_config(manager, one, digests)

        found = _first_whole(manager, read, say, only=step)
    assert found is not None
    return found


def read_saved(directory: str | Path) -> Saved | None:
    """What the latest checkpoint of the run in ``directory`` that is whole says of itself; None where there is none."""
    folder = Path(directory) / "checkpoints"
    if not folder.is_dir():
        return None

    with open_checkpoints(folder, read_only=True) as manager:

        def read(step: int) -> Saved:
            digests = _read_digests(manager, step)
            return Saved(step, _read_config(manager, step, digests), str(digests.get("images", "")))

        return _first_whole(manager, read, lambda line: None)


def latest_step(directory: str | Path) -> int | None:
    """The step of the latest checkpoint of the run in ``directory``; None where there is none.

    The names of folders alone are read, so it is quick, and a damaged checkpoint counts.
    """
    folder = Path(directory) / "checkpoints"
    try:
        steps = [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except OSError:
        return None
    return max(steps, default=None)


def _first_whole(
    manager: "ocp.CheckpointManager", read: Callable[[int], Any], say: Callable[[str], None], only: int | None = None,
    aside: bool = False,
) -> Any:  # fmt: skip
    """What ``read`` gives of the latest checkpoint that is whole (of ``only`` that one); None where none is saved.

    Raises:
      UserError: none is whole.
    """
    folder, damaged = shown_path(manager.directory), dict[int, str]()
    for step in sorted(manager.all_steps() if only is None else [only], reverse=True):
        try:
            found = read(step)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # damage shows as errors of many kinds
            if isinstance(error, PermissionError) or "PERMISSION_DENIED" in str(error):
                raise UserError(f"{folder}/{step}: cannot be read; look at its permissions") from error
            damaged[step] = reason_of(error)
            continue
        if damaged:
            say(f"{_describe(folder, damaged)}; the one of step {step} is used")
            if aside:
                _move_aside(manager, folder, damaged)
        return found
    if damaged:
        others = "name another --step" if only is not None else f"restore a copy, or remove {folder} to train anew"
        raise UserError(f"{_describe(folder, damaged)}; {others}")
    return None


@contextmanager
def _without_late_errors() -> Iterator[None]:
    """Keeps quiet what reads that are still under way print where another one of the same checkpoint failed."""
    before = sys.unraisablehook

    def show(error: "sys.UnraisableHookArgs") -> None:
        if str(error.exc_value) != "Event loop is closed":
            before(error)

    sys.unraisablehook = show
    try:
        yield
    finally:
        sys.unraisablehook = before


def _describe(folder: Path, damaged: Mapping[int, str]) -> str:
    step, reason = next(iter(damaged.items()))
    if len(damaged) == 1:
        return f"{folder}: the checkpoint of step {step} is damaged ({reason})"
    return f"{folder}: the checkpoints of steps {', '.join(map(str, damaged))} are damaged ({step}: {reason})"


def _move_aside(manager: "ocp.CheckpointManager", folder: Path, steps: Mapping[int, str]) -> None:
    """Moves checkpoints out of the folder, so that their steps can be saved again and nothing is lost."""
    place = folder.parent / ASIDE
    for step in steps:
        number = 0
        while (target := place / (f"{step}-{number}" if number else f"{step}")).exists():
            number += 1
        place.mkdir(exist_ok=True)
        os.rename(folder / str(step), target)
    manager.reload()


def _read_digests(manager: "ocp.CheckpointManager", step: int) -> dict[str, Any]:
    """The digests of a checkpoint; none of one that an earlier version saved."""
    if not (Path(manager.directory) / str(step) / "digests").exists():
        return {}
    digests = _read_json_item(manager, step, "digests")
    if not isinstance(digests, dict) or digests.get("step") != step:
        raise ValueError("its digests are not of this step")
    return digests


def _read_config(manager: "ocp.CheckpointManager", step: int, digests: Mapping[str, Any]) -> dict[str, Any]:
    config = _read_json_item(manager, step, "config")
    if not isinstance(config, dict) or digests.get("config", found := _digest_json(config)) != found:
        raise ValueError("its configuration is not what was saved")
    return config


def _read_json_item(manager: "ocp.CheckpointManager", step: int, name: str) -> Any:
    import orbax.checkpoint as ocp

    return manager.restore(step, args=ocp.args.Composite(**{name: ocp.args.JsonRestore()}))[name]


def _read_arrays(
    manager: "ocp.CheckpointManager", step: int, name: str, target: Any, digests: Mapping[str, Any]
) -> Any:
    """One item in the memory of the host, compared with its digest."""
    import orbax.checkpoint as ocp

    found = manager.restore(step, args=ocp.args.Composite(**{name: ocp.args.StandardRestore(target)}))[name]
    if name in digests and digest_leaves(found) != digests[name]:
        raise ValueError(f"{name}: the values are not those that were saved")
    return found


def _saved_shapes(manager: "ocp.CheckpointManager", step: int, name: str) -> Any:
    """The tree of an item's shapes and types, as the checkpoint has them."""
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointHandler().metadata(manager.directory / str(step) / name).tree


def _digest_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _not_saved(folder: Path, error: BaseException) -> UserError:
    kept = latest_step(folder.parent)
    again = "starts anew" if kept is None else f"continues from step {kept}"
    return UserError(
        f"{folder}: a checkpoint could not be saved ({reason_of(error)}); make room or restore access, and run the "
        f"same command again, which {again}"
    )
