"""Checkpoints that are damaged, lie in odd places, or come from other devices."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fgis.learning import checkpoint
from fgis.learning.step import init_state


def state(step):
    params = {"w": jnp.arange(600.0).reshape(2, 300) + step}
    return jax.vmap(lambda one: init_state(one, optax.adam(1e-3)))(params).replace(step=jnp.full(2, step))


def step_folder(run, step=12):
    return run / "checkpoints" / str(step)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(content)


DAMAGES = {
    "truncated parameters": lambda folder: truncate(largest(folder / "params")),
    "truncated optimiser": lambda folder: truncate(largest(folder / "rest")),
    "empty file": lambda folder: largest(folder / "params").write_bytes(b""),
    "file of zeros": lambda folder: largest(folder / "params").write_bytes(bytes(4096)),
    "flipped bit of parameters": lambda folder: flip(largest(folder / "params"), 8 * 1000 + 3),
    "flipped bit of the optimiser": lambda folder: flip(largest(folder / "rest"), 8 * 1000 + 3),
    "no parameters": lambda folder: shutil.rmtree(folder / "params"),
    "no optimiser": lambda folder: shutil.rmtree(folder / "rest"),
    "no configuration": lambda folder: shutil.rmtree(folder / "config"),
    "other configuration": lambda folder: (folder / "config" / "metadata").write_text('{"seed": 1}'),
    "configuration is a list": lambda folder: (folder / "config" / "metadata").write_text("[]"),
    "configuration is no JSON": lambda folder: (folder / "config" / "metadata").write_bytes(b"\xff{"),
    "other digests": lambda folder: (folder / "digests" / "metadata").write_text('{"step": 12, "params": "0"}'),
    "digests of another step": lambda folder: (folder / "digests" / "metadata").write_text('{"step": 8}'),
    "digests are a number": lambda folder: (folder / "digests" / "metadata").write_text("3"),
    "nothing in its folder": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    "manifest lost": lambda folder: (folder / "params" / "manifest.ocdbt").unlink(),
    "another step renamed": lambda folder: [shutil.rmtree(folder), shutil.copytree(folder.with_name("8"), folder)],
}
OF_OPTIMISER = ("truncated optimiser", "flipped bit of the optimiser", "no optimiser")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(damage, run, command):
    DAMAGES[damage](step_folder(run))
    ended = command(f"--workdir={run}", "--mode=evaluate")
    assert ended.code == 0
    if damage in OF_OPTIMISER:  # which an evaluation does not read
        assert ended.errors == ""
        return
    line = ended.line()
    assert line.startswith(f"fgis: {run}/checkpoints: the checkpoint of step 12 is damaged (")
    assert line.endswith("; the one of step 8 is used")
    assert (run / "evaluations" / "step=8" / "report.json").exists()


@pytest.mark.parametrize("damage", ["truncated optimiser", "flipped bit of the optimiser", "nothing in its folder"])
def test_training_goes_on_from_the_one_before_and_ends_with_the_same_bits(damage, unfinished, trained, command, train):
    DAMAGES[damage](step_folder(unfinished))
    ended = command(*train(unfinished))
    assert ended.code == 0
    line = ended.line()
    assert "the checkpoint of step 12 is damaged" in line
    assert "resuming at step 8 of 12" in ended.output
    assert (unfinished / "checkpoints-damaged" / "12").is_dir()  # nothing is thrown away
    for name in ("report.json", "metrics.jsonl"):
        assert (unfinished / name).read_bytes() == (trained[1] / name).read_bytes()
    jax.tree.map(
        np.testing.assert_array_equal, *(checkpoint.restore_params(place)[1] for place in (unfinished, trained[1]))
    )


def test_a_finished_run_whose_last_checkpoint_is_damaged_is_not_finished(run, command, train):
    DAMAGES["flipped bit of parameters"](step_folder(run))
    assert "resuming at step 8" in command(*train(run)).output
    assert "is finished" in command(*train(run)).output


def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(unfinished, refused, train):
    for step in (8, 12):
        DAMAGES["flipped bit of parameters"](step_folder(unfinished, step))
    before = {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}
    for words in (train(unfinished), [f"--workdir={unfinished}", "--mode=evaluate"]):
        line = refused(*words)
        assert f"{unfinished}/checkpoints: the checkpoints of steps 12, 8 are damaged (12: params: the values" in line
        assert line.endswith("to train anew")
    assert before == {path: path.read_bytes() for path in unfinished.rglob("*") if path.is_file()}


def test_a_damaged_step_that_was_asked_for_is_refused(run, refused):
    DAMAGES["truncated parameters"](step_folder(run, 8))
    line = refused(f"--workdir={run}", "--mode=evaluate", "--step=8")
    assert "the checkpoint of step 8 is damaged" in line
    assert line.endswith("name another --step")


@pytest.mark.slow
def test_no_flipped_bit_goes_unnoticed(trained, tmp_path):
    """In any file of the parameters: other values are never read."""
    chance, whole = random.Random(0), checkpoint.restore_params(trained[1], 12)[1]
    files = [path for path in (step_folder(trained[1]) / "params").rglob("*") if path.is_file()]
    noticed = 0
    for number in range(60):
        run = tmp_path / str(number)
        shutil.copytree(trained[1] / "checkpoints", run / "checkpoints")
        path = chance.choices(files, [path.stat().st_size for path in files])[0]
        flip(run / path.relative_to(trained[1]), chance.randrange(8 * path.stat().st_size))
        step, params, _ = checkpoint.restore_params(run, say=lambda line: None)
        noticed += step == 8
        if step == 12:  # a bit that no value depends on
            jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert noticed > 20


ODD = ("a[b]", "[proj] x", "a]b", "back\\slash", "what?", "st*r", "{a,b}", "caf\u00e9 \u732b", "line\nbreak", "#1 & $x",
       "latin\udce9")  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_checkpoints_lie_in_folders_of_any_name(name, tmp_path):
    """Their parents as well."""
    run = tmp_path / name / name
    for step in (3, 5):
        with checkpoint.open_checkpoints(run / "checkpoints") as manager:
            found = checkpoint.restore_latest(manager, jax.eval_shape(lambda: state(0)))
            assert (found is None) == (step == 3)
            checkpoint.save(manager, state(step), {"seed": 3}, loss=1.0)
    jax.tree.map(np.testing.assert_array_equal, found, state(3))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"3", "5"}
    assert {path.name for path in tmp_path.iterdir()} == {name}
    assert checkpoint.restore_params(run)[0] == checkpoint.latest_step(run) == 5
    flip(largest(step_folder(run, 5) / "params"), 900)
    said = []
    assert checkpoint.restore_params(run, say=said.append)[0] == 3
    assert str(run) in said[0]


def test_a_run_lies_in_a_folder_of_any_name(tmp_path, command, train):
    run = tmp_path / "[a] b" / "c\\d*{e}"
    assert command(*train(run, "--config.train.total_steps=6")).code == 0
    assert command(f"--workdir={run}", "--mode=evaluate").errors == ""
    assert "resuming at step 6 of 12" in command(*train(run)).output


@pytest.mark.parametrize("saved", ["other devices", "no word on devices"])
def test_a_checkpoint_of_other_devices_restores(saved, unfinished, command, train):
    for path in unfinished.rglob("_sharding"):
        content = path.read_text()
        assert "cpu:0" in content
        path.write_text(content.replace("cpu:0", "cuda:7"))
        if saved == "no word on devices":
            path.unlink()
    ended = command(f"--workdir={unfinished}", "--mode=evaluate")
    assert (ended.code, ended.errors) == (0, "")
    ended = command(*train(unfinished, "--config.train.total_steps=14"))
    assert (ended.code, ended.errors) == (0, "")


@pytest.mark.slow
def test_a_run_trained_on_another_device_is_evaluated_and_continued(tmp_path, trained, command, train):
    with jax.default_device(jax.devices()[3]):
        assert command(*train(tmp_path / "run", "--config.train.total_steps=8")).code == 0
    assert command(f"--workdir={tmp_path / 'run'}", "--mode=evaluate").code == 0
    assert command(*train(tmp_path / "run")).code == 0
    jax.tree.map(
        np.testing.assert_array_equal, *(checkpoint.restore_params(at)[1] for at in (tmp_path / "run", trained[1]))
    )


def test_a_checkpoint_of_an_earlier_version_has_no_digests(run, command):
    shutil.rmtree(step_folder(run) / "digests")
    ended = command(f"--workdir={run}", "--mode=evaluate")
    assert (ended.code, ended.errors) == (0, "")
