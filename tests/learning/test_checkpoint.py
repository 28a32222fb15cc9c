import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgis.errors import UserError
from fgis.learning import checkpoint
from fgis.learning.step import init_state

OPTIMIZER = optax.adam(1e-3)
CONFIG = {"seed": 3, "features": {"image_size": [336, 448]}}


def state(step):
    params = {"w": jnp.arange(6.0).reshape(2, 3) + step}
    return jax.vmap(lambda p: init_state(p, OPTIMIZER))(params).replace(
        step=jnp.full(2, step), memory={"ring": jnp.ones(2) * step}
    )


def save(directory, losses):
    with checkpoint.open_checkpoints(directory / "checkpoints") as manager:
        for step, loss in losses.items():
            checkpoint.save(manager, state(step), CONFIG, loss)


def test_everything_comes_back(tmp_path):
    save(tmp_path, {5: 1.0})
    with checkpoint.open_checkpoints(tmp_path / "checkpoints") as manager:
        found = checkpoint.restore_latest(manager, jax.eval_shape(lambda: state(0)))
    jax.tree.map(np.testing.assert_array_equal, found, state(5))
    assert jax.tree.structure(found) == jax.tree.structure(state(5))


def test_the_two_latest_and_the_best_are_kept(tmp_path):
    save(tmp_path, {1: 0.9, 2: 0.2, 3: 0.5, 4: 0.4})
    with checkpoint.open_checkpoints(tmp_path / "checkpoints") as manager:
        assert sorted(manager.all_steps()) == [2, 3, 4]


def test_parameters_restore_without_the_optimiser(tmp_path):
    save(tmp_path, {1: 0.2, 2: 0.9})
    step, params, config = checkpoint.restore_params(tmp_path)
    assert (step, config) == (2, CONFIG)
    np.testing.assert_array_equal(params["w"], state(2).params["w"])
    np.testing.assert_array_equal(checkpoint.restore_params(tmp_path, 1)[1]["w"], state(1).params["w"])


def test_nothing_saved_is_nothing_restored(tmp_path):
    with checkpoint.open_checkpoints(tmp_path / "checkpoints") as manager:
        assert checkpoint.restore_latest(manager, jax.eval_shape(lambda: state(0))) is None


def test_a_step_that_was_not_kept_is_named(tmp_path):
    save(tmp_path, {1: 0.2, 7: 0.1})
    with pytest.raises(UserError, match=r"checkpoints: no checkpoint of step 4; take one of 1, 7$"):
        checkpoint.restore_params(tmp_path, 4)


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}: no checkpoints here; train first"):
        checkpoint.restore_params(tmp_path)
    save(tmp_path, {})
    with pytest.raises(UserError, match=f"^{tmp_path}/checkpoints: no checkpoint was saved yet"):
        checkpoint.restore_params(tmp_path)


def test_a_save_that_was_killed_is_ignored(tmp_path):
    save(tmp_path, {1: 0.2})
    (tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.restore_params(tmp_path)[0] == 1
    save(tmp_path, {2: 0.1})
    assert checkpoint.restore_params(tmp_path)[0] == 2
