"""A trained run of a second, copies of it that tests damage, and commands that must not end in a traceback."""

import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

import fgis
from fgis.main import main
from tests.tiny import arguments, write_features


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    errors: str

    def line(self) -> str:
        """The one line on standard error."""
        lines = self.errors.splitlines()
        assert len(lines) == 1, self
        return lines[0]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(feature file, work directory) of a finished run with the checkpoints of steps 8 and 12."""
    place = tmp_path_factory.mktemp("trained")
    features = write_features(place / "tiny.h5")
    assert main(arguments(features, place / "run")) == 0
    return features, place / "run"


@pytest.fixture
def features(trained):
    return trained[0]


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the finished run."""
    shutil.copytree(trained[1], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def unfinished(run):
    """The same without its report, which a killed process leaves."""
    (run / "report.json").unlink()
    return run


@pytest.fixture
def command(capfd):
    """Runs a command in this process; an exception that leaves ``main`` fails the test."""

    def command(*words):
        capfd.readouterr()
        code = main([str(word) for word in words])
        ended = Ended(code, *capfd.readouterr())
        assert "Traceback" not in ended.errors, ended.errors
        return ended

    return command


@pytest.fixture
def refused(command):
    """Runs a command that must end with 2 and one line; returns the line."""

    def refused(*words):
        ended = command(*words)
        lines = ended.errors.splitlines()
        assert (ended.code, len(lines)) == (2, 1), ended
        assert lines[0].startswith("fgis: ")
        return lines[0]

    return refused


@pytest.fixture
def train(features):
    """The words of the training that made ``trained``."""
    return lambda workdir, *more: arguments(features, workdir, *more)


@pytest.fixture
def public():
    """A folder that every user can reach, and read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def unprivileged():
    """A context in which this process is a user who may not write everywhere; it has to reach the code, though."""
    if os.geteuid() == 0:
        for place in (Path(fgis.__file__).resolve(), Path(sys.prefix).resolve()):
            closed = next((one for one in place.parents if not one.stat().st_mode & 0o001), None)
            if closed is not None:
                pytest.skip(f"other users may not enter {closed}, so that none can run the code")

    @contextmanager
    def unprivileged():
        superuser = os.geteuid() == 0
        if superuser:
            os.seteuid(65534)
        try:
            yield
        finally:
            if superuser:
                os.seteuid(0)

    return unprivileged
