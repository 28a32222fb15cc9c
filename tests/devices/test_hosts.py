"""Trainings over two processes of two devices each, on loopback: what one process of four devices gives.

Where every run lies on one device the bits are the same; where devices share a batch, sums are taken in another order.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from fgis import hosts
from fgis.commands.command_line import parse
from fgis.errors import UserError
from fgis.experiment import build, identity, training
from fgis.experiment.run import Run
from fgis.features.store import open_rows
from fgis.learning import checkpoint
from fgis.learning.layout import gathered, lay_out
from fgis.main import main
from tests.tiny import CONFIG, ROOT, arguments, write_features

# Four runs, one on each device.
FOUR = (
    "--config.evaluation.metrics=('map@r',)",
    "--config.folds=2", "--config.closed_set=False", "--config.evaluation.resamples=5", "--config.train.total_steps=4",
)  # fmt: skip
# One run, whose batches of 20 four devices share; features are streamed.
SHARED = (
    "--config.evaluation.metrics=('map@r',)",
    "--config.folds=0", "--config.seeds=1", "--config.evaluation.resamples=5", "--config.sampler.name=uniform",
    "--config.sampler.uniform.batch=20", "--config.memory.size=40", "--config.train.resident_megabytes=0",
)  # fmt: skip


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def command(features, workdir, process, port, *more):
    place = [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={process}", "--wait_seconds=60"]
    return [sys.executable, "-m", "fgis.main", *arguments(features, workdir, *more), *place]


@contextmanager
def started(features, workdir, *more):
    """Two processes with two devices each, which are killed at the end."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    port, pipes = free_port(), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    pair = [
        subprocess.Popen(command(features, workdir, process, port, *more), cwd=ROOT, env=environment, **pipes)
        for process in (0, 1)
    ]
    try:
        yield pair
    finally:
        for one in pair:
            one.kill()
            one.communicate()


def train_on_two(features, workdir, *more):
    """What the first process printed."""
    with started(features, workdir, *more) as pair:
        said = [one.communicate(timeout=180) for one in pair]
        assert [one.returncode for one in pair] == [0, 0], said
    assert said[0][1] == said[1][1] == ""
    assert said[1][0] == f"fgis train: {workdir}\n"  # the second one neither reports nor shows records
    return said[0][0]


def train_on_one(features, workdir, devices, *more):
    """Without the evaluation and the report."""
    run = opened(features, workdir, *more, f"--config.train.devices={devices}")
    training.claim(run, workdir)
    training.train_run(run, workdir)


def opened(features, workdir, *more):
    return Run.open(parse(arguments(features, workdir, *more)).config, workdir)


def records(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {name: np.array([line[name] for line in lines], float) for name in lines[0]}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return write_features(tmp_path_factory.mktemp("features") / "tiny.h5")


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one_which_goes_on_from_their_checkpoint(features, tmp_path):
    printed = train_on_two(features, tmp_path / "two", *FOUR)
    assert "2 processes, 4 devices\n" in printed
    assert json.loads((tmp_path / "two" / "report.json").read_text())["step"] == 4
    longer = (*FOUR, "--config.train.total_steps=8")
    train_on_one(features, tmp_path / "one", 4, *longer)
    lines = (tmp_path / "two" / "metrics.jsonl").read_bytes()
    assert lines.count(b"\n") == 2
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes().startswith(lines)
    both = (checkpoint.restore_params(tmp_path / name, 4)[1] for name in ("one", "two"))
    jax.tree.map(np.testing.assert_array_equal, *both)
    train_on_one(features, tmp_path / "two", 1, *longer)
    found, expected = (records(tmp_path / x) for x in ("two", "one"))
    assert found["step"].tolist() == [2, 4, 6, 8]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_two_processes_go_on_from_the_checkpoint_of_one_and_share_its_batches(features, tmp_path):
    train_on_one(features, tmp_path / "two", 4, *SHARED, "--config.train.total_steps=4")
    longer = (*SHARED, "--config.train.total_steps=8")
    assert "resuming at step 4 of 8\n" in train_on_two(features, tmp_path / "two", *longer)
    train_on_one(features, tmp_path / "one", 1, *longer)
    found, expected = (records(tmp_path / x) for x in ("two", "one"))
    assert found["step"].tolist() == [2, 4, 6, 8]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_restores_on_one_device_and_on_two_processes(features, tmp_path):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    words = arguments(features, tmp_path / "eight", *SHARED, "--config.train.total_steps=4")
    done = subprocess.run(
        [sys.executable, "-m", "fgis.main", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    shutil.copytree(tmp_path / "eight", tmp_path / "two")
    longer = (*SHARED, "--config.train.total_steps=6")
    assert "resuming at step 4 of 6\n" in train_on_two(features, tmp_path / "two", *longer)
    train_on_one(features, tmp_path / "eight", 1, *longer)
    train_on_one(features, tmp_path / "one", 1, *longer)
    expected = records(tmp_path / "one")
    for name in ("eight", "two"):
        found = records(tmp_path / name)
        assert found["step"].tolist() == [2, 4, 6]
        for key, values in expected.items():
            np.testing.assert_allclose(found[key], values, rtol=1e-5, err_msg=f"{name} {key}")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_a_line(features, tmp_path):
    endless = (*FOUR, "--config.train.total_steps=1000000", "--config.train.record_every_steps=100",
               "--config.train.checkpoint_every_steps=100")  # fmt: skip
    with started(features, tmp_path / "run", *endless) as pair:
        for line in pair[0].stdout:
            if line.startswith("step 300/"):  # saving at step 200 has waited for what was saved at step 100
                break
        pair[0].send_signal(signal.SIGKILL)
        _, error = pair[1].communicate(timeout=60)
    assert pair[1].returncode not in (0, None)
    assert error.startswith("fgis: process 1 of 2 has lost another one"), (pair[1].returncode, error)
    assert error.count("\n") == 1
    assert checkpoint.latest_step(tmp_path / "run") >= 100


FLAGS = {
    "--processes: goes with --coordinator=HOST:PORT": ["--processes=2"],
    "--processes: missing; --coordinator=HOST:PORT goes with": ["--coordinator=here:1"],
    "--process: missing": ["--coordinator=here:1", "--processes=2"],
    "--coordinator: 'here' found; write HOST:PORT": ["--coordinator=here", "--processes=2", "--process=0"],
    "--coordinator: 'here:70000' found": ["--coordinator=here:70000", "--processes=2", "--process=0"],
    "--processes: 0 found": ["--coordinator=here:1", "--processes=0", "--process=0"],
    "--process: 2 found; 2 processes have the numbers 0 to 1": [
        "--coordinator=here:1", "--processes=2", "--process=2",
    ],
    "--local_devices: 'first' found; write all, or numbers": ["--distributed", "--local_devices=first"],
    "--local_devices: goes with --distributed or --coordinator": ["--local_devices=0"],
    "--wait_seconds: 0 found": ["--distributed", "--wait_seconds=0"],
    "--distributed: --mode=extract does not read it": ["--mode=extract", "--distributed"],
}  # fmt: skip


@pytest.mark.parametrize("line", FLAGS)
def test_flags_that_do_not_fit_are_refused(line, capsys):
    assert main([CONFIG, *FLAGS[line]]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"fgis: {line}")
    assert error.count("\n") == 1


@pytest.mark.slow
def test_an_address_that_is_taken_and_a_launcher_that_is_not_there(features, tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        asked = command(features, tmp_path / "run", 0, port)
        done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fgis: 127.0.0.1:{port}: cannot be listened on (")
    assert done.stderr.count("\n") == 1
    asked = [sys.executable, "-m", "fgis.main", *arguments(features, tmp_path / "run"), "--distributed"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "OMPI", "JAX_COOR"))}
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60, env=alone)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "fgis: --distributed: no SLURM, Open MPI, Kubernetes or Cloud TPU started this process"
    )
    assert done.stderr.count("\n") == 1


def test_alone_nothing_is_exchanged():
    assert hosts.is_first()
    assert not hosts.are_several()
    assert hosts.largest(7) == 7
    tree = {"a": np.ones(2)}
    assert hosts.from_first(tree) is tree
    hosts.same_in_all(b"x", "other images")
    hosts.leave()


def test_processes_with_other_images_or_another_command_are_refused(features, tmp_path, monkeypatch):
    rows, config = open_rows(features), opened(features, tmp_path).config
    own = identity.digest_command(rows, config)
    moved = {**config, "features": {**config["features"], "path": "elsewhere.h5", "images": "x"}}
    assert identity.digest_command(rows, moved) == own
    other = identity.digest_command(rows, {**config, "seed": 5})
    assert identity.digest_command(open_rows(write_features(tmp_path / "other.h5", seed=1)), config) not in (own, other)
    from jax.experimental import multihost_utils

    gather = lambda found: np.stack([found, np.frombuffer(other, np.uint8)])
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    monkeypatch.setattr(hosts._Here, "connected", True)
    monkeypatch.setattr(hosts._Here, "place", hosts.Place(0, 2))
    with pytest.raises(UserError, match=r"process 1 of 2 has another configuration than process 0; give all of them"):
        hosts.same_in_all(own, "another configuration")


def test_several_processes_use_all_devices(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"config\.train\.devices: '2' found, but several processes use all"):
        build.find_devices("2")


def test_a_process_takes_the_rows_of_its_devices_alone():
    """Two runs on four devices: two rows of the table, each of two devices; taken once for each distinct share."""
    layout, asked = lay_out(2, 6, jax.devices()[:4]), []

    def take(rows):
        asked.append(rows.tolist())
        return rows[..., None] * np.array([1, 10])

    rows = np.arange(12).reshape(2, 6)
    whole = gathered(take, rows, layout, shared=False)
    np.testing.assert_array_equal(whole, rows[..., None] * np.array([1, 10]))
    assert sorted(asked) == [[[0, 1, 2, 3, 4, 5]], [[6, 7, 8, 9, 10, 11]]]
    asked.clear()
    np.testing.assert_array_equal(gathered(take, rows, layout, shared=True), whole)
    assert sorted(asked) == [[[0, 1, 2]], [[3, 4, 5]], [[6, 7, 8]], [[9, 10, 11]]]
