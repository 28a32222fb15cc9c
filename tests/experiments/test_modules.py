"""The tables of the paper: rows that can be run, figures that have a source, results that are rendered from JSON."""

import importlib
import json

import pytest

from experiments import deep_ranking, features, further_page, operating_points, rendering, reranking, summaries, systems
from experiments.tables import DATASETS, FROZEN, Options, place_of, row_config
from fgis.experiment.config import read_settings
from tests.tiny import ROOT

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
    read_settings(row_config(TABLES[name], dataset, row, Options()))


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
        assert not any("not recorded" in one.source for one in published)


def test_tables_share_a_row_where_they_share_an_experiment(tmp_path):
    places: dict = {}
    for table in TABLES.values():
        for row in table.rows:
            place = place_of(tmp_path, row.kind, row.overrides)
            experiment = (row.kind, row_config(table, "ukbench", row, Options()))
            assert places.setdefault(place, experiment) == experiment
    references = {place_of(tmp_path, "trained", {})}
    assert references <= set(places)


RESULTS = sorted((ROOT / "experiments" / "results" / "tables").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_are_rendered_from_their_figures(path):
    """And hold figures, notes and sources only: what they mean is written by hand in docs/ablations.md."""
    summary = json.loads(path.read_text())
    assert "commentary" not in summary
    own = {
        "reranking": reranking.rerank_page, "operating_points": operating_points.page, "features": features.page,
        "systems": systems.page, "deep_ranking": deep_ranking.page,
        "further_objects": further_page.page,
    }  # fmt: skip
    page = own.get(summary["table"], summaries.table_page)
    assert path.with_suffix(".md").read_text() == rendering.markdown(summary, page(summary))
    assert path.with_suffix(".tex").read_text() == rendering.latex(summary, page(summary))
    if summary["table"] not in own:
        published = TABLES[summary["table"]].published.get(summary["dataset"], ())
        assert summary["published"] == [one._asdict() for one in published]
