"""The page's addresses: documents, headers, bounds and refusals, through Starlette's test client."""

import io
import json
import struct
import zlib
from functools import cache, partial

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the page needs starlette: pip install '.[photos]'")
pytest.importorskip("httpx2", reason="Starlette's test client needs httpx2")
from starlette.testclient import TestClient

from fgis.gallery.search import SearchOptions, rank_picture
from fgis.retrieval.rerank import local_scaling
from fgis.retrieval.search import prepare_gallery
from fgis.web import api, uploads
from fgis.web.app import make_app
from tests.web.galleries import (
    averaged_gallery,
    describe_colours,
    describe_places,
    gallery_by_words,
    loaded_gallery,
    scene,
)

SCRIPT = "<img src=x onerror=alert(1)>.jpg"
PICTURES = {
    "red/1.jpg": scene(("red", "red")),
    "red/2.jpg": scene(("red", "darkred")),
    "red/more/3.jpg": scene(("darkred", "red")),
    "blue/1.jpg": scene(("blue", "blue")),
    "blue/2.jpg": scene(("blue", "navy")),
    f"blue/{SCRIPT}": scene(("navy", "blue")),
    "green.jpg": scene(("green", "lime")),
    "mixed.jpg": scene(("red", "blue")),
}


@pytest.fixture(scope="module")
def loaded():
    return loaded_gallery(PICTURES)


@pytest.fixture(scope="module")
def client(loaded):
    app = make_app(loaded, reranks={"local_scaling": partial(local_scaling, k=2)})
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


def encoded(image, kind="PNG", **more):
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def found(response):
    assert response.status_code == 200, response.text
    return [one["image_id"] for one in response.json()["results"]]


def error_of(response, status):
    assert response.status_code == status, response.text
    document = response.json()
    assert list(document) == ["error"]
    assert "\n" not in document["error"]
    return document["error"]


def test_every_response_forbids_requests_to_elsewhere(client):
    for path in ("/", "/page.js", "/page.css", "/icon.svg", "/api/gallery", "/api/thumbnail?image=green.jpg", "/none"):
        headers = client.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert set(" ".join(policy.values()).split()) <= {"'none'", "'self'", "data:"}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_names_no_other_host_and_holds_no_inline_code(client):
    html = client.get("/").text
    for name in ("/", "/page.js", "/page.css"):
        assert "//" not in client.get(name).text.replace("// ", "").replace("http://www.w3.org/2000/svg", "")
    assert "<style" not in html
    assert "style=" not in html
    assert "onclick=" not in html
    assert "innerHTML" not in client.get("/page.js").text


def test_names_of_other_hosts_and_posts_of_other_sites_are_refused(client):
    assert client.get("/api/gallery", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/api/gallery", headers={"Host": "localhost:8000"}).status_code == 200
    response = client.post("/api/pictures", content=b"x", headers={"Sec-Fetch-Site": "cross-site"})
    assert error_of(response, 403) == "sent by another site"


def test_the_gallery_is_described(client):
    document = client.get("/api/gallery").json()
    assert document["images"] == 8
    assert document["labels"] == [{"name": "blue", "images": 3}, {"name": "red", "images": 3}]
    assert [one["name"] for one in document["folders"]] == ["blue", "red", "red/more"]
    assert document["reranks"] == ["local_scaling"]
    assert document["threshold"] <= document["limit"]


def test_images_are_listed_by_folder_and_label_a_page_at_a_time(client):
    get = lambda **values: client.get("/api/images", params=values)
    assert found(get()) == sorted(PICTURES)
    assert found(get(folder="red")) == ["red/1.jpg", "red/2.jpg", "red/more/3.jpg"]
    assert found(get(folder="red/more", label="red")) == ["red/more/3.jpg"]
    assert found(get(label="blue", start=1, count=1)) == ["blue/2.jpg"]
    assert get(label="blue", start=1, count=1).json()["images"] == 3
    assert found(get(folder="..")) == []
    assert "count: '0' found" in error_of(get(count=0), 400)


def test_a_search_has_the_keys_of_the_command_line_and_its_ranking(client, loaded):
    query = scene(("red", "maroon"))
    response = client.post("/api/search?k=5", files={"image": ("../a\\b/query.png", encoded(query))})
    assert found(response)[:2] == ["red/2.jpg", "red/1.jpg"]
    document = response.json()
    assert document["query"] == "query.png"
    ranking = rank_picture(loaded.search, describe_colours, query, SearchOptions(k=5))
    keys = {"query", "known", "verdict", "nearest", "threshold", "limit", "detection", "false_alarms", "missed"}
    assert keys | {"results", "milliseconds"} <= set(document)
    assert {"rank", "image_id", "label", "label_name", "distance"} <= set(document["results"][0])
    assert [one["distance"] for one in document["results"]] == ranking.found.distances.tolist()
    assert [loaded.records[row].image_id for row in ranking.found.images] == found(response)
    assert document["nearest"] == ranking.nearest
    assert [one["by_features"] for one in document["results"]] == pytest.approx(ranking.judged, abs=1e-6)
    assert set(document["milliseconds"]) == {"decode", "describe", "search"}
    assert document["words"].startswith(("the gallery has images like this", "not sure", "nothing like this"))


def test_an_upload_is_kept_and_a_part_of_it_searched(client):
    picture = scene(("red", "blue"))
    uploaded = client.post("/api/pictures?name=two.png", content=encoded(picture))
    assert uploaded.status_code == 201
    assert uploaded.json() | {"picture": ""} == {"picture": "", "name": "two.png", "width": 64, "height": 48}
    key = uploaded.json()["picture"]
    get = lambda **values: client.get("/api/search", params={"picture": key, "k": 1, **values})
    assert found(get()) == ["mixed.jpg"]
    assert found(get(crop="0,0,30,48")) == ["red/1.jpg"]
    assert found(get(crop="34,0,30,48")) == ["blue/1.jpg"]
    assert "is not within the picture, which is 64 x 48" in error_of(get(crop="40,0,30,48"), 400)
    shown = client.get("/api/picture", params={"picture": key})
    assert Image.open(io.BytesIO(shown.content)).size == (64, 48)
    assert "no longer held" in error_of(client.get("/api/search?picture=" + "0" * 64), 404)


def test_an_image_of_the_gallery_is_not_among_its_own_results(client):
    get = lambda **values: client.get("/api/search", params={"image": "red/1.jpg", **values})
    document = get().json()
    assert len(document["results"]) == 7
    assert "red/1.jpg" not in found(get())
    assert document["nearest"] > 0
    assert found(get(k=2, label="blue")) == found(get(folder="blue", k=2))
    assert get(label="blue").json()["searched"] == 3
    assert get(label="blue").json()["nearest"] == document["nearest"]  # the verdict is about the whole gallery
    assert get(rerank="local_scaling").json()["order"] == "re-ranked by local scaling"


def test_a_head_is_chosen_and_embeds_the_gallery_once(loaded):
    made = []

    def backwards():
        """A head that looks at the blue of one place alone."""
        made.append(1)
        embed = lambda x: (x[:, 2:3] * [[1, 0]] + [[0, 1]]).astype(np.float32)
        embeddings = embed(loaded.search.features)
        prepared = prepare_gallery(embeddings, "cosine")
        return loaded.search._replace(embeddings=embeddings, prepared=prepared, embed=embed, words="backwards")

    heads = {"features": lambda: loaded.search, "runs/backwards": cache(backwards)}
    own = TestClient(make_app(loaded._replace(heads=heads)), base_url="http://127.0.0.1")
    assert own.get("/api/gallery").json()["heads"] == ["features", "runs/backwards"]
    assert own.get("/api/gallery").json()["head"] == "features"
    get = lambda **values: own.get("/api/search", params={"image": "green.jpg", **values})
    assert get().json()["results"] == get(head="features").json()["results"]
    assert not made
    other = get(head="runs/backwards").json()
    assert found(get(head="runs/backwards")) != found(get())
    assert other["nearest"] == get().json()["nearest"]  # the verdict is by features, whatever ranks
    assert made == [1]
    assert "head: no such head; did you mean 'runs/backwards'?" in error_of(get(head="runs/backward"), 400)


def test_marks_move_the_query_and_say_what_changed(client):
    get = lambda **values: client.get("/api/search", params={"image": "mixed.jpg", "k": 3, **values}).json()
    plain, marked = get(), get(relevant=["blue/1.jpg", "blue/2.jpg"], not_relevant=["red/1.jpg"])
    assert plain["changes"] is None
    names = lambda document: [one["image_id"] for one in document["results"]]
    assert {name.split("/")[0] for name in names(marked)} == {"blue"}
    rank = {name: number for number, name in enumerate(names(plain), 1)}
    assert [one["rank_before"] for one in marked["results"]] == [rank.get(name) for name in names(marked)]
    assert sum(marked["changes"].values()) == 3
    assert marked["changes"]["new"] == len(set(names(marked)) - set(names(plain)))
    assert marked["nearest"] == plain["nearest"]  # of the query itself


def test_pictures_agree_where_they_show_the_same(client):
    pictures = {"a/1.jpg": scene(("red", "blue")), "a/2.jpg": scene(("lime", "red"))}
    app = make_app(averaged_gallery(pictures), describe_places=describe_places)
    own = TestClient(app, base_url="http://127.0.0.1")
    assert own.get("/api/gallery").json()["agreement"] is True
    get = lambda **values: own.get("/api/agreement", params={"image": "a/1.jpg", "with": "a/2.jpg", **values})
    document = get().json()
    assert document["similarity"] == pytest.approx(0.5)  # (1, 0, 1) and (1, 1, 0), both halved
    assert np.allclose(document["query"], [[0.25, 0], [0.25, 0]])  # its left half is red
    assert np.allclose(document["result"], [[0, 0.25], [0, 0.25]])  # and the right half of the other one
    assert np.allclose(get(crop="0,0,32,48").json()["query"], np.full((2, 2), np.sqrt(0.5) / 4))
    assert "'x': the gallery has no such image" in error_of(get(**{"with": "x"}), 404)
    assert "cannot be divided among places" in error_of(
        client.get("/api/agreement?image=green.jpg&with=mixed.jpg"), 400
    )


def test_ids_open_no_file_outside_of_the_gallery(client):
    for image_id in ("../../etc/passwd", "/etc/passwd", "red/../green.jpg", "", "red", "blue/1.jpg\0"):
        for path in ("/api/picture", "/api/thumbnail", "/api/search"):
            response = client.get(path, params={"image": image_id})
            assert response.status_code in (400, 404), (path, image_id)
            assert "error" in response.json()
    assert client.get("/static/../../pyproject.toml").status_code == 404
    assert client.get("/..%2f..%2fpyproject.toml").status_code == 404


def test_names_are_data_and_never_markup(client):
    response = client.get("/api/search", params={"image": f"blue/{SCRIPT}"})
    assert response.headers["content-type"] == "application/json"
    assert response.json()["query"] == f"blue/{SCRIPT}"
    assert client.get("/api/thumbnail", params={"image": f"blue/{SCRIPT}"}).status_code == 200
    assert "&lt;" not in client.get("/api/images").text  # escaped once, where it is shown


def test_thumbnails_are_kept_by_the_browser(client):
    first = client.get("/api/thumbnail?image=green.jpg")
    assert first.headers["content-type"] == "image/webp"
    again = client.get("/api/thumbnail?image=green.jpg", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


def odd_uploads():
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [scene(("red", "blue")), scene(("lime", "blue"))]
    grey = Image.fromarray(np.full((48, 64), 40000, np.uint16))
    return {
        "cmyk": encoded(scene(("red", "blue")).convert("CMYK"), "JPEG"),
        "16 bit": encoded(grey),
        "palette with transparency": encoded(scene(("red", "blue")).convert("P"), "GIF", transparency=0),
        "animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "turned": encoded(scene(("red", "blue")), "JPEG", exif=turned),
    }


@pytest.mark.parametrize("kind", odd_uploads())
def test_odd_pictures_are_searched_with(client, kind):
    response = client.post("/api/search", content=odd_uploads()[kind])
    assert len(found(response)) == 8
    size = response.json()["width"], response.json()["height"]
    assert size == ((48, 64) if kind == "turned" else (64, 48))


def test_what_is_no_picture_is_one_line_and_the_server_stays_up(client):
    post = lambda content, name="x.jpg": client.post("/api/pictures", content=content, params={"name": name})
    assert "is not a picture" in error_of(post(b"hello, world", "notes.jpg"), 400)
    assert "the file is empty" in error_of(post(b""), 400)
    truncated = encoded(Image.effect_noise((300, 300), 50), "JPEG")[:2000]
    assert "is damaged and cannot be decoded" in error_of(post(truncated), 400)
    assert "holds no file" in error_of(client.post("/api/pictures", files={"a": (None, "b")}), 400)
    assert error_of(client.get("/nothing"), 404) == "Not Found"
    assert client.get("/api/pictures").status_code == 405
    assert client.get("/api/gallery").status_code == 200


def test_pixels_are_counted_before_they_are_decoded(client, monkeypatch):
    def refuse(image):
        raise AssertionError("decoded")

    monkeypatch.setattr(uploads, "to_rgb", refuse)
    for side in (10_000, 20_000):  # from the second on Pillow itself refuses to open it
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"")),
            (b"IEND", b""),
        ]
        large = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        line = error_of(client.post("/api/pictures?name=large.png", content=large), 400)
        assert line == "large.png: more than 89 million pixels; choose a smaller picture"


def test_bodies_are_bounded_while_they_are_read(client, monkeypatch):
    def chunks():  # without a length that is told beforehand
        for _ in range(30):
            yield b"x" * 100_000

    response = client.post("/api/pictures", content=b"x", headers={"Content-Length": "60000000"})
    assert "larger than 50 MB" in error_of(response, 413)
    monkeypatch.setattr(api, "MOST_BYTES", 2_000_000)
    assert client.post("/api/pictures", content=chunks()).status_code == 413
    assert client.post("/api/pictures", files={"image": b"x" * 2_100_000}).status_code == 413
    monkeypatch.setattr(uploads, "KEPT_BYTES", 1000)
    held = uploads.Uploads()
    first, second = (held.add(encoded(Image.effect_noise((24, 24), n)), str(n)) for n in (30, 60))
    with pytest.raises(ValueError, match="no longer held"):
        held.find(first)
    assert held.find(second).name == "60"
    monkeypatch.setattr(uploads, "decode_upload", None)  # neither the same bytes again nor the last picture is decoded
    assert held.add(held.find(second).content, "new name") == second
    assert held.find(second).name == "new name"
    assert held.read(second).size == (24, 24)


def test_a_fault_is_one_line_and_no_traceback(client, loaded):
    def fail(image):
        raise RuntimeError("secret")

    broken = TestClient(
        make_app(loaded._replace(describe=fail)), base_url="http://localhost", raise_server_exceptions=False
    )
    response = broken.post("/api/search", content=encoded(scene(("red", "blue"))))
    assert "content-security-policy" in response.headers
    assert error_of(response, 500) == "the server failed: RuntimeError; its terminal says where"
    assert broken.get("/api/gallery").status_code == 200


def test_a_gallery_of_one_image_and_one_whose_files_are_gone():
    one = loaded_gallery({"a/1.jpg": scene(("red", "blue"))})._replace(find_picture=lambda name: None)
    client = TestClient(make_app(one), base_url="http://127.0.0.1")
    document = client.get("/api/search?image=a/1.jpg").json()
    assert document["results"] == []
    assert document["nearest"] is None
    assert "gone or damaged; index the folder again" in error_of(client.get("/api/picture?image=a/1.jpg"), 400)


def test_the_api_is_described_by_openapi(client):
    document = client.get("/api/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    routes = {(route.path, method.lower()) for route in client.app.routes for method in route.methods - {"HEAD"}}
    described = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert described == {one for one in routes if one[0].startswith("/api/")} - {("/api/openapi.json", "get")}
    for path, schema in (
        ("/api/gallery", "Gallery"), ("/api/images", "Images"), ("/api/search?image=green.jpg", "Search"),
    ):  # fmt: skip
        found = client.get(path).json()
        assert set(found) == set(schemas[schema]["required"])
        if "results" in found:
            row = schemas[schema]["properties"]["results"]["items"]["required"]
            assert set(found["results"][0]) == set(row)
    references = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
    assert {text.split('"')[0] for text in references} <= set(schemas)


def test_words_order_the_gallery_and_nothing_is_judged(client, loaded):
    """Within a folder and with marks as pictures do; the nearest to green is green."""
    assert client.get("/api/gallery").json()["text"] is False
    assert "reads no texts; search with a picture" in error_of(client.get("/api/search?text=green"), 400)
    app = make_app(loaded, reranks={"local_scaling": partial(local_scaling, k=2)}, by_text=gallery_by_words(loaded))
    reading = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
    assert reading.get("/api/gallery").json()["text"] is True
    document = reading.get("/api/search?text=green").json()
    assert document["query"] == "green"
    assert document["results"][0]["image_id"] == "green.jpg"
    assert (document["known"], document["verdict"], document["threshold"]) == (None, None, None)
    assert document["words"].startswith("ordered by likeness to the words: nearest at ")
    assert {one["near"] for one in document["results"]} == {None}
    assert loaded.search.point  # pictures are judged
    assert {name.split("/")[0] for name in found(reading.get("/api/search?text=red&folder=blue"))} == {"blue"}
    assert found(reading.get("/api/search?text=red&label=red")) == ["red/1.jpg", "red/2.jpg", "red/more/3.jpg"]
    moved = reading.get("/api/search?text=red&relevant=blue/1.jpg").json()
    assert moved["changes"]["up"] + moved["changes"]["down"] > 0
    for parameters, words in (
        ("text=red&image=green.jpg", "image, picture, text: name one of them"),
        ("text=red&rerank=local_scaling", "text: does not go with crop, rerank or head; leave these out"),
        ("text=red&crop=1,1,9,9", "text: does not go with crop"),
        (f"text={'red' * 400}", "text: more than 1000 letters"),
        ("text=%20", "image, picture, text: name one of them"),
    ):
        assert error_of(reading.get(f"/api/search?{parameters}"), 400).startswith(words)


def test_a_first_view_shows_all_parts_of_a_gallery(client):
    get = lambda **values: found(client.get("/api/images", params={"spread": 1, **values}))
    names = sorted(PICTURES)
    assert get(count=4) == [names[0], names[2], names[4], names[6]]
    assert get(count=8) == get(count=100) == names
    assert get(count=8, label="none") == []
