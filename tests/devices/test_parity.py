"""Several devices and processes give what one device gives: ``tests.devices.parity`` on some of its combinations."""

import pytest

from fgis.experiment.config import CHOICES
from tests.devices import parity
from tests.devices.combinations import combinations


def test_every_miner_and_loss_is_compared_with_and_without_memory():
    found = combinations()
    for group in ("miner", "loss"):
        assert {one[f"{group}.name"] for one in found} == set(CHOICES[group])
        with_memory = {one[f"{group}.name"] for one in found if "memory.size" in one}
        assert with_memory == set(CHOICES[group]) - {"given"}


def row(**more):
    return {"type": "float64", "where": "devices", "combination": "a × b", "learns": True, "losses": 1e-13,
            "gradients": 1e-14, "parameters": 0.0, **more}  # fmt: skip


def test_what_is_beyond_a_bound_is_named():
    assert parity.failures([row()]) == []
    assert parity.failures([row(gradients=2e-12)]) == ["float64  devices      2.0e-12  a × b"]
    assert parity.failures([row(losses=float("nan")), row(learns=False)]) != []
    assert parity.failures([row(type="float32", first_loss=1e-6, first_gradient=2e-5)]) != []


def test_four_devices_in_double_precision():
    rows = parity.find_rows("float64", [(4, "shard_map")], every=100)
    assert len(rows) == 2
    assert parity.failures(rows) == []


@pytest.mark.slow
def test_eight_devices_and_every_way_in_double_precision():
    rows = parity.find_rows("float64", [(2, "shard_map"), (8, "pmap"), (8, "jit")], every=40)
    assert parity.failures(rows) == []


@pytest.mark.slow
def test_eight_devices_in_single_precision():
    assert parity.failures(parity.find_rows("float32", [(8, "shard_map")], every=48)) == []


@pytest.mark.slow
def test_two_processes_in_double_precision():
    assert parity.failures(parity.find_rows("float64", [(4, "shard_map")], every=70, processes=2)) == []
