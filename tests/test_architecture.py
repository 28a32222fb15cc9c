"""The shape of the code: imports go down, a library is known to few packages, and nothing outgrows its bounds."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top; a package may import from layers below its own and from itself, not from others of its layer.
LAYERS = [
    {"main"},
    {"commands"},
    {"web"},
    {"experiment"},
    {"gallery", "report"},
    {"retrieval", "learning", "features"},
    {"distances", "streams"},
    {"base", "files", "hosts", "interrupts", "last_words", "locks", "ranges"},
    {"errors"},
]
KNOWN_TO = {
    "ml_collections": {"main", "commands", "experiment"},
    "absl": {"main", "commands", "experiment"},
    "keras": {"features"},
    "orbax": {"learning"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "h5py": {"features", "report"},
    "scipy": {"retrieval", "features"},
    "tensorflow": set(),
}
LONGEST_MODULE, LONGEST_FUNCTION, MOST_PARAMETERS = 350, 60, 7
MODULES = sorted((ROOT / "fgis").rglob("*.py"))


def package(module: str) -> str:
    return module.split(".")[1] if module.count(".") else module


def imported(path: Path):
    """(name, whether the whole process needs it: False inside a function or ``if TYPE_CHECKING``)."""
    tree = ast.parse(path.read_text())
    top = [*tree.body]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            yield name, node in top


def imports():
    for path in MODULES:
        if path == ROOT / "fgis" / "__init__.py":  # the public names, from everywhere
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for name, at_start in imported(path):
            yield module, name, at_start


def layer(name: str) -> int:
    return next(number for number, packages in enumerate(LAYERS) if name in packages)


def test_every_package_has_a_layer():
    assert {package(module) for module, _, _ in imports()} <= set().union(*LAYERS)


def test_imports_go_down():
    upward = [
        (module, name)
        for module, name, _ in imports()
        if name.startswith("fgis.") and package(module) != package(name)
        and package(name) in set().union(*LAYERS) and layer(package(module)) >= layer(package(name))
    ]  # fmt: skip
    assert upward == []


def test_commands_do_not_import_each_other():
    commands = {path.stem for path in (ROOT / "fgis" / "commands").glob("*.py")} - {"__init__", "command_line"}
    between = [
        (module, name)
        for module, name, _ in imports()
        if module.startswith("fgis.commands.") and module.split(".")[2] in commands and name.startswith("fgis.commands")
    ]
    assert between == []


@pytest.mark.parametrize("library", KNOWN_TO)
def test_a_library_is_known_to_few_packages(library):
    users = {package(module) for module, name, _ in imports() if name.split(".")[0] == library}
    assert users <= KNOWN_TO[library]


def test_a_command_imports_nothing_slow_before_it_runs():
    light = ("fgis.main", "fgis.commands", "fgis.errors", "fgis.ranges", "fgis.files", "fgis.interrupts")
    slow = [
        (module, name)
        for module, name, at_start in imports()
        if module.startswith(light) and at_start and name.split(".")[0] not in sys.stdlib_module_names
        and not name.startswith(light) and name.split(".")[0] != "absl"
        and name not in ("fgis.files", "fgis.commands")
    ]  # fmt: skip
    assert slow == []


def test_configs_import_nothing_from_fgis():
    for path in (ROOT / "configs").glob("*.py"):
        assert "fgis" not in [name.split(".")[0] for name, _ in imported(path)]


def test_no_module_shadows_the_standard_library():
    shadowing = [path.name for path in MODULES if path.stem in sys.stdlib_module_names]
    assert shadowing == []


def test_modules_functions_and_parameter_lists_stay_short():
    long = []
    for path in MODULES:
        text = path.read_text()
        if (lines := text.count("\n")) > LONGEST_MODULE:
            long.append((path.name, lines))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([one for one in arguments if one.arg not in ("self", "cls")])
                if lines > LONGEST_FUNCTION or count > MOST_PARAMETERS:
                    long.append((path.name, node.name, lines, count))
    assert long == []
    assert (ROOT / "fgis" / "main.py").read_text().count("\n") < 100


def test_no_name_is_used_for_two_things():
    """Classes and functions of modules, private ones aside where they belong to one package."""
    places: dict[str, set[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("__"):
                places.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
    allowed = {"run", "Options"}  # every command has these
    twice = {name: sorted(found) for name, found in places.items() if len(found) > 1 and name not in allowed}
    assert twice == {}
