"""A deep network that is trained with its head: what it computes, how fast it moves, and the commands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgis.distances import DISTANCES
from fgis.features.description import Settings, describe, load_extractor, load_trainable
from fgis.learning import checkpoint, heads, losses, miners, objectives, optimizers
from fgis.learning.recipe import Strategy, make_recipe, make_runs
from fgis.learning.train import TrainingData, train
from fgis.learning.trained_network import NETWORK, Network, with_network
from fgis.main import main
from tests.tiny import CONFIG, SMALL

SIDE, FEATURES = 4, 5
DATA = np.random.default_rng(0).random((24, FEATURES + 3 * SIDE**2), np.float32)
COLOURS = DATA[:, FEATURES:].reshape(-1, SIDE**2, 3).mean(1)
LABELS = np.arange(24) // 4


def linear():
    """A network of one layer, on the mean colour."""
    weights = {"w": np.random.default_rng(1).normal(size=(3, FEATURES)).astype(np.float32)}
    return Network(lambda params, images: images.mean((1, 2)) @ params["w"] / 255, weights, SIDE)


def test_the_head_sees_what_the_network_computes_in_place_of_stored_features():
    network, inner = linear(), heads.mlp(widths=(3,), dropouts=())
    head = with_network(inner, network)
    variables = head.init(jax.random.key(0), DATA.shape[1:], head.fit(DATA))
    expected = inner.apply({"params": variables["params"]}, jnp.asarray(COLOURS @ network.params["w"]))
    keys = jax.random.split(jax.random.key(1), len(DATA))
    for own in (None, keys):
        np.testing.assert_allclose(head.apply(variables, jnp.asarray(DATA), own), expected, rtol=1e-5)
    assert (np.asarray(expected) > 0).any()


def test_what_else_the_head_takes_follows_the_copy():
    inner = heads.deep_ranking(pixels=(8,), width=6, shift=0)
    small = np.random.default_rng(2).random((24, 3 * 8**2), np.float32)
    x = np.concatenate([DATA, small], axis=1)
    head = with_network(inner, linear())
    variables = head.init(jax.random.key(0), x.shape[1:], head.fit(x))
    seen = jnp.concatenate([COLOURS @ linear().params["w"], small], axis=1)
    expected = inner.apply({"params": variables["params"]}, seen)
    np.testing.assert_allclose(head.apply(variables, jnp.asarray(x)), expected, rtol=1e-5)


def test_a_fit_is_to_what_the_network_computes():
    inner = heads.residual(rank=2, whiten=0.1)
    fitted, expected = with_network(inner, linear()).fit(DATA), inner.fit(COLOURS @ linear().params["w"])
    assert (fitted.pop(NETWORK)["w"] == linear().params["w"]).all()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), fitted, expected)


def trained(rate):
    strategy = Strategy(
        head=with_network(heads.mlp(widths=(4,), dropouts=(), final="normalize"), linear()),
        objective=objectives.mined(miners.batch_hard, losses.soft_margin, DISTANCES["cosine"]),
        optimizer=optimizers.adam(learning_rate=0.1), network_rate=rate,
    )  # fmt: skip
    recipe, data = make_recipe(strategy, DATA.shape[1]), TrainingData(jnp.asarray(DATA), LABELS)
    runs = make_runs(strategy, data, [(0, np.arange(24)), (1, np.arange(20))])
    return train(recipe, runs, data, steps=1, record_every=1).params


def test_the_network_moves_at_its_own_rate():
    """Under Adam, whose steps do not depend on the size of gradients."""
    whole, tenth, frozen = (trained(rate) for rate in (1.0, 0.1, 0.0))
    start = linear().params["w"]
    moved = whole[NETWORK]["w"] - start
    assert (np.abs(moved).max(axis=(1, 2)) > 1e-4).all()  # in both runs
    np.testing.assert_allclose(tenth[NETWORK]["w"] - start, 0.1 * moved, rtol=1e-2, atol=1e-6)
    assert (frozen[NETWORK]["w"] == start).all()
    jax.tree.map(np.testing.assert_array_equal, whole["params"], tenth["params"])


def test_a_copy_at_the_size_of_the_network_gives_the_stored_features():
    settings = Settings("mobilenet_075", (64, 64), weights="none", pixels=(64,))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8))
    row = describe(load_extractor(settings), settings, image)
    apply, params = load_trainable(settings, 64)
    size = row.shape[1] - 3 * 64**2
    found = jax.jit(apply)(params, jnp.asarray(255 * row[:, size:].reshape(1, 64, 64, 3)))
    np.testing.assert_allclose(found, row[:, :size], rtol=1e-4, atol=1e-5)
    # Keras says 1,816,560 of 1,832,976 parameters are trained: the others are means and variances.
    assert sum(leaf.size for leaf in params) == 1_816_560


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for label in range(6):
        colour = rng.integers(60, 200, 3)
        for view in range(4):
            place = tmp_path / "photos" / f"{label}" / f"{view}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(colour + rng.normal(0, 30, (40, 40, 3)), 0, 255).astype(np.uint8)).save(place)
    return tmp_path / "photos"


def flags(photos, *more):
    return [
        CONFIG, *SMALL, "--config.features.collection=folder", f"--config.features.images={photos}",
        f"--config.features.path={photos.parent / 'x.h5'}", "--config.features.backbone=efficientnet_lite0",
        "--config.features.weights=none", "--config.features.image_size=(32,32)", "--config.features.layer=_blocks.0",
        "--config.evaluation.published=()",
        "--config.evaluation.transfer=", "--config.folds=0", "--config.seeds=1", "--config.train.total_steps=2",
        "--config.train.checkpoint_every_steps=2", "--config.sampler.pk.classes=3", "--config.sampler.pk.per_class=2",
        "--config.features.pixels=(32,)", "--config.train.network_rate=0.1", *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_network_is_trained_and_evaluated_from_the_command_line(photos, tmp_path, capsys):
    assert main([*flags(photos), "--mode=extract"]) == 0
    run = f"--workdir={tmp_path / 'run'}"
    assert main([*flags(photos), run]) == 0, capsys.readouterr().err
    first = checkpoint.restore_params(tmp_path / "run")[1][NETWORK]
    start = load_trainable(Settings("efficientnet_lite0", (32, 32), weights="none"), 32)[1]
    changed = [bool((one[0] != other).any()) for one, other in zip(first, start, strict=True)]
    assert 4 <= sum(changed) < len(changed) / 4  # the layers up to config.features.layer
    report = tmp_path / "run" / "report.json"
    before = report.read_bytes()
    report.unlink()
    assert main([*flags(photos), run, "--mode=evaluate"]) == 0
    assert report.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (["--config.features.pixels=()"], "write the side of these before (), such as (96,)"),
        (["--config.features.pixels=(32,57)"], "config.features.pixels: (32, 57) found, but config.train.network_rate"),
        (["--config.features.backbone="], "config.features.backbone: '' found, but config.train.network_rate trains"),
        (["--config.features.pixels=(16,)"], "config.features.pixels: copies of 16 pixels found, and"),
        (["--config.features.backbone=hog"], "config.features.backbone: 'hog' is no network that can be trained"),
        (["--config.train.network_rate=-1"], "config.train.network_rate: -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_in_one_line(photos, tmp_path, capsys, more, line):
    assert main([*flags(photos, *more), f"--workdir={tmp_path}"]) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert line in found
