"""A gallery for other programs, by the command line; the network is one that takes no time."""

import json
from contextlib import closing

import numpy as np
import pytest

from fgis.experiment.galleries import load_gallery
from fgis.features import description
from fgis.gallery.engines import milvus
from fgis.main import main
from tests.gallery.engines import needs_milvus
from tests.gallery.photos import TINY, Network, save


@pytest.fixture
def call(tmp_path, monkeypatch, capfd):
    """The exit code, output and errors of a command, beside a gallery of four photos of two objects."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(description, "load_extractor", Network())
    for number in range(4):
        save(tmp_path / "photos" / f"object{number // 2}" / f"{number}.png", number)

    def call(mode, *arguments):
        code = main([f"--mode={mode}", "--gallery=gallery", *arguments])
        return (code, *capfd.readouterr())

    assert call("index", "--images=photos", *TINY)[0] == 0
    return call


def test_files_hold_the_embeddings_of_the_gallery(call, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed; pip install '.[engines]'")
    faiss = pytest.importorskip("faiss", reason="faiss is not installed; pip install '.[engines]'")
    loaded = load_gallery("gallery")
    code, output, _ = call("export", "--to=parquet:out/photos.parquet")
    assert code == 0
    assert output.splitlines()[-1].startswith(
        "out/photos.parquet: 4 images, 192 numbers each (4 images (mobilenet_075)"
    )
    table = parquet.read_table("out/photos.parquet")
    assert table["image_id"].to_pylist() == [f"object{number // 2}/{number}.png" for number in range(4)]
    assert table["label"].to_pylist() == ["object0", "object0", "object1", "object1"]
    assert table["width"].to_pylist() == [96] * 4
    assert np.array_equal(np.stack(table["embedding"].to_numpy()), loaded.search.embeddings)
    provenance = json.loads(table.schema.metadata[b"fgis"])
    assert provenance["images"] == str(tmp_path / "photos")
    assert (provenance["weights_sha256"], provenance["distance"]) == ("5" * 64, "cosine")
    assert provenance["features"]["backbone"] == "mobilenet_075"
    code, output, _ = call("export", "--to=faiss:photos.faiss")
    assert output.splitlines()[-1].startswith("photos.faiss and photos.faiss.json: 4 images")
    unit = loaded.search.embeddings / np.linalg.norm(loaded.search.embeddings, axis=1, keepdims=True)
    assert faiss.read_index("photos.faiss").search(unit[2:3], 1)[1].tolist() == [[2]]
    assert json.loads((tmp_path / "photos.faiss.json").read_text())["rows"][2] == ["object1/2.png", "object1"]


def test_a_search_by_the_collection_is_the_search_here(call, tmp_path):
    """The same rows and distances, to the last bit; a collection of another state is refused."""
    needs_milvus()
    assert call("export", "--to=milvus:photos.db")[0] == 0
    search = ("--image=photos/object1/2.png", "--k=3", "--json")
    here, there = (call("search", *search, *more) for more in ((), ("--engine=milvus:photos.db",)))
    assert (here[0], there[0]) == (0, 0), there[2]
    one, other = json.loads(here[1]), json.loads(there[1])
    assert one["results"][0]["image_id"] == "object1/2.png"
    assert {**one, "milliseconds": 0} == {**other, "milliseconds": 0}
    reranked = [
        call("search", *search, "--rerank=local_scaling", *more)[1] for more in ((), ("--engine=milvus:photos.db",))
    ]
    assert json.loads(reranked[0])["results"] == json.loads(reranked[1])["results"]
    for engine, words in [
        ("milvus:nowhere.db", "--engine=milvus:nowhere.db: no such file; export a gallery to it first"),
        ("faiss:x", "--engine=faiss:x: no engine; write milvus:ADDRESS"),
        ("milvus:", "--engine=milvus:: no engine; write milvus:ADDRESS"),
    ]:
        code, _, errors = call("search", *search, f"--engine={engine}")
        assert (code, errors.count("\n")) == (2, 1)
        assert words in errors
    code, _, errors = call("search", *search, "--engine=milvus:photos.db", "--collection=other")
    assert (code, errors.count("\n")) == (2, 1)
    assert "no collection other" in errors
    save(tmp_path / "photos" / "object1" / "new.png", 9)
    call("index")
    code, _, errors = call("search", *search, "--engine=milvus:photos.db")
    assert (code, errors.count("\n")) == (2, 1)
    assert "holds 4 images and the gallery 5; bring it up to date by --mode=export" in errors


def test_a_collection_follows_the_gallery(call, tmp_path):
    needs_milvus()
    assert (
        call("export", "--to=milvus:photos.db")[1].splitlines()[1].startswith("collection fgis of photos.db: 4 images")
    )
    (tmp_path / "photos" / "object0" / "0.png").unlink()
    save(tmp_path / "photos" / "object1" / "new.png", 9)
    call("index")
    code, output, errors = call("export", "--to=milvus:photos.db")
    assert (code, errors) == (0, "")
    assert output.splitlines()[1].startswith("collection fgis of photos.db, 1 removed: 4 images")
    loaded = load_gallery("gallery")
    with closing(milvus.open_milvus("photos.db", "cosine", 192)) as engine:
        assert engine.image_ids() == [one.image_id for one in loaded.records]
        hit = engine.search(loaded.search.embeddings[2], 1, {"label": ["object1"]})[0]
        assert hit == (loaded.records[2].image_id, "object1", 0.0)
    save(tmp_path / "others" / "0.png", 1)
    call("index", "--images=others", "--gallery=second", *TINY)
    code, _, errors = call("export", "--gallery=second", "--to=milvus:photos.db")
    assert code == 2
    assert errors.startswith("fgis: --to=milvus:photos.db: collection fgis holds another gallery (")
    assert call("export", "--gallery=second", "--to=milvus:photos.db", "--collection=second")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--gallery=", "--to=parquet:a"), "--gallery: missing"),
        ((), "--to: missing; write one of parquet:FILE, faiss:FILE, milvus:ADDRESS"),
        (("--to=parket:a",), "--to=parket:a: did you mean 'parquet'?"),
        (("--to=faiss",), "--to=faiss: where to? write faiss:FILE"),
        (("--to=faiss:photos",), "--to=faiss:photos: a folder; name a file"),
        (("--to=parquet:gallery/gallery.json/a",), "--to=parquet:gallery/gallery.json/a: cannot be written"),
        (("--to=milvus:localhost",), "--to=milvus:localhost: no address of Milvus"),
        (("--to=milvus:a.db", "--config.distance=chi2"), "--to=milvus:a.db: milvus has no chi2 distance; parquet:FILE"),
        (("--to=faiss:a", "--config.distance=chi2"), "--to=faiss:a: faiss has no chi2 distance"),
        (("--to=faiss:a", "--gallery=none"), "none: no gallery here"),
    ],
)
def test_what_is_wrong_is_one_line(call, arguments, line):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed; pip install '.[engines]'")
    code, _, errors = call("export", *arguments)
    assert code == 2
    assert errors.startswith(f"fgis: {line}")
    assert errors.count("\n") == 1
