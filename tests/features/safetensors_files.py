"""Safetensors files for tests, written byte by byte, and small networks of every family."""

import json
import struct

import numpy as np

from fgis.features.backbones import BACKBONES
from fgis.features.backbones.transformer_files import FAMILIES, file_names, random_weights, tower_shapes, towers

TINY = {  # in place of a network: {name: (options, channels)}
    "dinov2_s14": ({"width": 128, "depth": 2, "positions": 26}, 128),
    "dinov2_s14_registers": ({"width": 128, "depth": 2, "registers": 4, "antialias": True, "positions": 26}, 128),
    "dinov3_s16": ({"width": 128, "depth": 2}, 128),
    "siglip2_b16": ({"width": 128, "depth": 2, "patch": 16, "positions": 16, "text_width": 128}, 128),
    "clip_b32": ({"width": 128, "depth": 2, "patch": 32, "positions": 5, "projection": 96, "text_width": 64}, 96),
}
PIECES = 600


def shrink(monkeypatch):
    """Makes the networks of ``TINY`` small; text towers get two blocks and 600 pieces."""
    for name, (options, channels) in TINY.items():
        tiny = BACKBONES[name]._replace(options=options, channels=channels)
        monkeypatch.setitem(BACKBONES, name, tiny)
    for name, family in FAMILIES.items():
        if family.text:
            small = family.text._replace(depth=2, vocabulary=PIECES, positions=12)
            monkeypatch.setitem(FAMILIES, name, family._replace(text=small))


def safetensors_bytes(tensors, entries=None, metadata=None):
    """A file of these arrays, float32 unless they are float16; ``entries`` replace those of the header."""
    header, data = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, value in tensors.items():
        kind = {"float32": "F32", "float16": "F16", "int64": "I64"}[str(value.dtype)]
        place = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": place}
        data += value.tobytes()
    return header_bytes(header | (entries or {})) + data


def header_bytes(header):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


def random_tensors(name, seed=0):
    """Random weights of a network, of both towers, by the names of its files."""
    backbone, found = BACKBONES[name], {}
    family = FAMILIES[backbone.constructor]
    rng = np.random.default_rng(seed)
    for tower, layout in zip(towers(backbone), (family.layout, family.text_layout)):
        if tower:
            names = file_names(tower, layout)
            for short, value in random_weights(tower_shapes(tower)).items():
                found[names[short]] = value + 0.1 * rng.standard_normal(value.shape, np.float32)
    for long, value in found.items():  # as published: axes of length 1 in front
        last = long.rpartition(".")[2]
        if last in ("cls_token", "probe", "register_tokens", "position_embeddings"):
            found[long] = value.reshape(1, -1, value.shape[-1])
    return found


def write_weights(path, name, change=lambda tensors: tensors):
    """The weights file of a network with random weights; returns its tensors."""
    tensors = change(random_tensors(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(safetensors_bytes(tensors, metadata={"format": "pt"}))
    return tensors


def write_clip_vocabulary(folder, merges=(("s", "o"), ("so", "f"), ("sof", "a</w>"), ("r", "e"), ("re", "d</w>"))):
    """A vocabulary of 600 pieces: bytes, bytes that end words, joined ones, unused ones, and the two marks."""
    from fgis.features.backbones.text_pieces import BYTES

    pieces = [*BYTES.values(), *(one + "</w>" for one in BYTES.values()), *("".join(pair) for pair in merges)]
    pieces += [f"unused{number}" for number in range(PIECES - 2 - len(pieces))]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return numbers
