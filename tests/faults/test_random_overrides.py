import pytest

from tests.faults import random_overrides


def test_random_overrides_are_refused_in_one_line_or_accepted(capsys):
    assert random_overrides.main(["--count=300", "--train-every=1000000"]) == 0
    assert set(eval(capsys.readouterr().out)) == {"refused", "accepted"}


@pytest.mark.slow
def test_accepted_overrides_train_to_finite_figures_or_say_why_not(capsys):
    assert random_overrides.main(["--count=16", "--train-every=2", "--seed=3"]) == 0
    assert eval(capsys.readouterr().out).get("trained", 0) >= 1
