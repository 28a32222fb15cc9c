from itertools import product

import numpy as np
import pytest

from fgis.retrieval.intervals import summarize
from fgis.retrieval.significance import corrected, holm, paired_difference, sign_flip_p


def exact(differences, classes):
    """Every assignment of signs, with the formula of the docstring."""
    sums = np.array([np.nansum(differences[:, classes == c]) for c in np.unique(classes)])
    totals = [abs(np.dot(signs, sums)) for signs in product((-1, 1), repeat=len(sums))]
    return np.mean([total >= abs(sums.sum()) - 1e-9 for total in totals])


def test_four_classes_that_differ_alike_by_hand():
    """Of 16 sign patterns only + + + + and - - - - are as extreme as a gain in every class: p = 1/8."""
    differences = np.array([[1.0, 1.0, 2.0, 1.0, 3.0]])
    classes = np.array([7, 7, 3, 9, 1])
    assert exact(differences, classes) == 0.125
    assert sign_flip_p(differences, classes) == pytest.approx(0.125, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_random_flips_agree_with_all_flips(seed):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 9, 40)
    differences = rng.normal(0.2, 1, (3, 40))
    differences[:, 5] = np.nan
    assert sign_flip_p(differences, classes) == pytest.approx(exact(differences, classes), abs=0.015)


def test_a_class_is_the_unit_and_not_its_images():
    """A hundred images of one class are one piece of evidence; of a hundred classes, a hundred."""
    differences = np.full((2, 100), 0.5)
    assert sign_flip_p(differences, np.zeros(100, int)) == 1
    assert sign_flip_p(differences, np.arange(100)) == 1 / 10_000


def test_seeds_are_averaged_and_do_not_add_evidence():
    rng = np.random.default_rng(0)
    differences, classes = rng.normal(0.3, 1, (1, 24)), np.arange(24) // 2
    one, many = (sign_flip_p(np.repeat(differences, s, axis=0), classes) for s in (1, 10))
    assert one == many


def test_ties_zeros_and_missing_values():
    classes = np.array([0, 0, 1, 1, 2, 2])
    assert sign_flip_p(np.zeros((3, 6)), classes) == 1
    assert np.isnan(sign_flip_p(np.full((3, 6), np.nan), classes))
    # Classes of difference 0 tie with themselves: what is left are two classes, and 2 of 4 patterns are as extreme.
    differences = np.array([[0.1, 0.2, 0.0, 0.0, 0.3, np.nan]])
    assert sign_flip_p(differences, classes) == pytest.approx(0.5, abs=0.02)
    # .1 + .2 and .3 differ by rounding; a pattern that swaps them ties with the observed one.
    assert sign_flip_p(np.array([[0.1, 0.2, -0.3]]), np.arange(3)) == 1


def test_p_is_two_sided_seeded_and_never_zero():
    rng = np.random.default_rng(1)
    differences, classes = rng.normal(0.2, 1, (2, 60)), np.arange(60) // 3
    assert sign_flip_p(differences, classes) == sign_flip_p(-differences, classes)
    assert sign_flip_p(differences, classes) == sign_flip_p(differences, classes, seed=0)
    assert sign_flip_p(differences, classes, seed=1) != sign_flip_p(differences, classes, seed=2)
    assert sign_flip_p(np.ones((1, 60)), np.arange(60), flips=99) == 0.01


def test_under_the_null_p_is_uniform():
    rng = np.random.default_rng(2)
    classes = np.arange(40) // 2
    p = [sign_flip_p(rng.normal(size=(2, 40)), classes, flips=199) for _ in range(400)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)


def test_holm_by_hand():
    """Sorted .01 .02 .03 .04 times 4 3 2 1 is .04 .06 .06 .04; none is below an earlier one: .04 .06 .06 .06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []
    assert holm([0.02]) == [0.02]


def test_holm_keeps_the_order_bounds_and_missing_values():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(rng.integers(1, 12)) ** 3
        adjusted = np.array(holm(p))
        assert (adjusted >= p).all()
        assert (adjusted <= np.minimum(1, len(p) * p)).all()  # never beyond Bonferroni
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
        assert holm(np.insert(p, 1, np.nan))[2:] == holm(p)[1:]
    assert np.isnan(holm([0.01, float("nan")])[1])
    assert holm([0.01, float("nan")])[0] == 0.01


def test_paired_differences_have_the_mean_and_interval_of_summarize():
    rng = np.random.default_rng(0)
    trained, frozen, classes = rng.random((4, 30)), rng.random((1, 30)), np.arange(30) // 3
    trained[2, 4] = np.nan
    found = paired_difference(trained, frozen, classes)
    assert found == {**summarize(trained - frozen, classes), "p": sign_flip_p(trained - frozen, classes)}
    assert paired_difference(trained, trained, classes) == {"mean": 0, "ci95": [0, 0], "p": 1}


def test_a_family_is_corrected_together():
    family = {"a": {"mean": 1.0, "p": 0.01}, "b": {"mean": 2.0, "p": 0.04}}
    assert corrected(family) == {
        "a": {"mean": 1.0, "p": 0.01, "p_holm": 0.02},
        "b": {"mean": 2.0, "p": 0.04, "p_holm": 0.04},
    }
