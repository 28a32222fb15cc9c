"""Texts to pieces, by hand; the tokenizers of the published networks are in tests/oracles."""

import json

import pytest

from fgis.errors import UserError
from fgis.features.backbones.text_pieces import load_clip_pieces, load_siglip_pieces, split_words
from tests.features.safetensors_files import PIECES, write_clip_vocabulary

REPOSITORY = "openai/clip-vit-base-patch32"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A red   SOFA\n", ["a", "red", "sofa"]),
        ("it's the dog's: they'll", ["it", "'s", "the", "dog", "'s", ":", "they", "'ll"]),
        ("4x10½ m²", ["4", "x", "1", "0", "½", "m", "²"]),
        ("caf\u0065\u0301!!'s", ["caf\u00e9", "!!'", "s"]),
        ("<|endoftext|>", ["<|", "endoftext", "|>"]),  # a text cannot end itself
        ("紅い ソファー_1", ["紅い", "ソファー", "_", "1"]),
        (" \t", []),
    ],
)
def test_words(text, words):
    assert list(split_words(text)) == words


def test_clip_joins_the_pair_of_the_lowest_rank_first(tmp_path):
    """so, sof, sofa and re, red are pieces; the marks are the last two; what is too long is cut off."""
    numbers = write_clip_vocabulary(tmp_path)
    split = load_clip_pieces(tmp_path, REPOSITORY, 8, PIECES)
    start, end = PIECES - 2, PIECES - 1
    pieces = split("A red sofa")
    assert pieces.numbers.tolist() == [
        start,
        numbers["a</w>"],
        numbers["red</w>"],
        numbers["sofa</w>"],
        end,
        end,
        end,
        end,
    ]
    assert pieces.end == 4
    assert split("sofas").numbers.tolist()[1:4] == [numbers["sof"], numbers["a"], numbers["s</w>"]]
    long = split("é" * 20)  # two bytes each, 0xC3 and 0xA9
    assert long.numbers.tolist() == [start, *[numbers["Ã"], numbers["©"]] * 3, end]
    assert long.end == 7
    assert split("\udcff").end == 2  # what a terminal gave that is no text is a question mark


def test_clip_reads_one_file_as_well_as_two(tmp_path):
    numbers = write_clip_vocabulary(tmp_path / "two")
    merges = (tmp_path / "two" / "merges.txt").read_text().splitlines()[1:]
    expected = load_clip_pieces(tmp_path / "two", REPOSITORY, 8, PIECES)("red sofas").numbers.tolist()
    for name, pairs in (("text", merges), ("pairs", [pair.split(" ") for pair in merges])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": numbers, "merges": pairs}}))
        assert load_clip_pieces(tmp_path / name, REPOSITORY, 8, PIECES)("red sofas").numbers.tolist() == expected


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda folder: (folder / "vocab.json").unlink(), "no tokenizer.json beside the weights, and no vocab"),
        (lambda folder: (folder / "vocab.json").write_text("{"), r"its vocabulary is not that of .* \(Expecting"),
        (lambda folder: (folder / "vocab.json").write_text("[]"), "its vocabulary is not that of the network"),
        (lambda folder: (folder / "vocab.json").write_text('{"a": 0}'), "a pair is joined to a piece that is not"),
        (lambda folder: (folder / "merges.txt").write_text("a\n"), "a pair is joined to a piece that is not"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), r"its vocabulary is not .* \('model'\)"),
        (lambda folder: (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": "b"}, "merges": []}}'),
         "the byte"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_is_missing_or_damaged_is_one_line(tmp_path, change, line):
    write_clip_vocabulary(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=rf"^{tmp_path}: .*{line}.*{REPOSITORY}"):
        load_clip_pieces(tmp_path, REPOSITORY, 8, PIECES)


def test_a_vocabulary_of_another_network_is_refused(tmp_path):
    write_clip_vocabulary(tmp_path)
    with pytest.raises(UserError, match="the network knows 49408 pieces, not 600"):
        load_clip_pieces(tmp_path, REPOSITORY, 77, 49408)


def test_siglip_needs_its_package_and_its_file(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"^the package tokenizers is missing .*; pip install 'fgis\[text\]'$"):
        load_siglip_pieces(tmp_path, "google/siglip2-base-patch16-224", 64, 256_000)
