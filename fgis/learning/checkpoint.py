"""Orbax checkpoints: parameters, the rest of the train state and the configuration, each an item of its own.

Parameters restore without the optimiser. The latest checkpoint and the best one (lowest ``loss``) are kept. A save
that was killed leaves a temporary folder, which the next opening ignores.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from fgis.base import TrainState
from fgis.errors import UserError

if TYPE_CHECKING:  # imported where it is used: it takes longer than a search
    import orbax.checkpoint as ocp


@contextmanager
def open_checkpoints(directory: str | Path, read_only: bool = False) -> Iterator["ocp.CheckpointManager"]:
    """The checkpoints under ``directory``; leaving the context waits for the saves under way.

    Args:
      directory: the folder ``checkpoints`` of a run.
      read_only: neither creates the folder nor removes anything from it.

    Yields:
      Orbax's manager, which keeps the latest checkpoint and the best one.
    """
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    latest_and_best = policies.AnyPreservationPolicy(
        [policies.LatestN(1), policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1)]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=None if read_only else latest_and_best, read_only=read_only, create=not read_only
    )
    with ocp.CheckpointManager(Path(directory).absolute(), options=options) as manager:
        yield manager


def save(manager: "ocp.CheckpointManager", state: TrainState, config: Mapping[str, Any], loss: float) -> None:
    """Saves the state of all runs under their common step.

    Args:
      manager: from ``open_checkpoints``.
      state: stacked over runs.
      config: JSON types, saved beside it.
      loss: decides which checkpoint is the best (the lowest).
    """
    import orbax.checkpoint as ocp

    step = int(np.ravel(state.step)[0])
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        rest=ocp.args.StandardSave({"opt_state": state.opt_state, "memory": state.memory}),
        config=ocp.args.JsonSave(dict(config)),
    )
    manager.save(step, args=items, metrics={"loss": loss}, force=True)


def restore_latest(manager: "ocp.CheckpointManager", like: TrainState) -> TrainState | None:
    """The latest state.

    Args:
      manager: from ``open_checkpoints``.
      like: its structure, shapes and placement.

    Returns:
      The state, or None where nothing was saved.
    """
    import orbax.checkpoint as ocp

    step = manager.latest_step()
    if step is None:
        return None
    rest = {"opt_state": like.opt_state, "memory": like.memory}
    items = ocp.args.Composite(
        params=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like.params)),
        rest=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, rest)),
    )
    found = manager.restore(step, args=items)
    return TrainState(
        step=jax.numpy.full_like(like.step, step),
        params=found["params"],
        opt_state=found["rest"]["opt_state"],
        memory=found["rest"]["memory"],
    )


def restore_params(directory: str | Path, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
    """Reads the parameters of a run, without its optimiser.

    Args:
      directory: the folder of the run, which holds ``checkpoints``.
      step: of the checkpoint; None for the latest.

    Returns:
      (step, parameters of all runs stacked, configuration) as NumPy arrays and JSON types.

    Raises:
      UserError: the folder holds no checkpoints, or none of this step; the line names the folder and the steps it has.
    """
    import orbax.checkpoint as ocp

    folder = Path(directory) / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{directory}: no checkpoints here; train first, or name the folder of a finished run")
    with open_checkpoints(folder, read_only=True) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise UserError(f"{folder}: no checkpoint was saved yet; train first, or name the folder of a finished run")
        chosen = steps[-1] if step is None else step
        if chosen not in steps:
            raise UserError(f"{folder}: no checkpoint of step {step}; take one of {', '.join(map(str, steps))}")
        items = ocp.args.Composite(params=ocp.args.StandardRestore(), config=ocp.args.JsonRestore())
        found = manager.restore(chosen, args=items)
    return chosen, jax.tree.map(np.asarray, found["params"]), found["config"]


def latest_step(directory: str | Path) -> int | None:
    """The step of the latest checkpoint of the run in ``directory``; None where there is none."""
    folder = Path(directory) / "checkpoints"
    if not folder.is_dir():
        return None
    with open_checkpoints(folder, read_only=True) as manager:
        return manager.latest_step()
