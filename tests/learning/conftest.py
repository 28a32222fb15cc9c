"""Quick tests compile many small programs and run each a few times: they leave out what makes these run faster.

Slow tests see programs as users do. What is compared digit for digit is compiled in one way within a test.
"""

import jax
import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    jax.config.update("jax_disable_most_optimizations", item.get_closest_marker("slow") is None)


@pytest.fixture(scope="package", autouse=True)
def no_program_stays():
    """Programs that were compiled in this way are not for the tests of other folders: their last bits differ."""
    yield
    jax.clear_caches()


def pytest_runtest_teardown(item):
    jax.config.update("jax_disable_most_optimizations", False)
