"""Transformers: published sizes, positions by hand, and every family against a plain NumPy forward of its files."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from fgis.features.backbones import BACKBONES, PREPROCESSING, load_backbone, transformer
from fgis.features.backbones.transformer_files import load_transformer, tower_shapes, towers
from tests.features.safetensors_files import TINY, shrink, write_weights

PUBLISHED = {  # parameters of both towers, with the temperature and the bias of training; millions where rounded
    "clip_b32": 151_277_313, "clip_b16": 149_620_737, "clip_l14": 427_616_513, "siglip2_b16": 375_187_970,
    "dinov2_s14": 22.06e6, "dinov2_b14": 86.58e6, "dinov3_s16": 21.6e6, "dinov3_b16": 85.7e6,
}  # fmt: skip
NETWORKS = [name for name, backbone in BACKBONES.items() if backbone.load is load_transformer]


def count(tower):
    return sum(math.prod(shape) for shape in tower_shapes(tower).values())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_sizes_are_those_published(name):
    backbone = BACKBONES[name]
    image, text = towers(backbone)
    assert backbone.parameters == count(image)
    both = count(image) + (count(text) if text else 0)
    further = {"clip": 1, "siglip": 2}.get(backbone.constructor, 0)
    if name in PUBLISHED:
        assert both + further == pytest.approx(PUBLISHED[name], rel=0 if further else 2e-3)
    assert backbone.multiple == backbone.smallest == image.patch
    assert backbone.image_size == (224, 224)
    if image.positions:
        side = (518 if name.startswith("dinov2") else 224) // image.patch
        assert image.positions == side * side + image.class_token


@pytest.mark.parametrize("name", NETWORKS)
def test_intermediate_shapes(name, monkeypatch):
    """Tokens: the class token, the registers, and one for each of the patches; 64 channels for a head."""
    backbone = BACKBONES[name]
    tower, _ = towers(backbone)
    seen, blocks = [], transformer.run_blocks

    def watch(tower, weights, x, **options):
        seen.append((x.shape, None if options.get("rotary") is None else options["rotary"].shape))
        return blocks(tower._replace(depth=1), weights, x, **options)

    monkeypatch.setattr(transformer, "run_blocks", watch)
    weights = {short: jax.ShapeDtypeStruct(shape, np.float32) for short, shape in tower_shapes(tower).items()}
    images = jax.ShapeDtypeStruct((2, 224, 448, 3), np.float32)
    shape = jax.eval_shape(lambda w, x: transformer.run_image_tower(tower, w, x), weights, images).shape
    rows, columns = 224 // tower.patch, 448 // tower.patch
    first = {"dinov3": 5, "siglip": 0}.get(backbone.constructor, 1) + 4 * name.endswith("registers")
    turned = (rows * columns, 64) if backbone.constructor == "dinov3" else None
    assert seen == [((2, first + rows * columns, tower.width), turned)]
    assert shape == (2, *((rows, columns) if backbone.constructor.startswith("dino") else (1, 1)), backbone.channels)


def test_preprocessing_by_hand():
    x = jnp.array([0.0, 127.5, 255]).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(
        PREPROCESSING["imagenet"](x).ravel(), [-0.485 / 0.229, 0.044 / 0.224, 0.594 / 0.225], rtol=1e-5
    )
    np.testing.assert_allclose(
        PREPROCESSING["clip"](x).ravel(),
        [-0.48145466 / 0.26862954, (0.5 - 0.4578275) / 0.26130258, (1 - 0.40821073) / 0.27577711], rtol=1e-5,
    )  # fmt: skip
    assert {PREPROCESSING[BACKBONES[name].preprocessing].__name__ for name in NETWORKS} == {"imagenet", "clip", "tf"}


def test_cubic_weights_by_hand():
    """From two points to four, the first lies at -0.25: 1.25, .25, .75 and 1.75 from the points -2 ... 1."""
    near = lambda x, a: (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = lambda x, a: a * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = transformer.cubic_weights(2, 4, False)[0]
    a = -0.75  # points beyond the edge, at -2 and -1, are the first point
    np.testing.assert_allclose(weights, [far(1.75, a) + near(0.75, a) + near(0.25, a), far(1.25, a)], rtol=1e-5)
    a = -0.5  # beyond the edge is nothing, and the rest is scaled to a sum of 1
    kept = np.array([near(0.25, a), far(1.25, a)])
    np.testing.assert_allclose(transformer.cubic_weights(2, 4, True)[0], kept / kept.sum(), rtol=1e-5)
    wide = transformer.cubic_weights(8, 2, True)  # four points are one: the filter is four times as wide
    centre = np.abs(np.arange(8) - 1.5) / 4
    kept = np.where(centre <= 1, near(centre, a), np.where(centre < 2, far(centre, a), 0))
    np.testing.assert_allclose(wide[0], kept / kept.sum(), rtol=1e-5)
    for old, new, antialias in ((7, 3, False), (3, 11, True), (5, 5, False)):
        np.testing.assert_allclose(transformer.cubic_weights(old, new, antialias).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(transformer.cubic_weights(5, 5, False), np.eye(5))


def test_rotary_positions_by_hand():
    """Of one row of two patches: the row's centre is 0, the columns' are -1/2 and 1/2, the first frequency is 1."""
    angles = transformer.rotary_angles(1, 2)
    assert angles.shape == (2, 64)
    np.testing.assert_array_equal(angles[:, :16], 0)
    np.testing.assert_allclose(angles[:, 16], [-np.pi, np.pi], rtol=1e-6)
    np.testing.assert_allclose(angles[:, 24], angles[:, 16] / 10, rtol=1e-6)  # 100^(32/64)
    np.testing.assert_array_equal(angles[:, :32], angles[:, 32:])
    x = np.zeros((1, 3, 1, 64), np.float32)
    x[..., 24] = 1
    turned = np.asarray(transformer.rotate(jnp.asarray(x), angles))[0, :, 0]
    assert turned[0, 24] == 1  # the token in front has no place
    angle = np.pi / 10
    np.testing.assert_allclose(turned[1:, [24, 56]], [[np.cos(angle), -np.sin(angle)], [np.cos(angle), np.sin(angle)]])


def reference(name, tensors, images):
    """[b, tokens, d] behind the last normalisation, or SigLIP's tokens before the probe: from the file, in NumPy."""
    kind, tower = BACKBONES[name].constructor, towers(BACKBONES[name])[0]
    t = {key.removeprefix("vision_model."): value.astype(np.float64) for key, value in tensors.items()}
    patch, width, epsilon = tower.patch, tower.width, {"dinov3": 1e-5, "clip": 1e-5}.get(kind, 1e-6)
    stem = {"dinov2": "patch_embeddings.projection", "dinov3": "patch_embeddings"}.get(kind, "patch_embedding")
    kernel, bias = t[f"embeddings.{stem}.weight"], t.get(f"embeddings.{stem}.bias", np.zeros(width))
    rows, columns = images.shape[1] // patch, images.shape[2] // patch
    x = np.zeros((len(images), rows, columns, width))
    for r in range(rows):
        for c in range(columns):
            part = images[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            x[:, r, c] = np.einsum("bhwc,dchw->bd", part, kernel) + bias
    x = x.reshape(len(images), rows * columns, width)
    own = [t[key].reshape(1, -1, width) for key in ("embeddings.cls_token", "embeddings.class_embedding") if key in t]
    key = "embeddings.position_embeddings" if kind == "dinov2" else "embeddings.position_embedding.weight"
    if kind != "dinov3":
        places = t[key].reshape(-1, width)
        side = math.isqrt(len(places))
        down, right = (transformer.cubic_weights(side, n, tower.antialias) for n in (rows, columns))
        grid = places[len(own) :].reshape(side, side, width)
        x = x + np.einsum("rs,ct,std->rcd", down, right, grid).reshape(-1, width)
        own = [one + places[0] for one in own]
    own += [t["embeddings.register_tokens"]] if tower.registers else []
    x = np.concatenate([*(np.repeat(one, len(images), 0) for one in own), x], axis=1)
    norm = lambda name, x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * t[
        f"{name}.weight"] + t[f"{name}.bias"]  # fmt: skip
    linear = lambda name, x: x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)
    act = {
        "clip": lambda x: x / (1 + np.exp(-1.702 * x)),
        "siglip": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    }.get(kind, lambda x: x / 2 * (1 + erf(x / np.sqrt(2))))
    x = norm("pre_layrnorm", x) if kind == "clip" else x
    turn = np.zeros((x.shape[1], 32))
    if kind == "dinov3":
        for n in range(rows * columns):
            for axis, centre in enumerate(((n // columns + 0.5) / rows, (n % columns + 0.5) / columns)):
                for i in range(16):
                    turn[n - rows * columns, 16 * axis + i] = 2 * np.pi * (2 * centre - 1) / 100 ** (i / 16)
    for number in range(tower.depth):
        at = {"dinov2": f"encoder.layer.{number}.", "dinov3": f"layer.{number}."}.get(kind, f"encoder.layers.{number}.")
        names = {
            "dinov2": ("norm1", *(f"attention.attention.{p}" for p in ("query", "key", "value")),
                       "attention.output.dense", "norm2", "mlp.fc1", "mlp.fc2"),
            "dinov3": ("norm1", *(f"attention.{p}_proj" for p in "qkvo"), "norm2", "mlp.up_proj", "mlp.down_proj"),
        }.get(kind, ("layer_norm1", *(f"self_attn.{p}_proj" for p in "qkv"), "self_attn.out_proj", "layer_norm2",
                     "mlp.fc1", "mlp.fc2"))  # fmt: skip
        first, q, k, v, out, second, up, down = (at + one for one in names)
        y = norm(first, x)
        heads = []
        for head in range(width // 64):
            part = slice(64 * head, 64 * head + 64)
            query, key, value = (linear(one, y)[..., part] for one in (q, k, v))
            query, key = (
                np.concatenate([
                    z[..., :32] * np.cos(turn) - z[..., 32:] * np.sin(turn),
                    z[..., 32:] * np.cos(turn) + z[..., :32] * np.sin(turn),
                ], -1)
                for z in (query, key)
            )  # fmt: skip
            heads.append(softmax(query @ key.swapaxes(1, 2) / 8, axis=-1) @ value)
        x = x + linear(out, np.concatenate(heads, -1)) * t.get(f"{at}layer_scale1.lambda1", 1)
        x = x + linear(down, act(linear(up, norm(second, x)))) * t.get(f"{at}layer_scale2.lambda1", 1)
    x = norm({"dinov2": "layernorm", "dinov3": "norm"}.get(kind, "post_layernorm"), x)
    if kind == "clip":
        return x[:, 0] @ t["visual_projection.weight"].T
    if kind == "siglip":
        kernels, biases = (np.split(t[f"head.attention.in_proj_{one}"], 3) for one in ("weight", "bias"))
        q, k, v = (z @ w.T + b for z, w, b in zip((t["head.probe"], x, x), kernels, biases))
        parts = [slice(64 * head, 64 * head + 64) for head in range(width // 64)]
        found = [softmax(q[..., p] @ k[..., p].swapaxes(1, 2) / 8, axis=-1) @ v[..., p] for p in parts]
        y = linear("head.attention.out_proj", np.concatenate(found, -1))
        return (y + linear("head.mlp.fc2", act(linear("head.mlp.fc1", norm("head.layernorm", y)))))[:, 0]
    return x


@pytest.mark.parametrize("name", TINY)
def test_a_network_is_that_of_its_file(name, tmp_path, monkeypatch):
    """At the size of its positions and at another, within 1e-4: patches, class token, or the vector of the image."""
    shrink(monkeypatch)
    tensors = write_weights(tmp_path / "model.safetensors", name)
    apply, params, _ = load_backbone(name, str(tmp_path))
    patch = BACKBONES[name].multiple
    for rows, columns in ((4, 4), (2, 5)):
        images = np.random.default_rng(2).integers(0, 256, (2, rows * patch, columns * patch, 3)).astype(np.uint8)
        prepared = np.asarray(PREPROCESSING[BACKBONES[name].preprocessing](jnp.float32(images)), np.float64)
        expected = reference(name, tensors, prepared)
        both = jax.jit(lambda params, images: (apply(params, images), apply(params, images, token=True)))
        found, token = (np.asarray(one) for one in both(params, images))
        token = token[:, 0, 0]
        if expected.ndim == 2:
            np.testing.assert_allclose(found[:, 0, 0], expected, atol=1e-4)
            np.testing.assert_allclose(found[:, 0, 0], token, atol=1e-6)
        else:
            assert found.shape == (2, rows, columns, 128)
            np.testing.assert_allclose(found.reshape(2, -1, 128), expected[:, -rows * columns :], atol=1e-4)
            np.testing.assert_allclose(token, expected[:, 0], atol=1e-4)
        assert np.abs(expected).max() > 0.3


def test_what_follows_the_end_of_a_text_is_not_seen_by_clip():
    """Of a text tower with a mask: another piece behind the end changes nothing, one before it does."""
    tower = transformer.Tower(64, 1, 1e-5, "quick_gelu", positions=6, output="end", projection=8)
    rng = np.random.default_rng(0)
    weights = {
        short: jnp.asarray(rng.standard_normal(shape, np.float32) / 4) for short, shape in tower_shapes(tower).items()
    }
    tokens = rng.standard_normal((1, 6, 64), np.float32)
    run = lambda tokens: np.asarray(transformer.run_text_tower(tower, weights, jnp.asarray(tokens), jnp.array([3])))
    behind, before = tokens.copy(), tokens.copy()
    behind[:, 4:] *= -1
    before[:, 2] *= -1
    np.testing.assert_allclose(run(behind), run(tokens), atol=1e-6)
    assert np.abs(run(before) - run(tokens)).max() > 1e-3
