"""Texts to numbers of pieces, as CLIP and SigLIP 2 want them, by the vocabulary that lies beside their weights.

CLIP's is read here: ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``. Pieces are joined from bytes, those first
that were joined first when the vocabulary was made (Sennrich et al., arXiv:1508.07909). SigLIP 2's ``tokenizer.json``
is read by the package ``tokenizers``.
"""

import itertools
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from fgis.errors import UserError

ENDINGS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")  # of English words, pieces of their own
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
JSON, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"


class Pieces(NamedTuple):
    """A text as a transformer reads it."""

    numbers: Int[np.ndarray, " n"]  # of pieces, as many as the network has positions
    end: int  # the place of the piece that ends the text


Split = Callable[[str], Pieces]


class ClipVocabulary(NamedTuple):
    """The pieces of CLIP."""

    numbers: dict[str, int]  # of each piece; a byte is one character
    ranks: dict[tuple[str, str], int]  # of the pairs that are joined; the lowest first


def load_clip_pieces(folder: Path, repository: str, length: int, count: int) -> Split:
    """Load CLIP's vocabulary from a folder.

    Args:
      folder: where the weights lie.
      repository: of the hub, for messages.
      length: positions of the network.
      count: pieces that the network knows.

    Returns:
      A function from a text to its pieces: lower case, white space reduced, cut off where it is too long.

    Raises:
      UserError: the files are missing, damaged, or of another network.
    """
    try:
        vocabulary = _read_clip_files(folder)
        if vocabulary is None:
            raise UserError(
                f"{folder}: no {JSON} beside the weights, and no {VOCABULARY} with {MERGES}, which a text is split by; "
                f"fetch {JSON} of {repository} into that folder"
            )
        start, end = vocabulary.numbers[START], vocabulary.numbers[END]
        if odd := [one for one, number in vocabulary.numbers.items() if type(number) is not int or number < 0]:
            raise ValueError(f"the piece {odd[0][:20]!r} has no whole number from 0 on")
        if max(vocabulary.numbers.values()) != count - 1:
            raise ValueError(f"the network knows {count} pieces, not {max(vocabulary.numbers.values()) + 1}")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{folder}: its vocabulary is not that of the network ({error}); fetch {JSON} of {repository} again"
        ) from error

    def split(text: str) -> Pieces:
        found = [number for word in split_words(text) for number in join_bytes(word, vocabulary)][: length - 2]
        numbers = [start, *found, *[end] * (length - 1 - len(found))]
        return Pieces(np.array(numbers), len(found) + 1)

    return split


def load_siglip_pieces(folder: Path, repository: str, length: int, count: int) -> Split:
    """Load SigLIP 2's vocabulary from a folder; arguments and errors are those of ``load_clip_pieces``.

    Texts are put in lower case, end with a piece of their own and are filled up behind it, as when it was trained.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(f"the package tokenizers is missing ({error}); pip install 'fgis[text]'") from error
    path = folder / JSON
    if not path.is_file():
        raise UserError(f"{path}: no such file, which a text is split by; fetch it from {repository} into that folder")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # what the package raises for every kind of damage
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: is no vocabulary ({reason}); fetch it again from {repository}") from error
    end, fill = tokenizer.token_to_id("<eos>"), tokenizer.token_to_id("<pad>")
    if end is None or fill is None or tokenizer.get_vocab_size() > count:
        raise UserError(f"{path}: is not the vocabulary of the network; fetch that of {repository}")
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def split(text: str) -> Pieces:
        found = tokenizer.encode(text.encode("utf-8", "replace").decode().lower(), add_special_tokens=False).ids[
            : length - 1
        ]
        return Pieces(np.array([*found, end, *[fill] * (length - 1 - len(found))]), len(found))

    return split


def split_words(text: str) -> Iterator[str]:
    """Words as CLIP tells them apart: letters, one digit, or other characters without white space between them.

    >>> list(split_words("It's 42 red   sofas!?"))
    ['it', "'s", '4', '2', 'red', 'sofas', '!?']
    """
    text = " ".join(unicodedata.normalize("NFC", text).split()).lower()
    place = 0
    while place < len(text):
        ending = next((one for one in ENDINGS if text.startswith(one, place)), "")
        kind, end = _kind(text[place]), place + 1
        if ending:
            end = place + len(ending)
        elif kind != "N":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind:
            yield text[place:end]
        place = end


def join_bytes(word: str, vocabulary: ClipVocabulary) -> list[int]:
    """The pieces of one word: its bytes, of which neighbours are joined, the pair of the lowest rank first."""
    parts = [BYTES[byte] for byte in word.encode("utf-8", "replace")]
    parts[-1] += WORD_END
    worst = len(vocabulary.ranks)
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(pairs, key=lambda pair: vocabulary.ranks.get(pair, worst))
        if best not in vocabulary.ranks:
            break
        joined: list[str] = []
        for part in parts:  # every such pair, from the left
            if joined and (joined[-1], part) == best:
                joined[-1] += part
            else:
                joined.append(part)
        parts = joined
    return [vocabulary.numbers[part] for part in parts]


def _kind(character: str) -> str:
    """L of letters, N of numbers, O of others, nothing of white space."""
    first = unicodedata.category(character)[0]
    return first if first in "LN" else "" if character.isspace() else "O"


def _visible_bytes() -> dict[int, str]:
    """A printable character for every byte: itself where it is one, else one from 256 on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + number) for number, byte in enumerate(others)}


BYTES = _visible_bytes()


def _read_clip_files(folder: Path) -> ClipVocabulary | None:
    """The vocabulary in a folder; None where it holds none."""
    if (folder / JSON).is_file():
        model: Any = json.loads((folder / JSON).read_text(encoding="utf-8"))["model"]
        numbers, merges = model["vocab"], model["merges"]
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges]
    elif (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        numbers = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
        lines = (folder / MERGES).read_text(encoding="utf-8").splitlines()
        pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    else:
        return None
    if not all(len(pair) == 2 and f"{pair[0]}{pair[1]}" in numbers for pair in pairs):
        raise ValueError("a pair is joined to a piece that is not in it")
    if lacking := [one for one in BYTES.values() for one in (one, one + WORD_END) if one not in numbers]:
        raise ValueError(f"the byte {lacking[0]!r} is missing")
    return ClipVocabulary(numbers, {pair: rank for rank, pair in enumerate(pairs)})
