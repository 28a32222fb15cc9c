"""Annotations as bounds: what a value must be, and how a refusal says so."""

import math
from typing import Annotated, Any, Literal

import pytest

from fgis.ranges import (
    Count,
    Finite,
    NonNegative,
    Positive,
    Range,
    Share,
    ShareBelowOne,
    Whole,
    conform,
    hyperparameters,
    nearest,
    require,
)

ACCEPTED = [
    (Count, 1, 1),
    (Whole, 0, 0),
    (Positive, 1, 1.0),
    (NonNegative, 0, 0.0),
    (Share, 1, 1.0),
    (ShareBelowOne, 0.999, 0.999),
    (Finite, -1e30, -1e30),
    (float, 2, 2.0),
    (int, -7, -7),
    (bool, False, False),
    (str, "", ""),
    (Literal["drop", "hardest"], "drop", "drop"),
    (tuple[Count, ...], [3, 1], (3, 1)),
    (float | None, None, None),
    (Annotated[float, Range(0)] | None, math.inf, math.inf),
    (Any, object, object),
]
REFUSED = [
    (Count, 0, "0 found; write a whole number from 1 to 2147483647"),
    (Count, 2**40, "from 1 to 2147483647"),
    (Count, 1.0, "1.0 found; write a whole number"),
    (Count, True, "True found; write a whole number"),
    (Positive, 0.0, "write a number above 0"),
    (Positive, math.nan, "nan found"),
    (Positive, math.inf, "inf found"),
    (NonNegative, -0.5, "write a number of at least 0"),
    (Share, 1.5, "write a number from 0 to 1"),
    (ShareBelowOne, 1.0, "write a number from 0 to below 1"),
    (Finite, math.inf, "write a number that is finite"),
    (float, "1", "'1' found; write a number that is finite"),
    (bool, 1, "1 found; write True or False"),
    (str, 3, "3 found; write a text"),
    (Literal["drop", "hardest"], "dropp", "did you mean 'drop'?"),
    (Literal[1, 2], True, "True found"),
    (tuple[Count, ...], 3, "3 found; write a list"),
    (tuple[Count, ...], (3, 0), "0 found"),
    (Positive | None, -1, "-1 found; write a number above 0 or None"),
]


@pytest.mark.parametrize(("annotation", "value", "found"), ACCEPTED, ids=str)
def test_what_conforms_comes_back_in_the_type_of_the_annotation(annotation, value, found):
    result = conform(annotation, value)
    assert result == found
    assert type(result) is type(found)


@pytest.mark.parametrize(("annotation", "value", "line"), REFUSED, ids=str)
def test_what_does_not_conform_is_told_what_was_found_and_what_to_write(annotation, value, line):
    with pytest.raises(ValueError) as error:
        conform(annotation, value)
    assert line in str(error.value)


def test_a_range_holds_its_bounds_where_it_says_so():
    assert Range(0, 1).holds(0)
    assert not Range(0, 1, low_included=False).holds(0)
    assert not Range(0, 1, high_included=False).holds(1)
    assert not Range().holds(math.nan)
    assert not Range(0, 1).holds(10**400)
    assert Range(high=3).words() == "of at most 3"


def test_hyperparameters_are_keyword_only_parameters():
    def strategy(data, more=3, *, k: Count = 2, name: str): ...

    found = hyperparameters(strategy)
    assert list(found) == ["k", "name"]
    assert (found["k"].annotation, found["k"].default) == (Count, 2)


def test_require_names_the_argument():
    def search(queries, *, k: Count = 2): ...

    require(search, k=3)
    with pytest.raises(ValueError, match="k: 0 found; write a whole number"):
        require(search, k=0)


def test_nearest_lists_what_is_known():
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
