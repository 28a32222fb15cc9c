"""A share of a job: the i-th of n parts that machines work on without knowing of each other."""

import re
from typing import NamedTuple


class Share(NamedTuple):
    """Which share of the work: ``number`` of ``of``."""

    number: int  # from 1
    of: int


def parse_shard(text: str) -> Share | None:
    """``i/n``: the i-th of n shares; None of an empty text.

    Raises:
      ValueError: the text is none.

    >>> parse_shard("2/8")
    Share(number=2, of=8)
    """
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d{1,4})\s*/\s*(\d{1,4})\s*", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"{text!r} found; write i/n with i from 1 to n, such as 2/8")
    return Share(int(match[1]), int(match[2]))
