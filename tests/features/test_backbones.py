"""Architectures against published shapes and parameter counts, preprocessing and pooling by hand, weights."""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.errors import UserError
from fgis.features import backbones
from fgis.features.backbones import BACKBONES, POOLINGS, PREPROCESSING, load_backbone, sum_normalised

pytestmark = pytest.mark.slow

PUBLISHED = {  # parameters without the classifier, and the last feature map of a 299 x 299 image
    "vgg16": (14_714_688, (9, 9, 512)),
    "vgg19": (20_024_384, (9, 9, 512)),
    "inception_v3": (21_802_784, (8, 8, 2048)),
    "resnet50": (23_587_712, (10, 10, 2048)),
    "xception": (20_861_480, (10, 10, 2048)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architecture(name):
    parameters, shape = PUBLISHED[name]
    model = backbones.build_model(name, (299, 299))
    assert sum(np.prod(v.shape, dtype=int) for v in model.weights) == parameters
    params = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in model.weights]
    images = jax.ShapeDtypeStruct((2, 299, 299, 3), np.uint8)
    assert jax.eval_shape(lambda p, x: backbones._apply(name, p, x), params, images).shape == (2, *shape)


@pytest.mark.parametrize("name", BACKBONES)
def test_table_states_facts(name):
    backbone = BACKBONES[name]
    model = backbones.build_model(name, (7 * backbone.stride, 9 * backbone.stride))
    assert model.count_params() == backbone.parameters
    rows, columns, channels = model.output_shape[1:]
    assert channels == backbone.channels
    assert abs(rows - 7) <= 2
    assert abs(columns - 9) <= 2
    with pytest.raises(ValueError, match="at least"):
        backbones.build_model(name, (backbone.smallest - 1, 224))


def test_weights_do_not_depend_on_size():
    for name in ("mobilenet_v2", "inception_v3"):
        small, large = (backbones.build_model(name, size) for size in ((96, 128), (299, 331)))
        assert [tuple(v.shape) for v in small.weights] == [tuple(v.shape) for v in large.weights]


def test_preprocessing_by_hand():
    x = jnp.array([[[[255.0, 0.0, 51.0]]]])  # red 255, green 0, blue 51
    np.testing.assert_allclose(PREPROCESSING["caffe"](x)[0, 0, 0], [51 - 103.939, -116.779, 255 - 123.68], rtol=1e-6)
    np.testing.assert_allclose(PREPROCESSING["tf"](x)[0, 0, 0], [1, -1, -0.6], rtol=1e-6)
    assert PREPROCESSING["none"](x) is x


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("vgg16", "vgg16"), ("vgg19", "vgg19"), ("inception_v3", "inception_v3"), ("resnet50", "resnet"),
        ("xception", "xception"), ("mobilenet", "mobilenet"), ("mobilenet_v2", "mobilenet_v2"),
        ("convnext_tiny", "convnext"), ("efficientnet_v2_s", "efficientnet_v2"),
    ],
)  # fmt: skip
def test_preprocessing_is_the_networks_own(name, module):
    x = np.random.default_rng(0).integers(0, 256, (1, 2, 3, 3)).astype(np.float32)
    theirs = getattr(backbones._keras().applications, module).preprocess_input(x.copy())
    np.testing.assert_allclose(
        PREPROCESSING[BACKBONES[name].preprocessing](jnp.asarray(x)), theirs, rtol=1e-5, atol=1e-5
    )


def test_pooling_by_hand():
    x = jnp.array([[[[1.0, -4.0], [2.0, 0.0]], [[3.0, 2.0], [0.0, 4.0]]]])  # channels (1, 2, 3, 0) and (-4, 0, 2, 4)
    np.testing.assert_allclose(POOLINGS["avg"](x), [[1.5, 0.5]])
    np.testing.assert_allclose(POOLINGS["max"](x), [[3, 4]])
    np.testing.assert_allclose(POOLINGS["gem"](x), [[(36 / 4) ** (1 / 3), (72 / 4) ** (1 / 3)]], rtol=1e-6)
    np.testing.assert_array_equal(POOLINGS["spatial"](x), x)
    assert np.isfinite(POOLINGS["gem"](x * 1e20)).all()
    assert np.isfinite(POOLINGS["gem"](x * 0)).all()


def test_scales_are_summed_after_normalisation():
    # (3, 4) has norm 5, (0, 2) norm 2, and the zero vector stays zero instead of becoming NaN
    y = sum_normalised((jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[0.0, 2.0], [0.0, 2.0]])))
    np.testing.assert_allclose(y, [[0.6, 1.8], [0.0, 1.0]], rtol=1e-6)


def test_local_weights_round_trip(tmp_path):
    """A file written by Keras from other weights is what runs, and its digest is the file's."""
    model = backbones.build_model("mobilenet_075", (32, 32))
    rng = np.random.default_rng(5)
    shapes = [tuple(v.shape) for v in model.weights]
    model.set_weights([rng.uniform(0.5, 1, s).astype(np.float32) / np.prod(s) ** 0.5 for s in shapes])
    model.save_weights(tmp_path / "mine.weights.h5")
    apply, params, digest = load_backbone("mobilenet_075", str(tmp_path / "mine.weights.h5"))
    for ours, theirs in zip(params, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs.value)
    images = rng.integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    trainable, other = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))
    expected, _ = jax.jit(model.stateless_call)(trainable, other, images / np.float32(127.5) - 1)
    np.testing.assert_allclose(jax.jit(apply)(params, images), expected, rtol=1e-4, atol=1e-5)
    assert digest == hashlib.sha256((tmp_path / "mine.weights.h5").read_bytes()).hexdigest()


def test_random_weights_are_seeded():
    _, first, one = load_backbone("mobilenet_075", "none")
    _, second, two = load_backbone("mobilenet_075", "none")
    assert one == two
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(
        UserError, match=r"config.features.backbone: 'mobilnet_v2' is unknown; did you mean 'mobilenet_v2'"
    ):
        load_backbone("mobilnet_v2", "none")


def test_bad_weights_files(tmp_path):
    with pytest.raises(UserError, match=r"no file .*gone.h5"):
        load_backbone("mobilenet_v2", str(tmp_path / "gone.h5"))
    (tmp_path / "junk.weights.h5").write_bytes(b"junk")
    with pytest.raises(UserError, match="does not load as weights of mobilenet_v2"):
        load_backbone("mobilenet_v2", str(tmp_path / "junk.weights.h5"))


def test_imagenet_without_network(tmp_path, monkeypatch):
    """The message names the file, where to put it, and why; nothing but one line."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(backbones.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))

    def fail(name, image_size, weights=None):
        if weights:
            raise Exception("URL fetch failure on https://host/resnet50.h5: None -- [Errno -3] no name")
        return original(name, image_size)

    original = backbones._construct
    monkeypatch.setattr(backbones, "_construct", fail)
    with pytest.raises(UserError) as error:
        load_backbone("resnet50", "imagenet")
    text = str(error.value)
    assert "URL fetch failure" in text
    assert str(tmp_path / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5") in text
    assert "\n" not in text


def test_missing_keras(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[backbones\]'"):
        load_backbone("vgg16", "none")
