"""Labels of images: their numbers, their names, and the coarse labels that hold them."""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def number_labels(texts: Sequence[str]) -> tuple[list[int], tuple[str, ...] | None]:
    """Texts as integers, where all are such and fit 64 bits; else the index of each in sorted order, and the names."""
    if all(re.fullmatch(r"[+-]?\d{1,19}", text) and abs(int(text)) < 2**63 for text in texts):
        return [int(text) for text in texts], None
    names = tuple(sorted(set(texts)))
    index = {text: i for i, text in enumerate(names)}
    return [index[text] for text in texts], names


def find_split(labels: Int[np.ndarray, " n"], coarse: Int[np.ndarray, " n"]) -> tuple[int, int] | None:
    """Two rows of one label whose coarse labels differ; None where each coarse label holds whole labels.

    >>> find_split(np.array([4, 7, 4]), np.array([0, 0, 1]))
    (0, 2)
    """
    _, first, fine = np.unique(labels, return_index=True, return_inverse=True)
    apart = np.flatnonzero(coarse != coarse[first[fine]])
    return (int(first[fine[apart[0]]]), int(apart[0])) if len(apart) else None


def find_unnamed(names: Sequence[str], labels: np.ndarray) -> int | None:
    """The first of the labels that has no name; None where ``names`` cover them.

    >>> find_unnamed(("cup", "pear"), np.array([1, 0, 2]))
    2
    """
    outside = labels[(labels < 0) | (labels >= len(names))]
    return int(outside[0]) if len(outside) else None
