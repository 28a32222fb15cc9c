"""Which values a parameter may take, as annotations: ``temperature: Positive = 0.1``.

What a configuration may set is read off the signature of a function: its keyword-only parameters, their types, ranges
and defaults. The same annotations serve library functions that check their own arguments with ``require``.
"""

import difflib
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """Numbers between two bounds; ``low_included`` and ``high_included`` say whether a bound itself is allowed."""

    low: float = -math.inf
    high: float = math.inf
    low_included: bool = True
    high_included: bool = True

    def holds(self, value: int | float) -> bool:
        """Whether ``value`` lies within the bounds; NaN and infinities never do, unless a bound is that infinity."""
        above = value > self.low or (self.low_included and value == self.low)
        below = value < self.high or (self.high_included and value == self.high)
        return above and below and (isinstance(value, int) or math.isfinite(value) or value in (self.low, self.high))

    def words(self) -> str:
        """The range in words: ``above 0``, ``of at least 1``, ``from 0 to below 1``."""
        low = f"{self.low:.10g}" if self.low_included else f"above {self.low:.10g}"
        high = f"{self.high:.10g}" if self.high_included else f"below {self.high:.10g}"
        if math.isinf(self.low) and math.isinf(self.high):
            return "that is finite"
        if math.isinf(self.high):
            return f"of at least {low}" if self.low_included else low
        if math.isinf(self.low):
            return f"of at most {high}" if self.high_included else high
        return f"from {low} to {high}"


FINITE = Range(low_included=False, high_included=False)
Finite = Annotated[float, FINITE]
Positive = Annotated[float, Range(0, low_included=False, high_included=False)]
NonNegative = Annotated[float, Range(0, high_included=False)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, high_included=False)]
LARGEST = 2**31 - 1  # devices count in 32 bits
Count = Annotated[int, Range(1, LARGEST)]
Whole = Annotated[int, Range(0, LARGEST)]


class Parameter(NamedTuple):
    """One hyperparameter of a function: its annotation, and its default (``inspect.Parameter.empty`` without one)."""

    annotation: Any
    default: Any


@functools.cache
def hyperparameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The keyword-only parameters of ``function`` by name: what a configuration may set.

    >>> def loss(distance, *, margin: Positive = 0.2): ...
    >>> {name: parameter.default for name, parameter in hyperparameters(loss).items()}
    {'margin': 0.2}
    """
    hints = get_type_hints(function, include_extras=True)
    return {
        name: Parameter(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def conform(annotation: Any, value: Any) -> Any:
    """``value`` as ``annotation`` wants it: whole numbers become floats where these are asked for, lists tuples.

    Understands ``bool``, ``int``, ``float``, ``str``, ``Literal``, ``Annotated`` with a ``Range``, ``tuple[X, ...]``,
    unions and ``Any``. Numbers without a range have to be finite.

    Raises:
      ValueError: ``value`` is of another type or outside of the range; the message says what was found and is wanted.

    >>> conform(Positive, 1), conform(tuple[Count, ...], [8, 4])
    (1.0, (8, 4))
    >>> conform(Positive, 0)
    Traceback (most recent call last):
    ValueError: 0 found; write a number above 0
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, UnionType):
        return _conform_to_any(arguments, value)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) not in {isinstance(one, bool) for one in arguments}:
            raise ValueError(f"{value!r} found; {nearest(str(value), map(str, arguments))}")
        return value
    if origin is tuple:
        return _conform_to_tuple(arguments[0], value)
    bounds = FINITE
    if origin is Annotated:
        annotation, bounds = arguments[0], next((one for one in arguments[1:] if isinstance(one, Range)), FINITE)
    if annotation is type(None) and value is None:
        return None
    if annotation in (bool, str) and isinstance(value, annotation):
        return value
    is_number = annotation in (int, float) and isinstance(value, int | annotation) and not isinstance(value, bool)
    if is_number and bounds.holds(value):
        return annotation(value)
    raise ValueError(f"{value!r} found; write {_wanted(annotation, bounds)}")


def require(function: Callable[..., Any], **values: Any) -> None:
    """Raises ``ValueError`` where a value is not what the annotation of that parameter of ``function`` allows."""
    hints = get_type_hints(function, include_extras=True)
    for name, value in values.items():
        try:
            conform(hints[name], value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about a wrong ``word``: the nearest right one, and all that are known.

    >>> nearest("semihard", ["batch_hard", "semi_hard"])
    "did you mean 'semi_hard'? known: batch_hard, semi_hard"
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(known)}"


def _conform_to_any(annotations: tuple[Any, ...], value: Any) -> Any:
    reasons = []
    for one in annotations:
        try:
            return conform(one, value)
        except ValueError as error:
            reasons.append(str(error).partition("; write ")[2] or str(error))
    raise ValueError(f"{value!r} found; write {' or '.join(reasons)}")


def _conform_to_tuple(annotation: Any, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} found; write a list such as (1, 2)")
    return tuple(conform(annotation, one) for one in value)


def _wanted(annotation: Any, bounds: Range) -> str:
    words = {bool: "True or False", str: "a text", type(None): "None"}
    if annotation in words:
        return words[annotation]
    kind = "a whole number" if annotation is int else "a number"
    return kind if annotation is int and bounds == FINITE else f"{kind} {bounds.words()}"
