"""Descriptions without a network: against plain NumPy, by hand, and through an extraction."""

from functools import partial

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fgis.errors import UserError
from fgis.features import vocabulary as vocabularies
from fgis.features.backbones import BACKBONES
from fgis.features.backbones import classical as module
from fgis.features.backbones.classical import bag_of_words, colour_histogram, fisher, hog, lacks_vocabulary, vlad
from fgis.features.collection import load_collection
from fgis.features.description import Settings, check_settings, describe, load_extractor
from fgis.features.extract import extract
from fgis.features.extract_shares import extract_share
from fgis.features.local import Local, sift, verify
from fgis.features.shares import Share
from fgis.features.store import load_features

pytest.importorskip("cv2", reason="OpenCV is not installed")
pytest.importorskip("faiss", reason="faiss is not installed")

PHOTO = np.asarray(Image.fromarray(data.coffee()).resize((240, 160)))
OTHER = np.asarray(Image.fromarray(data.chelsea()).resize((240, 160)))
POINTS = np.random.default_rng(0).random((40, 128)).astype(np.float32)


@pytest.fixture
def points(monkeypatch):
    """Key points of our own in place of SIFT's."""

    def use(descriptors):
        found = Local(np.zeros((len(descriptors), 2), np.float32), np.asarray(descriptors, np.float32))
        monkeypatch.setattr(module, "sift", lambda image: found)

    return use


def test_sift_is_root_sift_of_the_strongest_points():
    plain, root = sift(PHOTO, points=50, root=False), sift(PHOTO, points=50)
    assert plain.descriptors.shape == root.descriptors.shape == (50, 128)
    sums = plain.descriptors.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(root.descriptors, np.sqrt(plain.descriptors / sums), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(root.descriptors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(sift(PHOTO, points=20).points, root.points[:20])
    assert sift(np.full((64, 64, 3), 90, np.uint8)).descriptors.shape == (0, 128)


def test_colours_by_hand():
    """Half red, half blue: hue 0 and 170 of 256 in 16 bins, full saturation and value."""
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, :4, 0] = image[:, 4:, 2] = 255
    found = colour_histogram(image, {}).reshape(16, 4, 4)
    assert found[0, 3, 3] == found[10, 3, 3] == 0.5
    assert found.sum() == 1


def test_hog_sees_edges_and_no_brightness():
    edges = np.zeros((128, 128, 3), np.uint8)
    edges[:, 64:] = 200
    assert hog(edges, {}).shape == (8100,)
    np.testing.assert_allclose(hog(edges // 2, {}), hog(edges, {}), atol=0.02)
    assert np.linalg.norm(hog(edges.transpose(1, 0, 2), {}) - hog(edges, {})) > 1
    assert not hog(np.full((90, 80, 3), 7, np.uint8), {}).any()


def test_bag_of_words_by_hand(points):
    words = np.eye(3, 128, dtype=np.float32)
    held = {"words": words, "occurs": np.array([4, 1, 2]), "images": np.array(4)}
    points(words[[0, 0, 2, 0]] * 0.9)
    hard = partial(bag_of_words, vocabulary=held, nearest=1)
    np.testing.assert_allclose(hard(PHOTO), [0.75, 0, 0.25])
    np.testing.assert_allclose(hard(PHOTO, inverse=True), [0, 0, 1])  # log(4 / 4) = 0
    points(words[[1, 2]])
    np.testing.assert_allclose(hard(PHOTO, inverse=True), [0, 2 / 3, 1 / 3], rtol=1e-6)  # log 4 : log 2
    points(np.zeros((0, 128)))
    assert not bag_of_words(PHOTO, held).any()


def test_soft_assignment_by_hand(points):
    """A key point between two words, .4 from the one and .6 from the other."""
    words = np.zeros((3, 128), np.float32)
    words[1, 0], words[2, 1] = 1, 9
    held = {"words": words, "occurs": np.ones(3), "images": np.array(1)}
    points(0.4 * words[[1]])
    ratio = np.exp((0.4**2 - 0.6**2) / 0.5)
    wanted = np.array([1, ratio, 0]) / (1 + ratio)
    np.testing.assert_allclose(bag_of_words(PHOTO, held, nearest=2, width=0.5), wanted, rtol=1e-5)
    np.testing.assert_allclose(bag_of_words(PHOTO, held, width=0.5), wanted, atol=1e-9)  # the third is too far away


def test_nearest_words_is_a_sort():
    rng = np.random.default_rng(3)
    descriptors, words = (rng.normal(size=(n, 5)).astype(np.float32) for n in (1100, 17))
    squares = ((descriptors[:, None] - words) ** 2).sum(axis=2)
    for count in (1, 3, 99):
        found, near = vocabularies.nearest_words(descriptors, words, (words**2).sum(axis=1) / 2, count)
        order = np.argsort(squares, axis=1)[:, :count]
        np.testing.assert_array_equal(found, order)
        np.testing.assert_allclose(near, np.take_along_axis(squares, order, 1), atol=1e-4)


def test_vlad_by_hand(points):
    """Residuals (3, 4) and (0, 1) to two words, after leaving out all but two components."""
    held = {
        "mean": np.zeros(128, np.float32),
        "components": np.eye(2, 128, dtype=np.float32),
        "words": np.array([[0, 0], [10, 10]], np.float32),
    }
    descriptors = np.zeros((3, 128))
    descriptors[:, :2] = [[3, 4], [10, 10.5], [10, 10.5]]
    points(descriptors)
    np.testing.assert_allclose(vlad(PHOTO, held), np.array([0.6, 0.8, 0, 1]) / np.sqrt(2), rtol=1e-6)
    points(np.zeros((0, 128)))
    assert not vlad(PHOTO, held).any()


def test_fisher_is_the_gradient_of_the_likelihood(points):
    """Against differences of the mean log-likelihood, scaled by the Fisher information of each parameter."""
    rng = np.random.default_rng(1)
    shares, means, variances = np.array([0.3, 0.7]), rng.normal(size=(2, 3)), rng.uniform(0.5, 2, (2, 3))
    held = {
        "mean": np.zeros(128), "components": np.eye(3, 128), "shares": shares, "words": means, "variances": variances,
    }  # fmt: skip
    x = rng.normal(size=(5, 3))
    descriptors = np.zeros((5, 128))
    descriptors[:, :3] = x
    points(descriptors)

    def likelihood(means, deviations):
        one = lambda k: (
            shares[k] * np.prod(np.exp(-((x - means[k]) ** 2) / (2 * deviations[k] ** 2)) / deviations[k], axis=1)
        )
        return np.log(one(0) + one(1)).sum()

    step, wanted, deviations = 1e-5, [], np.sqrt(variances)
    for which, information in ((0, 1.0), (1, 2.0)):
        for k, axis in np.ndindex(2, 3):
            moved = [[means.copy(), deviations.copy()] for _ in range(2)]
            moved[0][which][k, axis] += step
            moved[1][which][k, axis] -= step
            slope = (likelihood(*moved[0]) - likelihood(*moved[1])) / (2 * step)
            wanted.append(slope * deviations[k, axis] / np.sqrt(information * shares[k]))
    wanted = np.sign(wanted) * np.sqrt(np.abs(wanted))
    np.testing.assert_allclose(fisher(PHOTO, held), wanted / np.linalg.norm(wanted), atol=2e-3)


def test_learnt_words_are_the_clusters():
    centres = np.eye(4, 128, dtype=np.float32)
    rng = np.random.default_rng(0)
    images = [centres[[0, 1, 1]], centres[[1, 2]], centres[[1, 3, 3]]]
    images = [one + 0.01 * rng.normal(size=one.shape).astype(np.float32) for one in images]
    held = vocabularies.learn_words(images, words=4, per_word=2)
    order = vocabularies.nearest_words(centres, held["words"], (held["words"] ** 2).sum(axis=1) / 2)[0][:, 0]
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    assert held["occurs"][order].tolist() == [1, 3, 1, 1]
    assert held["images"] == 3
    with pytest.raises(UserError, match="8 descriptors found for 9 words; give more images"):
        vocabularies.learn_words(images, words=9)


def test_a_sample_is_a_part_in_order():
    images = [np.arange(3.0)[:, None], np.zeros((0, 1)), np.arange(3.0, 10)[:, None]]
    drawn = vocabularies.sample_rows(images, 4, seed=0)[:, 0].tolist()
    assert len(drawn) == 4
    assert drawn == sorted(drawn)
    assert vocabularies.sample_rows(images, 99, seed=0)[:, 0].tolist() == list(range(10))


@pytest.mark.parametrize("learn", [vocabularies.learn_residuals, vocabularies.learn_mixture])
def test_learnt_components_are_those_of_the_covariance(learn):
    held = learn([POINTS[:15], POINTS[15:]], words=2, components=5)
    values = np.linalg.eigvalsh(np.cov(POINTS.T))[::-1][:5]
    reduced = (POINTS - held["mean"]) @ held["components"].T
    np.testing.assert_allclose(np.cov(reduced.T), np.diag(values), atol=1e-5)
    assert held["words"].shape == (2, 5)


def test_a_view_of_the_same_scene_is_verified():
    """The photo, and its copy turned by 10 degrees and cut; another photo has next to nothing in common."""
    turned = np.asarray(Image.fromarray(PHOTO).rotate(10, Image.Resampling.BICUBIC).crop((30, 20, 220, 150)))
    photo = sift(PHOTO)
    same, other = verify(photo, sift(turned)), verify(photo, sift(OTHER))
    assert same > 50
    assert other < 10
    assert verify(photo, sift(turned)) == same
    assert verify(photo, Local(np.zeros((0, 2)), np.zeros((0, 128)))) == 0


@pytest.fixture
def photos(tmp_path):
    """Four photos of two classes, and one file that is no image."""
    for number, image in enumerate((PHOTO, PHOTO[::-1], OTHER, OTHER[:, ::-1])):
        place = tmp_path / "images" / f"class{number // 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(place)
    (tmp_path / "images" / "class0" / "bad.png").write_text("no image")
    return load_collection("folder", str(tmp_path / "images"))


@pytest.mark.parametrize("name", ["colour_histogram", "bag_of_words", "bag_of_words_tf_idf", "vlad", "fisher", "hog"])
def test_extraction_learns_a_vocabulary_once_and_describes_by_it(photos, tmp_path, monkeypatch, name):
    found = module.DESCRIPTORS[name]
    if found.learn:
        small = lambda images, learn=found.learn: learn(images, words=8)
        monkeypatch.setitem(module.DESCRIPTORS, name, found._replace(learn=small))
    weights, said = str(tmp_path / "words.npz") if found.arrays else "imagenet", []
    settings = Settings(name, (120, 160), weights=weights, batch_size=2, on_bad_image="skip")
    done = extract(photos, str(tmp_path / "a.h5"), settings, say=said.append)
    assert (done.images, len(done.skipped)) == (4, 1)
    assert any("learnt from 5 of 5 images" in line for line in said) == bool(found.arrays)
    read = load_features(str(tmp_path / "a.h5"))
    assert read.source["weights"] == ("words.npz" if found.arrays else "imagenet")
    extractor = load_extractor(settings)
    assert read.features.shape[1:] == tuple(extractor.find_shape())
    one = describe(extractor, settings, photos.read(3))
    np.testing.assert_allclose(one[0], read.features[2], atol=1e-3)
    assert (one >= 0).all() != (name in ("vlad", "fisher"))
    if found.arrays:
        before = (tmp_path / "words.npz").read_bytes()
        extract(photos, str(tmp_path / "b.h5"), settings, say=lambda text: None)
        assert (tmp_path / "words.npz").read_bytes() == before
        np.testing.assert_array_equal(load_features(str(tmp_path / "b.h5")).features, read.features)


def test_sizes_that_the_table_gives():
    assert BACKBONES["hog"].channels == len(hog(PHOTO, {}))
    assert BACKBONES["colour_histogram"].channels == len(colour_histogram(PHOTO, {}))


def test_vocabularies_that_cannot_be_used(photos, tmp_path):
    settings = Settings("vlad", (120, 160))
    with pytest.raises(ValueError, match=r"^weights: 'imagenet' found, but vlad has a vocabulary; name its file"):
        check_settings(settings)
    path = tmp_path / "words.npz"
    named = settings._replace(weights=str(path))
    assert lacks_vocabulary("vlad", str(path))
    assert not lacks_vocabulary("hog", "imagenet")
    with pytest.raises(ValueError, match=r"^weights: no vocabulary .*words.npz; extracting the features of a coll"):
        load_extractor(named)
    with pytest.raises(UserError, match="no vocabulary, and a share learns none"):
        extract_share(photos, str(tmp_path / "x.h5"), named, Share(1, 1), say=lambda text: None)
    path.write_bytes(b"PK no archive")
    with pytest.raises(UserError, match=r"words.npz: is no vocabulary \(.*\); remove it and extract again"):
        load_extractor(named)
    np.savez(path, words=np.zeros((2, 3)), mean=np.zeros(3))
    with pytest.raises(UserError, match=r"for these descriptors \(components is missing\); name another file"):
        load_extractor(named)
    np.savez(path, words=np.array([{}], object), mean=np.zeros(3), components=np.zeros(3))
    with pytest.raises(UserError, match=r"is no vocabulary \(.*allow_pickle.*\); remove it"):
        load_extractor(named)
    np.savez(path, words=np.full((2, 3), np.nan), mean=np.zeros(3), components=np.zeros(3))
    with pytest.raises(UserError, match="it holds NaN or infinity"):
        load_extractor(named)
