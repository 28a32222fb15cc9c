"""Orbax checkpoints: parameters, the rest of the train state and the configuration, each an item of its own.

Parameters restore without the optimiser. The latest checkpoint and the best one (lowest ``loss``) are kept. A save
that was killed leaves a temporary folder, which the next opening ignores.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fgis.base import TrainState
from fgis.errors import UserError


@contextmanager
def open_checkpoints(directory: str | Path, read_only: bool = False) -> Iterator[ocp.CheckpointManager]:
    """The checkpoints under ``directory``; leaving the context waits for the saves under way."""
    latest_and_best = policies.AnyPreservationPolicy(
        [policies.LatestN(1), policies.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1)]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=None if read_only else latest_and_best, read_only=read_only, create=not read_only
    )
    with ocp.CheckpointManager(Path(directory).absolute(), options=options) as manager:
        yield manager


def save(manager: ocp.CheckpointManager, state: TrainState, config: Mapping[str, Any], loss: float) -> None:
    """Saves the (stacked) state of all runs under their common step; ``loss`` decides which checkpoint is the best."""
    step = int(np.ravel(state.step)[0])
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        rest=ocp.args.StandardSave({"opt_state": state.opt_state, "memory": state.memory}),
        config=ocp.args.JsonSave(dict(config)),
    )
    manager.save(step, args=items, metrics={"loss": loss}, force=True)


def restore_latest(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """The latest state, with the structure, shapes and placement of ``like``; None where nothing was saved."""
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


def restore_params(workdir: str | Path, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
    """(step, parameters of all runs stacked, configuration) of the latest checkpoint in ``workdir``, or of ``step``.

    Raises ``UserError`` where there is none.
    """
    directory = Path(workdir) / "checkpoints"
    if not directory.is_dir():
        raise UserError(f"--workdir={workdir}: no checkpoints here; train first, or name the folder of a finished run")
    with open_checkpoints(directory, read_only=True) as manager:
        steps = sorted(manager.all_steps())
        chosen = manager.latest_step() if step is None else step
        if chosen not in steps:
            raise UserError(
                f"--step={step}: {directory} holds {', '.join(map(str, steps)) or 'no checkpoint'}; name one"
            )
        items = ocp.args.Composite(params=ocp.args.StandardRestore(), config=ocp.args.JsonRestore())
        found = manager.restore(chosen, args=items)
    return chosen, jax.tree.map(np.asarray, found["params"]), found["config"]
