"""The tables of the paper: each row is an experiment that the project understands."""

import importlib

import pytest

from experiments.tables import DATASETS, FROZEN, Options, place_of, row_config
from fgis import choices

NAMES = ("sampling", "losses", "distances", "heads", "margins_and_batch", "memory")
TABLES = {name: importlib.import_module(f"experiments.{name}").TABLE for name in NAMES}
ROWS = [
    pytest.param(name, dataset, row, id=f"{name}-{dataset}-{row.name}")
    for name, table in TABLES.items()
    for dataset in DATASETS
    for row in table.rows
    if dataset not in row.impossible
]


@pytest.mark.parametrize(("name", "dataset", "row"), ROWS)
def test_every_row_is_a_configuration_that_is_understood(name, dataset, row):
    choices.check(row_config(TABLES[name], dataset, row, Options()))


@pytest.mark.parametrize("name", NAMES)
def test_a_table_has_its_references_and_unique_rows(name):
    table = TABLES[name]
    names = [row.name for row in table.rows]
    assert table.name == name
    assert len(set(names)) == len(names)
    assert {FROZEN.name, table.reference} <= set(names)
    reference = next(row for row in table.rows if row.name == table.reference)
    assert (reference.kind, dict(reference.overrides)) == ("trained", {})  # the default: batch-hard
    assert {dataset for row in table.rows for dataset in row.impossible} <= set(DATASETS)
    for dataset, published in table.published.items():
        assert all(set(one.figures) <= set(DATASETS[dataset].metrics) for one in published)
        assert all(one.source and one.protocol and (one.figures or one.elsewhere) for one in published)


def test_tables_share_a_row_where_they_share_an_experiment(tmp_path):
    places: dict = {}
    for table in TABLES.values():
        for row in table.rows:
            place = place_of(tmp_path, row.kind, row.overrides)
            experiment = (row.kind, row_config(table, "ukbench", row, Options()).to_json())
            assert places.setdefault(place, experiment) == experiment
    references = {place_of(tmp_path, "trained", {})}
    assert references <= set(places)
