"""What ``report.json`` contains, beside the figures: its version and those of the packages that figures depend on."""

import importlib.metadata
import platform

VERSION = 1  # of the layout of report.json: keys may be added to it, not renamed
PACKAGES = ("fgis", "jax", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a figure depends on, by name."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
