from tests.lean import no_program_stays, pytest_runtest_setup, pytest_runtest_teardown  # noqa: F401
