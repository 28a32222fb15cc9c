"""What the commands on galleries are tested with."""

import pytest

from fgis.features import description
from tests.gallery.photos import Network


@pytest.fixture
def network(monkeypatch):
    """A network that takes no time, in place of the one that a configuration names; it counts what it describes."""
    made = Network()
    monkeypatch.setattr(description, "load_extractor", made)
    return made
