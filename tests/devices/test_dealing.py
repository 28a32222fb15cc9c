"""Searches, whole rankings and extractions on several devices give the bits of one."""

import jax
import numpy as np
import pytest
from PIL import Image

from fgis.experiment import build
from fgis.features.collection import load_collection
from fgis.features.description import Settings, load_extractor
from fgis.features.extract import extract
from fgis.gallery.index import index_folder
from fgis.gallery.scan import scan_folder
from fgis.gallery.store import open_store
from fgis.retrieval import dealing
from fgis.retrieval.evaluate import evaluate, protocol
from fgis.retrieval.prepare import prepare_gallery
from fgis.retrieval.ranks import count_ranks
from fgis.retrieval.search import search

RNG = np.random.default_rng(0)
GALLERY = RNG.normal(size=(700, 8)).astype(np.float32)
GALLERY[600:] = GALLERY[:100]  # ties
QUERIES = RNG.normal(size=(1300, 8)).astype(np.float32)  # three blocks


@pytest.fixture
def four():
    """Four devices, until the end of the test."""
    dealing.search_on(jax.devices()[:4])
    yield jax.devices()[:4]
    dealing.search_on(())


def both(function):
    """What ``function`` gives on four devices and on one."""
    several = function()
    dealing.search_on(())
    return several, function()


def test_blocks_are_dealt_to_devices_and_stay_whole(four):
    gallery, seen = prepare_gallery(GALLERY), []

    def look(gallery, queries, rows):
        (device,) = gallery.shards[0].centred.devices()
        seen.append((device.id, len(queries), rows is None))
        return queries

    blocks = [slice(start, start + 512) for start in (0, 512, 1024)]
    shares = dealing.dealt(look, gallery, blocks, QUERIES, None)
    np.testing.assert_array_equal(np.concatenate(shares), QUERIES)
    assert sorted(seen) == [(four[0].id, 512, True), (four[1].id, 512, True), (four[2].id, 276, True)]
    assert len(dealing.dealt(look, gallery, blocks[:1], QUERIES[:512], None)) == 1
    assert len(dealing.dealt(look, prepare_gallery(GALLERY, devices=four), blocks, QUERIES, None)) == 1


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_a_search_gives_the_bits_of_one_device(four, distance):
    rows = np.arange(1300) % 700
    for one, other in zip(*both(lambda: search(QUERIES, GALLERY, 5, distance, query_rows=rows)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_whole_rankings_and_metrics_give_the_bits_of_one_device(four):
    members, own = RNG.integers(0, 700, (1300, 1)), np.full(1300, -1)
    np.testing.assert_array_equal(*both(lambda: count_ranks(QUERIES, GALLERY, members, excluded=own)))
    dealing.search_on(four)
    labels, metrics = np.arange(1300) // 4, ["map@r", "recall@1", "map"]
    found, expected = both(lambda: evaluate(QUERIES, labels, protocol(labels, metrics), metrics))
    for name in metrics:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_run_of_more_devices_than_there_are_uses_all():
    assert build.find_own_devices("3") == jax.devices()[:3]
    assert build.find_own_devices("8") == jax.local_devices()


@pytest.mark.slow
def test_batches_of_images_are_dealt_out_and_give_the_same_file(tmp_path):
    """Seven batches on three devices, one of them of bad images alone, by a small real network."""
    (tmp_path / "images" / "one").mkdir(parents=True)
    for number in range(13):
        path = tmp_path / "images" / "one" / f"{number:02d}.png"
        Image.fromarray(RNG.integers(0, 255, (9, 9, 3), np.uint8)).save(path)
        if number in (4, 5):
            path.write_bytes(b"no image")
    settings = Settings("mobilenet_v2", (32, 32), weights="none", batch_size=2, on_bad_image="skip")
    images, counts = load_collection("folder", str(tmp_path / "images")), []
    for name, devices in (("one.h5", ()), ("three.h5", jax.devices()[:3])):
        extract(
            images, str(tmp_path / name), settings, devices=devices, say=lambda text: None,
            progress=lambda done, total: counts.append(done),
        )  # fmt: skip
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "three.h5").read_bytes()
    assert counts == [2, 4, 6, 8, 10, 12, 13] * 2


@pytest.mark.slow
def test_a_folder_is_indexed_on_several_devices_with_the_same_features(tmp_path):
    """Seven batches, the last of one image; the first is described before it is known how many devices there are."""
    (tmp_path / "photos").mkdir()
    for number in range(13):
        Image.fromarray(RNG.integers(0, 255, (9, 9, 3), np.uint8)).save(tmp_path / "photos" / f"{number:02d}.png")
    settings = Settings("mobilenet_v2", (32, 32), weights="none", batch_size=2, on_bad_image="skip")
    found = []
    for devices in ((), jax.devices()[:3]):
        place = tmp_path / f"gallery{len(devices)}"
        place.mkdir()
        with open_store(place, create=True) as store:
            load = lambda devices=devices: load_extractor(settings, devices)
            assert index_folder(scan_folder(tmp_path / "photos"), store, settings, load).added == 13
            found.append(([one.image_id for one in store.records()], store.vectors()))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
