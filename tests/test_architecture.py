"""The shape of the house: imports go down, and only the rooms that may know a library know it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Floors from the top; a room may import from floors below its own and from itself, not from others of its floor.
FLOORS = [
    {"main"},
    {"command"},
    {"picture_search"},
    {"modes"},
    {"reporting"},
    {"build"},
    {"choices"},
    {"report", "retrieval", "learning", "features"},
    {"distances"},
    {"base", "errors", "ranges", "files", "streams"},
]
KNOWN_TO = {
    "ml_collections": {"main", "command", "modes", "reporting", "build", "choices"},
    "absl": {"main", "command"},
    "keras": {"features"},
    "orbax": {"learning"},
    "matplotlib": {"report"},
    "h5py": {"features", "report"},
    "tensorflow": set(),
}


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else module


def imports():
    for path in sorted((ROOT / "fgis").rglob("*.py")):
        if path.name == "__init__.py":
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                yield module, name


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_a_floor():
    rooms = {room(module) for module, _ in imports()}
    assert rooms <= set().union(*FLOORS)


def test_imports_go_down():
    upward = [
        (module, name)
        for module, name in imports()
        if name.startswith("fgis.") and room(module) != room(name) and floor(room(module)) >= floor(room(name))
    ]
    assert upward == []


@pytest.mark.parametrize("library", KNOWN_TO)
def test_a_library_is_known_to_its_rooms_alone(library):
    users = {room(module) for module, name in imports() if name.split(".")[0] == library}
    assert users <= KNOWN_TO[library]


def test_configs_import_nothing_from_fgis():
    for path in (ROOT / "configs").glob("*.py"):
        assert "fgis" not in [n.split(".")[0] for n in _imported(path)]


def _imported(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
