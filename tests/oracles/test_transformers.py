"""Transformers and their texts against Hugging Face's: ``pip install -e '.[test,oracles]'``.

The networks are small ones with random weights, written by ``save_pretrained`` and read here: so the names in the files
are checked as well. Nothing is fetched.
"""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.features.backbones import BACKBONES, PREPROCESSING, load_backbone
from fgis.features.backbones.text_pieces import load_clip_pieces, load_siglip_pieces
from fgis.features.backbones.text_tower import load_text_encoder
from fgis.features.backbones.transformer_files import load_transformer, towers
from tests.features.safetensors_files import PIECES, TINY, shrink, write_clip_vocabulary

torch = pytest.importorskip("torch", reason="the oracles are an extra of their own: pip install -e '.[oracles]'")
transformers = pytest.importorskip("transformers", reason="the oracles are an extra of their own")

pytestmark = pytest.mark.slow
SIZES = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
FULL = {"intermediate_size": 512, **SIZES}


def text_sizes(width):
    return {
        "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": width // 64, "vocab_size": PIECES,
        "intermediate_size": 4 * width, "max_position_embeddings": 12,
    }  # fmt: skip


def build(name):
    """The small network of ``TINY`` in transformers, with random weights in place of its first ones."""
    t = transformers
    if name == "dinov2_s14":
        model = t.Dinov2Model(t.Dinov2Config(**SIZES, patch_size=14, image_size=70))
    elif name == "dinov2_s14_registers":
        model = t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**SIZES, patch_size=14, image_size=70))
    elif name == "dinov3_s16":
        model = t.DINOv3ViTModel(t.DINOv3ViTConfig(**FULL, num_register_tokens=4))
    elif name == "siglip2_b16":
        vision = {**FULL, "patch_size": 16, "image_size": 64}
        model = t.SiglipModel(t.SiglipConfig(text_config=text_sizes(128), vision_config=vision))
    else:
        vision = {**FULL, "patch_size": 32, "image_size": 64}
        text = text_sizes(64) | {"eos_token_id": PIECES - 1}
        model = t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=96))
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            noise = torch.randn_like(value)
            value.copy_(noise / value[0].numel() ** 0.5 if value.ndim > 1 else value + 0.1 * noise)
    return model.eval()


def vectors(output):
    """transformers 5 gives an output with several fields where transformers 4 gave the vectors."""
    return (output if isinstance(output, torch.Tensor) else output.pooler_output).numpy()


@pytest.mark.parametrize("name", TINY)
def test_images(name, tmp_path, monkeypatch):
    """At the size of the positions and at others, smaller and larger: within 1e-4 (values reach 4)."""
    shrink(monkeypatch)
    model, backbone = build(name), BACKBONES[name]
    model.save_pretrained(tmp_path)
    apply, params, _ = load_backbone(name, str(tmp_path))
    both = jax.jit(lambda params, images: (apply(params, images), apply(params, images, token=True)))
    for rows, columns in ((4, 4), (5, 5), (2, 7)):
        shape = (2, rows * backbone.multiple, columns * backbone.multiple, 3)
        images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        prepared = np.array(PREPROCESSING[backbone.preprocessing](jnp.float32(images)))
        pixels = torch.from_numpy(prepared).permute(0, 3, 1, 2)
        found, token = (np.asarray(one) for one in both(params, images))
        with torch.no_grad():
            if name.startswith("dino"):
                tokens = model(pixels).last_hidden_state.numpy()
                expected = tokens[:, -rows * columns :].reshape(found.shape)
                np.testing.assert_allclose(token[:, 0, 0], tokens[:, 0], atol=1e-4)
            else:
                expected = vectors(model.get_image_features(pixels, interpolate_pos_encoding=True))[:, None, None]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert np.abs(expected).max() > 0.5


TEXTS = [
    "a red sofa",
    "It's the dog's SOFA!!",
    "caf\u0065\u0301 4x10½",
    "red " * 20,
    "紅いソファー",
    "<|endoftext|> red",
    "!?",
]


def some_texts():
    letters = "sofared'! .,0٣½éÉßñ日本_-\t\n²ǅ👩🏽\u0301" + "stlmdrve"
    generator = random.Random(0)
    return TEXTS + ["".join(generator.choices(letters, k=generator.randrange(1, 12))) for _ in range(400)]


def clip_tokenizer(folder):
    numbers = write_clip_vocabulary(folder)
    merges = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    return transformers.CLIPTokenizer(vocab=numbers, merges=merges)


def test_pieces_of_clip(tmp_path):
    """All but white space alone, and marks in a text, which are words here."""
    theirs, ours = clip_tokenizer(tmp_path), load_clip_pieces(tmp_path, "", 12, PIECES)
    compared = 0
    for text in some_texts():
        if "<|" in text:
            continue
        expected = theirs(text, padding="max_length", max_length=12, truncation=True)["input_ids"]
        pieces = ours(text)
        assert pieces.numbers.tolist() == expected, repr(text)
        assert expected[pieces.end] == PIECES - 1
        compared += 1
    assert compared > 400
    theirs.save_pretrained(tmp_path / "saved")
    one_file = load_clip_pieces(tmp_path / "saved", "", 12, PIECES)
    assert json.loads((tmp_path / "saved" / "tokenizer.json").read_text())["model"]["merges"]
    assert all((one_file(text).numbers == ours(text).numbers).all() for text in TEXTS)


def siglip_tokenizer(folder):
    """Marks, letters, one joined piece, and bytes for what is no piece."""
    pieces = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"adefors",
    ]
    pieces += ["re", "red", "▁red"]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    merges = [("r", "e"), ("re", "d"), ("▁", "red")]
    tokenizer = transformers.Siglip2Tokenizer(vocab=numbers, merges=merges, padding_side="right")
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_pieces_of_siglip(tmp_path):
    """In lower case; the end stays where a text is cut off; nothing but filling follows it."""
    theirs, ours = siglip_tokenizer(tmp_path), load_siglip_pieces(tmp_path, "", 12, PIECES)
    for text in some_texts():
        expected = theirs(text.lower(), add_special_tokens=False)["input_ids"][:11]
        pieces = ours(text)
        assert pieces.numbers.tolist() == [*expected, 1, *[0] * (11 - len(expected))]
        assert pieces.numbers[pieces.end] == 1
    assert ours("a Red sofa").numbers.tolist()[1:2] == [theirs.convert_tokens_to_ids("▁red")]


@pytest.mark.parametrize("name", ["clip_b32", "siglip2_b16"])
def test_texts(name, tmp_path, monkeypatch):
    """From a text to its vector, within 1e-4."""
    shrink(monkeypatch)
    model = build(name)
    model.save_pretrained(tmp_path)
    make, split = (clip_tokenizer, load_clip_pieces) if name == "clip_b32" else (siglip_tokenizer, load_siglip_pieces)
    make(tmp_path)
    encode = load_text_encoder(name, str(tmp_path)).encode
    for text in TEXTS:
        numbers = split(tmp_path, "", 12, PIECES)(text).numbers
        with torch.no_grad():
            expected = vectors(model.get_text_features(torch.from_numpy(numbers)[None]))
        np.testing.assert_allclose(encode(text), expected, atol=1e-4)
        assert np.abs(expected).max() > 0.5


@pytest.mark.parametrize("name", [name for name, one in BACKBONES.items() if one.load is load_transformer])
def test_parameters_are_those_of_the_published_configuration(name):
    """Counted by transformers, without memory; a network has no token that hides patches in training."""
    width, patch = BACKBONES[name].options["width"], BACKBONES[name].multiple
    sizes = {"hidden_size": width, "num_hidden_layers": BACKBONES[name].options["depth"],
             "num_attention_heads": width // 64, "patch_size": patch}  # fmt: skip
    t = transformers
    with torch.device("meta"):
        if name.startswith("dinov2"):
            kind = "Dinov2WithRegisters" if name.endswith("registers") else "Dinov2"
            model = getattr(t, f"{kind}Model")(getattr(t, f"{kind}Config")(**sizes, image_size=518))
        elif name.startswith("dinov3"):
            config = t.DINOv3ViTConfig(**sizes, intermediate_size=4 * width, num_register_tokens=4)
            model = t.DINOv3ViTModel(config)
        elif name.startswith("siglip"):
            model = t.SiglipVisionModel(t.SiglipVisionConfig(**sizes, intermediate_size=4 * width))
        else:
            config = t.CLIPVisionConfig(**sizes, intermediate_size=4 * width, projection_dim=BACKBONES[name].channels)
            model = t.CLIPVisionModelWithProjection(config)
    counted = sum(value.numel() for key, value in model.named_parameters() if "mask_token" not in key)
    assert counted == BACKBONES[name].parameters
    tower, acts = towers(BACKBONES[name])[0], {"gelu_pytorch_tanh": "gelu_tanh"}
    assert tower.epsilon == model.config.layer_norm_eps
    assert tower.activation == acts.get(model.config.hidden_act, model.config.hidden_act)
