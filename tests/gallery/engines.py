"""Whether Milvus is installed.

It is imported here, before any test runs: pymilvus closes the streams of all logging handlers when it is imported, and
those of a running test are pytest's own.
"""

from contextlib import suppress

import pytest

with suppress(ImportError):
    import pymilvus  # noqa: F401


def needs_milvus() -> None:
    """Skips the test where it is not."""
    for name in ("pymilvus", "milvus_lite"):
        pytest.importorskip(name, reason=f"{name} is not installed; pip install '.[engines]'")
