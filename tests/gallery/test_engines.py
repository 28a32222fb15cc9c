"""One contract for every engine, agreement of their answers, and the files that are written for other programs."""

import hashlib
import json
import os
from contextlib import closing

import numpy as np
import pytest

from fgis.distances import DISTANCES
from fgis.errors import UserError
from fgis.gallery.engines import Engine, Hit, exports, milvus
from fgis.gallery.engines.exact import ExactEngine
from fgis.gallery.store import ImageRecord
from fgis.retrieval.search import search
from tests.gallery.engines import needs_milvus
from tests.gallery.milvus_server import ADDRESS

ODD = ['a/it\'s "odd".jpg', "b\\d/é 山\n.jpg", "c%_.jpg"]
POINTS = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], np.float32)


@pytest.fixture
def make(request, tmp_path):
    """A function from a distance and dimensions to a fresh engine."""
    opened = []

    def make(distance="cosine", dimensions=3) -> Engine:
        if request.param == "exact":
            return ExactEngine(distance)
        name = f"{distance}_{dimensions}"
        address = os.environ[ADDRESS] if request.param == "server" else str(tmp_path / "m.db")
        if request.param == "server":
            with closing(milvus.connect(address)) as client:
                client.drop_collection(name)
        engine = milvus.open_milvus(address, distance, dimensions, collection=name, create=True)
        opened.append(engine)
        return engine

    if request.param != "exact":
        needs_milvus()
    if request.param == "server" and ADDRESS not in os.environ:
        pytest.skip("no Milvus server is named; type: python -m tests.gallery.milvus_server")
    yield make
    for engine in opened:
        engine.close()


def record(image_id="a.jpg", label="", **more):
    return ImageRecord(image_id, label, 40, 30, 100, 1, hashlib.sha256(image_id.encode()).hexdigest(), "")._replace(
        **more
    )


every = pytest.mark.parametrize("make", ["exact", "milvus", "server"], indirect=True)


@every
def test_the_contract(make):
    engine = make()
    assert engine.image_ids() == []
    assert engine.search(POINTS[0], 2) == []
    engine.upsert(ODD, ["x", "", 'the "x"'], POINTS)
    assert engine.image_ids() == sorted(ODD)
    hits = engine.search(np.array([2, 0, 0], np.float32), 2)
    assert [hit[:2] for hit in hits] == [(ODD[0], "x"), (ODD[1], "")]
    assert [hit.distance for hit in hits] == pytest.approx([0, 1 - 0.5**0.5])
    assert len(engine.search(POINTS[0], 9)) == 3

    assert [hit.image_id for hit in engine.search(POINTS[0], 3, {"label": ["", 'the "x"']})] == ODD[1:]
    assert [hit.image_id for hit in engine.search(POINTS[0], 3, {"image_id": ODD[:2], "label": [""]})] == [ODD[1]]
    assert engine.search(POINTS[0], 3, {"label": []}) == []
    assert [hit.image_id for hit in engine.search(POINTS[0], 3, {"folder": ["a", "b\\d"]})] == ODD[:2]
    assert engine.search(POINTS[0], 3, {"folder": ["b"]}) == []  # "b\d" is another folder
    assert engine.count() == 3
    assert engine.search(POINTS[0], 3, {"label": ["y"]}) == []

    engine.upsert([ODD[2], "new"], ["z", ""], np.array([[1, 0, 0], [0, 0, 1]], np.float32))  # replaced, and added
    assert engine.search(POINTS[0], 1, {"label": ["z"]}) == [Hit(ODD[2], "z", 0.0)]
    assert [hit.image_id for hit in engine.search(POINTS[0], 2)] == [ODD[0], ODD[2]]  # ties go to the first id
    engine.delete([ODD[0], "not there"])
    assert engine.image_ids() == sorted([*ODD[1:], "new"])
    assert engine.search(POINTS[0], 1)[0].image_id == ODD[2]
    engine.delete([])


@every
def test_what_is_refused(make):
    engine = make()
    engine.upsert(ODD, ["", "", ""], POINTS)
    for arguments, words in [
        ((POINTS[0], 0), "k: 0 found"),
        ((POINTS[0], 1, {"lable": ["x"]}), "did you mean 'label'"),
        ((POINTS[0], 1, {"label": "x"}), "label is one string"),
        ((np.ones(4, np.float32), 1), "4 numbers found; those of the .* have 3"),
        ((np.ones(4, np.float32), 1, {"label": [""]}), "4 numbers found; those of the .* have 3"),
        ((np.full(3, np.nan, np.float32), 1), "NaN"),
    ]:
        with pytest.raises(ValueError, match=words):
            engine.search(*arguments)
    for arguments, words in [
        ((["a", "a"], ["", ""], POINTS[:2]), "1 come twice"),
        ((["a"], ["", ""], POINTS[:2]), "1 ids, 2 labels and 2 embeddings"),
        ((["a"], [""], np.ones((1, 4), np.float32)), "4 numbers found; those of the .* have 3"),
    ]:
        with pytest.raises(ValueError, match=words):
            engine.upsert(*arguments)
    assert engine.image_ids() == sorted(ODD)


@pytest.mark.parametrize("make", ["milvus", "server"], indirect=True)
@pytest.mark.parametrize("distance", ["cosine", "euclidean", "inner_product"])
def test_a_flat_index_agrees_with_the_exact_search_in_every_row(make, distance):
    """Also among copies, near copies and a zero vector, with and without a filter; to the last bit."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(300, 8)).astype(np.float32)
    embeddings[40:70] = embeddings[3]  # more copies than candidates beyond k
    embeddings[100:120] = embeddings[5] * (1 + 1e-7 * rng.normal(size=(20, 8))).astype(np.float32)
    embeddings[200] = 0
    ids, labels = [f"{row:03}" for row in range(300)], [str(row % 3) for row in range(300)]
    engine, exact = make(distance, 8), ExactEngine(distance)
    for one in (engine, exact):
        one.upsert(ids, labels, embeddings)
    queries = np.concatenate([embeddings[[3, 5, 200]], rng.normal(size=(5, 8)).astype(np.float32)])
    expected = search(queries, embeddings, 10, distance)
    for query, rows, distances in zip(queries, expected.rows, expected.distances):
        found = engine.search(query, 10)
        assert [int(hit.image_id) for hit in found] == rows.tolist()
        assert [hit.distance for hit in found] == distances.tolist()
        assert exact.search(query, 10) == found
        where = {"label": ["0", "2"]}
        assert exact.search(query, 10, where) == engine.search(query, 10, where)


def test_every_distance_has_the_exact_engine():
    for distance in DISTANCES:
        engine = ExactEngine(distance)
        engine.upsert(ODD, ["x", "y", "y"], POINTS)
        for query in POINTS:
            assert engine.search(query, 2, {"label": ["x", "y"]}) == engine.search(query, 2)


def test_a_collection_is_not_mixed_with_other_embeddings(tmp_path):
    needs_milvus()
    address = str(tmp_path / "m.db")
    with pytest.raises(UserError, match=r"m\.db: no such file"):
        milvus.open_milvus(address, "cosine", 3)
    with closing(milvus.open_milvus(address, "cosine", 3, source="mine", create=True)) as engine:
        engine.upsert(ODD, ["", "", ""], POINTS)
    for arguments, options, words in [
        (("cosine", 3), {"collection": "other"}, "no collection other; export a gallery to it first"),
        (("cosine", 4), {}, "collection fgis holds embeddings of 3 numbers and not of 4"),
        (("inner_product", 3), {}, "is searched by cosine and not by inner_product"),
        (("cosine", 3), {"source": "yours"}, r"holds another gallery \(mine\)"),
        (("cosine", 3), {"collection": "no-name", "create": True}, "'no-name' cannot name a collection"),
    ]:
        with pytest.raises(UserError, match=words) as found:
            milvus.open_milvus(address, *arguments, **options)
        assert str(found.value).startswith(address)
        assert "\n" not in str(found.value)
    with closing(milvus.connect(address)) as client:
        client.create_collection("foreign", dimension=3)
    with pytest.raises(UserError, match="collection foreign is not one of fgis"):
        milvus.open_milvus(address, "cosine", 3, collection="foreign")
    with pytest.raises(ValueError, match="'chi2' found; Milvus has euclidean"):
        milvus.open_milvus(address, "chi2", 3)
    with closing(milvus.open_milvus(address, "cosine", 3, source="mine")) as engine:
        assert engine.image_ids() == sorted(ODD)
        with pytest.raises(ValueError, match="k: 16385 found; of embeddings of this size Milvus gives 16384 at most"):
            engine.search(POINTS[0], 16_385)
        with closing(milvus.connect(address)) as client:
            client.drop_collection("fgis")  # as somebody else might, meanwhile
        with pytest.raises(UserError, match=r"fgis: Milvus says: .*fgis"):
            engine.search(POINTS[0], 1)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("localhost:19530", "no address of Milvus; write http://HOST:PORT, or a path that ends in .db"),
        ("http://", "no address of Milvus"),
        ("http://127.0.0.1:9", "cannot be opened .*; is the server up, and the address right?"),
        ("taken.db", "a file of another program"),
    ],
)
def test_an_address_that_cannot_be_opened_is_one_line(address, words, tmp_path, monkeypatch, capfd):
    needs_milvus()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.db").write_text("no database")
    with pytest.raises(UserError, match=f"^{address}: {words}") as found:
        milvus.open_milvus(address, "cosine", 3, create=True)
    assert "\n" not in str(found.value)
    assert capfd.readouterr().err == ""


def test_parquet_holds_images_and_provenance(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed; pip install '.[engines]'")
    monkeypatch.setattr(exports, "BLOCK", 2)
    records = [record(image_id, label) for image_id, label in zip(ODD, ["x", "", "é"])]
    exports.write_parquet(tmp_path / "g.parquet", records, POINTS, {"distance": "cosine", "step": None})
    table = pq.read_table(tmp_path / "g.parquet")
    assert table.column_names == ["image_id", "label", "width", "height", "sha256", "embedding"]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[3]"
    for name in ("image_id", "label", "width", "height", "sha256"):
        assert table[name].to_pylist() == [getattr(one, name) for one in records]
    assert table["embedding"].to_pylist() == POINTS.tolist()
    assert json.loads(table.schema.metadata[b"fgis"]) == {"distance": "cosine", "step": None}
    assert [path.name for path in tmp_path.iterdir()] == ["g.parquet"]


@pytest.mark.parametrize("distance", sorted(exports.FAISS_DISTANCES))
def test_the_index_of_faiss_ranks_as_the_exact_search(distance, tmp_path):
    faiss = pytest.importorskip("faiss", reason="faiss is not installed; pip install '.[engines]'")
    embeddings = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    records = [record(f"{row:02}", "x") for row in range(40)]
    ids = exports.write_faiss(tmp_path / "g.faiss", records, embeddings, distance, {"distance": distance})
    held = json.loads(ids.read_text())
    assert held["index_sha256"] == hashlib.sha256((tmp_path / "g.faiss").read_bytes()).hexdigest()
    assert held["rows"] == [[one.image_id, "x"] for one in records]
    assert (held["distance"], held["provenance"]) == (distance, {"distance": distance})
    index = faiss.read_index(str(tmp_path / "g.faiss"))
    queries = embeddings[:4] + np.float32(0.1)
    if distance in ("cosine", "unit_euclidean"):
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    assert index.search(queries, 5)[1].tolist() == search(queries, embeddings, 5, distance).rows.tolist()
    with pytest.raises(ValueError, match="'chi2' found; faiss has no flat index for it"):
        exports.write_faiss(tmp_path / "h.faiss", records, embeddings, "chi2", {})


def test_a_file_that_cannot_be_written_is_one_line_and_the_old_one_stays(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed; pip install '.[engines]'")
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match="cannot be written"):
        exports.write_parquet(tmp_path / "file" / "g.parquet", [record()], POINTS[:1], {})
    with pytest.raises(ValueError, match="convert 'wide'"):
        exports.write_parquet(tmp_path / "file", [record(width="wide")], POINTS[:1], {"width": 1})
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("library", "write"),
    [
        ("pyarrow", lambda path: exports.write_parquet(path, [record()], POINTS[:1], {})),
        ("faiss", lambda path: exports.write_faiss(path, [record()], POINTS[:1], "cosine", {})),
        ("pymilvus", lambda path: milvus.open_milvus(f"{path}.db", "cosine", 3, create=True)),
    ],
)
def test_a_missing_library_is_one_line(library, write, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(UserError, match=rf"{library}.* is not installed; pip install '.\[engines\]'"):
        write(tmp_path / "g")
    assert list(tmp_path.iterdir()) == []
