"""Searching a gallery by words: a small CLIP with random weights, from a folder of photos to the results."""

import json

import numpy as np
import pytest

from fgis.experiment.galleries import load_gallery
from fgis.experiment.gallery_text import gallery_reads_texts, open_by_text
from fgis.main import main
from tests.features.safetensors_files import shrink, write_clip_vocabulary, write_weights
from tests.gallery.photos import save


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Six photos in two folders, described by the small network."""
    folder = tmp_path_factory.mktemp("words")
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink(monkeypatch)
        write_weights(folder / "clip" / "model.safetensors", "clip_b32")
        write_clip_vocabulary(folder / "clip")
        for number in range(6):
            save(folder / "photos" / f"object{number // 3}" / f"{number}.png", number)
        arguments = [f"--images={folder / 'photos'}", f"--gallery={folder / 'gallery'}", *network(folder / "clip")]
        assert main(["--mode=index", *arguments]) == 0
    return folder / "gallery"


def network(weights):
    return [
        "--config.features.backbone=clip_b32", "--config.features.image_size=(64,64)",
        f"--config.features.weights={weights}",
    ]  # fmt: skip


@pytest.fixture
def call(gallery, monkeypatch, capfd, tmp_path):
    """The exit code, output and errors of a search by words."""
    shrink(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def call(*arguments, place=gallery):
        code = main(["--mode=search", *([f"--gallery={place}"] if place else []), *arguments])
        return (code, *capfd.readouterr())

    return call


def test_images_are_ordered_by_the_cosine_with_the_words(call, gallery):
    """That of the network's vectors themselves: the configuration compares square roots, which words have none of."""
    code, output, _ = call("--text=A red sofa", "--k=4", "--json")
    assert code == 0
    found = json.loads(output)
    assert (found["query"], found["verdict"], found["known"], found["threshold"]) == ("A red sofa", None, None, None)
    loaded = load_gallery(gallery)
    search, encode = open_by_text(gallery, loaded)
    text, images = encode("a red  sofa"), search.embeddings
    cosines = (images @ text[0]) / np.linalg.norm(images, axis=1) / np.linalg.norm(text)
    order = np.argsort(-cosines)[:4]
    assert [one["image_id"] for one in found["results"]] == search.image_ids[order].tolist()
    np.testing.assert_allclose([one["distance"] for one in found["results"]], 1 - cosines[order], atol=1e-5)
    assert found["nearest"] == found["results"][0]["distance"]
    assert found["results"][0]["label_name"] == found["results"][0]["image_id"].partition("/")[0]
    assert gallery_reads_texts(gallery)
    assert call("--text=a green chair", "--json")[1] != output


def test_the_terminal_and_the_page_show_the_words(call, tmp_path):
    code, output, _ = call("--text=a <red> sofa / 2", "--k=2")
    assert code == 0
    assert output.startswith("fgis search\na <red> sofa / 2: ordered by likeness to the words: nearest at ")
    page = (tmp_path / "runs" / "search" / "a-red-sofa-2.html").read_text()
    assert "a &lt;red&gt; sofa / 2" in page
    assert "Ordered by likeness to the words" in page
    assert (tmp_path / "runs" / "search" / "a-red-sofa-2.png").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--text= "], "fgis: --text: no words in it; write some"),
        (["--text=sofa", "--image=x.png"], "fgis: --text: does not go with --image; leave one of them out"),
        (["--text=sofa", "--rerank=local_scaling"], "fgis: --text: does not go with --rerank; leave one of them out"),
        (["--text=sofa", "--config.features.weights=none"], "fgis: config.features.weights"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(call, arguments, line):
    code, output, errors = call(*arguments)
    assert (code, output) == (2, "fgis search\n")
    assert errors.startswith(line)
    assert errors.count("\n") == 1


def test_words_need_a_gallery(call):
    code, _, errors = call("--config=photos", "--text=sofa", place=None)
    assert (code, errors) == (2, "fgis: --text: searches a gallery; name it by --gallery\n")


def test_a_gallery_of_a_network_that_reads_no_texts_is_refused(call, tmp_path, capfd):
    write_weights(tmp_path / "dino.safetensors", "dinov2_s14")
    save(tmp_path / "photos" / "1.png", 1)
    main([
        "--mode=index", "--images=photos", "--gallery=other", "--config.features.backbone=dinov2_s14",
        "--config.features.image_size=(70,70)", "--config.features.weights=dino.safetensors",
        "--config.features.pooling=token",
    ])  # fmt: skip
    capfd.readouterr()
    code, _, errors = call("--text=a red sofa", place="other")
    assert code == 2
    assert errors == (
        "fgis: --text: other was described by dinov2_s14, which reads no texts; index the photos by one of "
        "siglip2_b16, clip_b32, clip_b16, clip_l14, such as --config.features.backbone=siglip2_b16\n"
    )


def test_other_weights_than_those_of_the_gallery_are_refused(call, gallery):
    """They were exchanged since the photos were described."""
    weights = gallery.parent / "clip" / "model.safetensors"
    held = weights.read_bytes()
    try:
        write_weights(weights, "clip_b32", lambda all: {name: one * 2 for name, one in all.items()})
        code, _, errors = call("--text=a red sofa")
    finally:
        weights.write_bytes(held)
    assert code == 2
    assert "are not the weights that" in errors
    assert errors.count("\n") == 1


def test_a_missing_vocabulary_is_one_line(call, gallery):
    merges = gallery.parent / "clip" / "merges.txt"
    merges.rename(merges.with_name("gone"))
    try:
        code, _, errors = call("--text=a red sofa")
    finally:
        merges.with_name("gone").rename(merges)
    assert code == 2
    assert errors.startswith(f"fgis: {gallery.parent / 'clip'}: no tokenizer.json beside the weights")
