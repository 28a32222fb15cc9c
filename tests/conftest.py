"""Shapes are checked while tests run, and four simulated devices stand in for a machine with several."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

from jaxtyping import install_import_hook

install_import_hook("fgis", "beartype.beartype")
