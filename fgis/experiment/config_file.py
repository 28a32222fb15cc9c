"""Finding and loading a configuration file: by its path, or by the name of one that the package ships."""

import importlib.util
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import ml_collections

from fgis.errors import UserError
from fgis.ranges import nearest


def shipped_configs() -> Path:
    """The folder of the shipped configurations: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_config(argument: str) -> tuple[Path, str]:
    """(file, variant) of ``PATH[:VARIANT]`` or ``NAME[:VARIANT]``; a file that exists comes before a shipped name.

    Raises:
      UserError: there is neither such a file nor a shipped configuration of that name.
    """
    name, _, variant = argument.partition(":")
    path = Path(name).expanduser()
    if path.is_file():
        return path, variant
    folder = shipped_configs()
    shipped = folder / f"{path.name.removesuffix('.py')}.py"
    if shipped.is_file() and (path.parent == Path() or path.parent.name == "configs"):
        return shipped, variant
    known = [file.stem for file in folder.glob("*.py") if not file.stem.startswith("_")]
    raise UserError(f"--config={argument}: no such file, and no shipped experiment; {nearest(path.stem, known)}")


def load_config(argument: str) -> ml_collections.ConfigDict:
    """The configuration that ``get_config`` of a file returns, locked; its variant is ``get_config``'s argument.

    A configuration may build on a shipped one by ``from configs import ukbench``, wherever it lies.

    Raises:
      UserError: the file cannot be found, executed or does not define ``get_config``; the line says where and why.
    """
    path, variant = find_config(argument)
    _make_importable(path.parent, shipped_configs())
    spec = importlib.util.spec_from_file_location(f"fgis_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={argument}: no Python file; name one such as configs/ukbench.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(
                f"--config={argument}: {path} defines no get_config(); see configs/ukbench.py for its shape"
            )
        if variant and not inspect.signature(get_config).parameters:
            raise UserError(f"--config={argument}: {path} has no variants; leave out ':{variant}'")
        config: Any = get_config(variant) if variant else get_config()
    except UserError:
        raise
    except Exception as error:  # whatever the code of the file raises is for its author to correct
        reason = " ".join(str(error).split())
        raise UserError(f"--config={argument}: {_place(error, path)}{type(error).__name__}: {reason}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config={argument}: get_config() returns {type(config).__name__}; return a ConfigDict")
    return config.lock()


def _make_importable(*folders: Path) -> None:
    """Makes ``configs`` the name under which a configuration imports others: first beside itself, then the shipped."""
    package: Any = sys.modules.setdefault("configs", types.ModuleType("configs"))
    package.__path__ = [*dict.fromkeys([*map(str, folders), *getattr(package, "__path__", [])])]


def _place(error: Exception, path: Path) -> str:
    """``FILE:LINE: `` of the last line of the configuration that an error passed through."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: "
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).resolve() == path.resolve():
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f"{path}:{lines[-1]}: " if lines else ""
