"""Weights of transformers: where they are looked for, and files that are not those of the network."""

import numpy as np
import pytest

from fgis.errors import UserError
from fgis.features.backbones import BACKBONES, load_backbone
from fgis.features.backbones.text_tower import load_text_encoder, reads_texts
from fgis.features.backbones.transformer_files import load_transformer
from fgis.features.description import Settings, check_settings
from tests.features.safetensors_files import shrink, write_clip_vocabulary, write_weights


@pytest.fixture
def tiny(monkeypatch):
    shrink(monkeypatch)


def refused(path, reason, name="dinov2_s14"):
    line = rf"^{path}: does not hold weights of {name} \({reason}\); name model.safetensors of "
    return pytest.raises(UserError, match=line + BACKBONES[name].weights_file + "$")


def test_weights_of_another_network_are_refused_in_one_line(tmp_path, tiny):
    """Also those that hold more than is wanted: registers that would be left out change every feature."""
    path = tmp_path / "model.safetensors"
    write_weights(path, "dinov2_s14_registers")
    with refused(path, "it holds embeddings.register_tokens, which the network lacks"):
        load_backbone("dinov2_s14", str(path))
    write_weights(path, "dinov2_s14")
    with refused(path, "embeddings.register_tokens is missing", "dinov2_s14_registers"):
        load_backbone("dinov2_s14_registers", str(path))
    with refused(path, "it holds embeddings.patch_embeddings.projection.bias, which the network lacks", "dinov3_s16"):
        load_backbone("dinov3_s16", str(path))
    with refused(path, "it holds embeddings.cls_token, which the network lacks", "clip_b32"):
        load_backbone("clip_b32", str(path))

    def change(name, value):
        return lambda tensors: tensors | {name: value}

    bias = "encoder.layer.1.mlp.fc1.bias"
    write_weights(path, "dinov2_s14", change(bias, np.zeros(511, np.float32)))
    with refused(path, rf"{bias} has the shape \(511,\), not \(512,\)"):
        load_backbone("dinov2_s14", str(path))
    write_weights(path, "dinov2_s14", change(bias, np.full(512, np.inf, np.float32)))
    with refused(path, f"{bias} holds NaN or infinity"):
        load_backbone("dinov2_s14", str(path))
    places = "embeddings.position_embeddings"
    write_weights(path, "dinov2_s14", change(places, np.zeros((1, 27, 128), np.float32)))  # 26 are no square
    with refused(path, rf"{places} has the shape \(1, 27, 128\), not \(26, 128\)"):
        load_backbone("dinov2_s14", str(path))
    more = {"embeddings.mask_token": np.zeros((1, 128), np.float32), places: np.zeros((1, 10, 128), np.float32)}
    write_weights(path, "dinov2_s14", lambda tensors: tensors | more)  # of a network trained at 42 pixels
    assert len(load_backbone("dinov2_s14", str(path))[1]) == 42  # 2 blocks of 18, and 6
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"^{path}: is no whole safetensors file .* fetch it again$"):
        load_backbone("dinov2_s14", str(path))


def test_half_precision_is_read_as_it_is(tmp_path, tiny):
    path = tmp_path / "model.safetensors"
    halves = write_weights(path, "dinov3_s16", lambda all: {name: one.astype(np.float16) for name, one in all.items()})
    _, params, _ = load_backbone("dinov3_s16", str(path))
    assert {one.dtype for one in params} == {np.dtype(np.float32)}
    assert sum(float(one.sum()) for one in params) == pytest.approx(
        sum(float(one.astype(np.float32).sum()) for one in halves.values()), rel=1e-3
    )


def test_places_where_weights_are_looked_for(tmp_path, tiny, monkeypatch):
    """A file, its folder, a cache of the hub, and the user's own cache; refs/main before other downloads."""
    cache = tmp_path / "home" / "hub"
    folder = cache / "models--facebook--dinov2-small"
    first, second = (folder / "snapshots" / commit / "model.safetensors" for commit in ("aaa", "bbb"))
    for variable in ("HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    line = (
        rf"^weights: no model.safetensors of dinov2_s14 in {cache}; fetch it with 'hf download facebook/dinov2-small "
    )
    with pytest.raises(ValueError, match=line):
        load_backbone("dinov2_s14", "imagenet")
    with pytest.raises(ValueError, match=r"^weights: no model.safetensors of dinov2_s14 in .*gone;"):
        load_backbone("dinov2_s14", str(tmp_path / "gone"))
    write_weights(first, "dinov2_s14")
    write_weights(second, "dinov2_s14", lambda all: {name: one * 2 for name, one in all.items()})
    digests = [load_backbone("dinov2_s14", str(path))[2] for path in (first, second)]
    assert digests[0] != digests[1]
    places = ["imagenet", str(first.parent), str(cache), str(tmp_path / "home")]
    assert [load_backbone("dinov2_s14", place)[2] for place in places] == [digests[0]] * 4
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("bbb\n")
    assert load_backbone("dinov2_s14", "imagenet")[2] == digests[1]
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "elsewhere"))
    assert load_backbone("dinov2_s14", "imagenet")[2] == digests[1]


def test_random_weights_are_seeded(tiny):
    _, first, digest = load_backbone("clip_b32", "none")
    _, second, same = load_backbone("clip_b32", "none")
    assert digest == same
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("dinov2_s14", (224, 230)), r"^image_size: \(224, 230\) found; write sides that are multiples of 14 for dino"),
        (("dinov3_s16", (8, 16)), r"^image_size: \(8, 16\) found; write sides of at least 16 for dinov3_s16"),
        (
            ("vgg16", (224, 224), "imagenet", "squash", "token"),
            "^pooling: 'token' is a vector that vgg16 does not have",
        ),
        (("clip_b32", (224, 224), "imagenet", "squash", "gem"), "^pooling: 'gem' is for maps, and clip_b32 gives one"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        check_settings(Settings(*settings))
    check_settings(Settings("dinov2_s14", (224, 238), pooling="token"))
    check_settings(Settings("clip_b32", [(224, 224), (256, 256)]))


def test_networks_that_read_texts(tmp_path, tiny):
    able = [name for name in BACKBONES if reads_texts(name)]
    assert able == ["siglip2_b16", "clip_b32", "clip_b16", "clip_l14"]
    assert all(BACKBONES[name].load is load_transformer for name in able)
    with pytest.raises(ValueError, match=r"^backbone: dinov2_s14 reads no texts; these do: siglip2_b16, clip_b32"):
        load_text_encoder("dinov2_s14", "imagenet")
    with pytest.raises(ValueError, match=r"^weights: 'none' are random and know no texts; name a file of weights$"):
        load_text_encoder("clip_b32", "none")
    path = tmp_path / "model.safetensors"
    write_weights(path, "clip_b32")
    write_clip_vocabulary(tmp_path)
    encoder = load_text_encoder("clip_b32", str(path))
    assert encoder.weights_sha256 == load_backbone("clip_b32", str(path))[2]
    sofa, same, other = (encoder.encode(text) for text in ("a red sofa", " A  Red sofa ", "a red chair"))
    assert sofa.shape == (1, 96)
    np.testing.assert_array_equal(sofa, same)
    assert np.abs(sofa - other).max() > 0.01
    vision = lambda all: {name: one for name, one in all.items() if "text" not in name}
    write_weights(path, "clip_b32", vision)  # images are described, and a text is refused
    load_backbone("clip_b32", str(path))
    with refused(
        path, "text_model.embeddings.position_embedding.weight is missing|text_model.* is missing", "clip_b32"
    ):
        load_text_encoder("clip_b32", str(path))
