"""Trainings on several devices: who does what, and that nothing depends on it."""

import jax
import numpy as np
import pytest

from configs import ukbench
from fgis.errors import UserError
from fgis.experiment import build
from fgis.experiment.config import read_settings
from fgis.experiment.differences import to_plain
from fgis.learning.layout import PARALLEL, fill_up, lay_out
from fgis.learning.train import TrainingData, train
from tests.devices.combinations import COARSE, FEATURES, LABELS, deviation

SHORT = {
    "folds": 0, "sampler.pk.classes": 6, "sampler.uniform.batch": 20, "sampler.name": "uniform", "memory.size": 40,
    "optimizer.name": "sgd", "optimizer.sgd.learning_rate": 0.05, "miner.name": "batch_hard",
    "head.name": "mlp", "head.mlp.widths": (8, 5), "head.mlp.dropouts": (0.2,),
}  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "devices", "table"), [(18, 4, (2, 2)), (4, 4, (4, 1)), (1, 4, (1, 4)), (3, 2, (1, 2)), (6, 3, (3, 1))]
)
def test_runs_go_to_devices_and_batches_are_shared_where_runs_are_few(runs, devices, table):
    layout = lay_out(runs, 128, jax.devices()[:devices])
    assert (layout.runs, layout.data) == table
    assert layout.axis == (None if table[1] == 1 else "data")
    assert lay_out(runs, 128, jax.devices()[:1]) is None


def test_pmap_knows_one_axis_and_the_compiler_none():
    two_groups = [lay_out(2, 20, jax.devices()[:4], way) for way in PARALLEL]
    assert [(one.runs, one.data) for one in two_groups] == [(2, 2), (1, 4), (2, 2)]
    assert [one.axis for one in two_groups] == ["data", "data", None]


def test_batches_are_filled_up_to_whole_triplets_and_never_cut():
    layout = lay_out(1, 20, jax.devices()[:4])
    rows = fill_up(jax.numpy.arange(20), layout)
    assert rows.tolist() == [*range(20), *[-1] * 4]
    assert fill_up(jax.numpy.arange(24)[None], layout).shape == (1, 24)


def trained(overrides, devices, *, streamed=False):
    """Parameters after three steps, and the losses on the way, [steps, runs]."""
    config, losses = ukbench.get_config(), []
    config.update_from_flattened_dict({**SHORT, **overrides, "train.devices": str(devices)})
    settings = read_settings(to_plain(config))
    prepare = build.build_scoring(settings).prepare
    made = build.build_experiment(
        settings, build.Images(LABELS, COARSE, 6, lambda rows: np.asarray(prepare(FEATURES[rows])))
    )
    fetch = lambda rows: FEATURES[rows].astype(np.float32)
    data = TrainingData(fetch if streamed else jax.numpy.asarray(FEATURES, np.float32), LABELS, COARSE)
    state = train(
        made.recipe, made.runs, data, steps=3, record_every=3,
        on_record=lambda step, state, metrics: losses.append(metrics["loss"]),
    )  # fmt: skip
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)], np.concatenate(losses)


# Four devices: each has a run of its own; two runs, of two devices each; one run, whose batches of 20 all share.
TABLES = {
    "runs dealt out": ({"seeds": 4, "sampler.name": "pk"}, ("pmap", "jit")),
    "two groups, streamed": ({"seeds": 2}, ("shard_map", "jit")),
    "a shared batch, streamed": ({"seeds": 1}, ("pmap",)),
}


@pytest.mark.slow
@pytest.mark.lean
@pytest.mark.parametrize("name", TABLES)
def test_devices_and_ways_to_use_them_change_nothing(name):
    (overrides, ways), streamed = TABLES[name], "streamed" in name
    alone = trained(overrides, 1)
    assert alone[1][-1].tolist() != alone[1][0].tolist()
    for way in ways:
        other = trained({**overrides, "train.parallel": way}, 4, streamed=streamed)
        assert deviation(alone[0], other[0]) < 1e-5, way
        assert deviation(alone[1], other[1]) < 1e-5, way


def test_devices_that_are_not_there():
    assert len(build.find_devices("3")) == 3
    for wanted in ("0", "5", "two", "-1"):
        with pytest.raises(UserError, match=rf"config.train.devices: '{wanted}' found, and there are 4 here; write"):
            build.find_devices(wanted)


def test_several_processes_do_not_take_pmap(monkeypatch):
    config = ukbench.get_config()
    config.train.parallel = "pmap"
    settings = read_settings(to_plain(config))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"config\.train\.parallel: 'pmap' found, which is for one process; write 'sh"):
        build.find_layout(settings, 1, 20)
