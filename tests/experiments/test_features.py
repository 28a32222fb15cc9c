"""The table of several networks, on small features of two made-up networks."""

import json

import numpy as np
import pytest

from experiments import features
from fgis.base import FeatureSet
from fgis.features.store import write_features


def write(path, seed, backbone, order=None, objects=8, noise=0.6):
    """Four views of each object; the order of the rows says nothing."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(objects), 4)
    points = np.abs(rng.normal(size=(objects, 12)).repeat(4, axis=0) + noise * rng.normal(size=(4 * objects, 12)))
    order = np.arange(len(labels)) if order is None else order
    ids = np.array([f"{row:03}.jpg" for row in range(len(labels))])
    content = FeatureSet(points[order].astype(np.float32), labels[order], ids[order], {"backbone": backbone})
    write_features(path, content)
    return str(path)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(features, "combinations", lambda: [("local_scaling", (("k", 2),)), ("diffusion", (("k", 3),))])
    monkeypatch.setattr(features, "FOLDS", 2)


def test_whitening_compares_by_the_inverse_covariance():
    """Without strength: cos = x' C^-1 y of centred x and y, divided by their lengths in the same sense."""
    x = (np.random.default_rng(0).normal(size=(60, 5)) * [1, 2, 3, 4, 5]).astype(np.float32)
    whitened = features.learn_whitening(x, 0.0)(x)
    centred = x - x.mean(axis=0)
    products = centred @ np.linalg.inv(np.cov(x.T, bias=True)) @ centred.T
    lengths = np.sqrt(np.diag(products))
    np.testing.assert_allclose(whitened @ whitened.T, products / lengths / lengths[:, None], atol=1e-5)


def test_the_same_images_in_another_order(tmp_path):
    shuffled = np.random.default_rng(1).permutation(32)
    one, two = write(tmp_path / "a.h5", 0, "one"), write(tmp_path / "b.h5", 0, "two", shuffled)
    found = features.read_images([one, two])
    np.testing.assert_array_equal(*found.each)
    assert found.names == ("one", "two")
    other = write(tmp_path / "c.h5", 0, "three", objects=7)
    with pytest.raises(ValueError, match=r"c.h5: lacks 4 of the 32 images of .*a.h5, the first of them '028.jpg'"):
        features.read_images([one, other])


def test_rows_and_what_was_chosen_for_them(few, tmp_path, capsys):
    first = [write(tmp_path / f"a{seed}.h5", seed, f"net{seed}") for seed in range(2)]
    further = [write(tmp_path / f"b{seed}.h5", 9 + seed, f"net{seed}", objects=6) for seed in range(2)]
    arguments = [f"--first={','.join(first)}", f"--further={','.join(further)}", f"--workdir={tmp_path}"]
    assert features.main(arguments) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {row["row"]: row for row in summary["rows"]}
    assert list(rows)[:2] == ["net0", "net1"]
    assert {"together", "together, whitened", "together, whitened, re-ranked", "net0, re-ranked"} <= set(rows)
    assert rows["net0, whitened"]["chosen"].startswith("strength ")
    assert rows["together, re-ranked"]["chosen"] in ("local_scaling k=2", "diffusion k=3")
    assert rows["net0, learnt re-ranking"]["chosen"] == "a regression of what neighbourhoods say"
    assert "minus_first" not in rows["net0"]["metrics"]["ns_score"]
    images = features.read_images(further)
    expected = features.evaluate(
        images.each[0], images.labels, features.protocol(images.labels, ["ns_score"]), ["ns_score"]
    )
    assert rows["net0"]["metrics"]["ns_score"]["mean"] == pytest.approx(expected["ns_score"].mean())
    assert len(list(tmp_path.glob("features.transfer.*"))) == 3


def test_files_that_do_not_go_together_are_one_line(tmp_path, capsys):
    a, b = write(tmp_path / "a.h5", 0, "one"), write(tmp_path / "b.h5", 1, "one")
    assert features.main([f"--first={a},{b}", f"--further={a}"]) == 2
    assert capsys.readouterr().err == "features: --first, --further: 2 and 1 files; name one of each network\n"
