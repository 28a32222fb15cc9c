"""The benchmark of train steps, on batches of 16: it runs, it prints what programs read, and its checks can fail."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing, train_step
from fgis.learning import miners
from tests.tiny import ROOT

COLUMNS = ("case", "ours_s", "peer", "peer_s", "ratio", "limit_s", "over_limit", "ours_mb", "peer_mb")


@pytest.fixture
def peer():
    pytest.importorskip("torch", reason="the peer is an extra of its own: pip install -e '.[oracles]'")
    pytest.importorskip("pytorch_metric_learning", reason="pip install -e '.[oracles]'")


@pytest.mark.slow
def test_the_command_ends_with_the_rows_as_json(peer):
    command = [sys.executable, "-m", "experiments.benchmarks.train_step", "--cases=batch_hard_16", "--repeats=2"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["benchmark"] == "train_step"
    (row,) = report["rows"]
    assert tuple(row) == COLUMNS
    assert row["case"] == "batch_hard_16"
    assert row["ratio"] == pytest.approx(row["peer_s"] / row["ours_s"], rel=0.1)
    assert 0 < row["ours_s"] < 10
    assert 50 < row["ours_mb"] < 1000


def test_a_batch_beyond_the_peer_is_ours_alone(monkeypatch):
    measured = []

    def interleave(sides, repeats):
        measured.append((sides, repeats))
        return [timing.Measured(5.0, 900.0), timing.Measured(4.0, 500.0)]

    monkeypatch.setattr(timing, "interleave", interleave)
    row = train_step.measure("semi_hard_4096", 7)
    sides = [(train_step.make_turn, (train_step.ours, name, 4096)) for name in ("semi_hard", "network")]
    assert measured == [(sides, 7)]
    assert tuple(row) == COLUMNS
    assert (row["ours_s"], row["ours_mb"]) == (1.0, 900)  # a turn is five steps
    assert (row["limit_s"], row["over_limit"]) == (0.8, 1.25)
    assert row["peer_s"] is row["ratio"] is row["peer_mb"] is None


@pytest.mark.parametrize("name", [name for name in train_step.NAMES if name not in train_step.ALONE])
def test_both_sides_do_the_same_work(name, peer, capsys):
    train_step.check(name, 16)
    assert f"{name}_16: gradient norm" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "function", "replacement", "complaint"),
    [
        ("batch_hard", "batch_hard", miners.easy_semi_hard, "batch_hard_16: the loss differs"),
        (
            "semi_hard",
            "all_semi_hard_negatives",
            lambda d_ap, distances, negatives, margin: miners.all_negatives(d_ap, distances, negatives),
            "semi_hard_16: the loss differs",
        ),
        (
            "distance_weighted",
            "distance_weighted",
            lambda *seen: miners.random_negatives(*seen),
            "do not draw alike",
        ),
    ],
)
def test_the_check_fails_where_the_mining_differs(name, function, replacement, complaint, peer, monkeypatch):
    monkeypatch.setattr(miners, function, replacement)
    with pytest.raises(SystemExit, match=complaint):
        train_step.check(name, 16)


def test_the_check_fails_where_only_the_gradient_differs(peer, monkeypatch):
    step = train_step.ours("network", 16)
    loss, norm = step()
    monkeypatch.setattr(train_step, "ours", lambda *_: lambda *_: (loss, 1.001 * norm))
    with pytest.raises(SystemExit, match="network_16: the gradient norm differs"):
        train_step.check("network", 16)


def test_a_loss_that_is_nan_is_no_agreement(peer, monkeypatch):
    monkeypatch.setattr(train_step, "ours", lambda *_: lambda *_: (float("nan"), 1.0))
    with pytest.raises(SystemExit, match="the loss differs"):
        train_step.check("network", 16)


@pytest.mark.parametrize("name", ["network", "batch_hard", "semi_hard"])
def test_turns_do_the_same_work(name):
    step = train_step.ours(name, 16)
    losses = [step()[0] for _ in range(5)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_turns_of_the_peer_do_the_same_work(peer):
    step = train_step.peer("batch_hard", 16)
    losses = [step()[0] for _ in range(20)]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def test_about_two_of_three_triplets_are_semi_hard():
    x, labels = train_step.batch(128)
    for kernel in train_step.kernels():
        x = np.maximum(x, 0) @ kernel
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    distances = np.linalg.norm(x[:, None] - x, axis=-1)
    same = labels[:, None] == labels
    difference = (distances[:, None, :] - distances[:, :, None])[
        (same & ~np.eye(128, dtype=bool))[:, :, None] & ~same[:, None, :]
    ]
    assert difference.shape == (128 * 3 * 124,)
    assert 0.55 < jnp.mean((difference > 0) & (difference < train_step.MARGIN)) < 0.75


@pytest.mark.parametrize("cases", ["semihard_1024", "semi_hard", "semi_hard_10", "semi_hard_4", "semi_hard_128,"])
def test_an_unknown_case_is_one_line(cases, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_step", f"--cases={cases}"])
    with pytest.raises(SystemExit) as found:
        train_step.main()
    assert found.value.code == 2
    (*_, line) = capsys.readouterr().err.splitlines()
    assert f"--cases: {cases.split(',')[-1]!r} is none of network_128, " in line


def test_without_the_peer_one_line_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(train_step.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["train_step", "--cases=batch_hard_16"])
    with pytest.raises(SystemExit) as found:
        train_step.main()
    assert found.value.code == 2
    assert capsys.readouterr().err == (
        "PyTorch Metric Learning 2.9 is not installed; type: pip install -e '.[oracles]'\n"
    )
