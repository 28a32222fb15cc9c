"""Shapes are checked while tests run, and four simulated devices stand in for a machine with several."""

import atexit
import contextlib
import os
import shutil
import tempfile

# Tests compile the same few programs again and again: once per session is enough. Workers inherit the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fgis-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads wait for each other where workers share the cores
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"

import pytest
from jaxtyping import install_import_hook

install_import_hook("fgis", "beartype.beartype")

# gRPC reads this when it is loaded; its line about frequent pings would count as an error of the command under test.
os.environ["GRPC_VERBOSITY"] = "NONE"
# Now: on import it closes the handlers of all loggers, and with them the standard error of whatever test is running.
with contextlib.suppress(ImportError):
    import pymilvus  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def one_device():
    """Commands use one of the simulated devices, as on a laptop, unless a test asks for a number of them."""
    from fgis.experiment import build

    real = build.find_devices
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "find_devices", lambda wanted: real("1" if wanted == "all" else wanted))
        yield
