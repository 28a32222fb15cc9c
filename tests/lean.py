"""Tests that compile many small programs and run each a few times leave out what makes these run faster.

Two conftest.py take this over for the tests of their folders: quick tests there are compiled so, and slow ones that are
marked ``lean``. Other slow tests see programs as users do. What is compared digit for digit is compiled in one way
within a test.
"""

import jax
import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    lean = item.get_closest_marker("lean") is not None or item.get_closest_marker("slow") is None
    jax.config.update("jax_disable_most_optimizations", lean)


@pytest.fixture(scope="package", autouse=True)
def no_program_stays():
    """Programs that were compiled in this way are not for the tests of other folders: their last bits differ."""
    yield
    jax.clear_caches()


def pytest_runtest_teardown(item):
    jax.config.update("jax_disable_most_optimizations", False)
