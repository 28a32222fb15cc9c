"""Serves the search page of a gallery to the browsers of this machine, with a JSON API."""

import contextlib
import socket
from pathlib import Path
from typing import Annotated, Any, NamedTuple

WORKDIR = "optional"  # without one: as the gallery was indexed
READS_SAVED_CONFIG = True
CONFIG = "photos"
GO_ON = "the server stopped; the gallery is as it was"
EVERYWHERE = ("0.0.0.0", "::", "")


class Options(NamedTuple):
    """The flags of ``--mode=serve``."""

    gallery: Annotated[str, "the folder of the gallery"] = ""
    port: Annotated[int, "where the page listens; 0 for any free port"] = 8000
    host: Annotated[str, "the address that the page listens on; 0.0.0.0 shows it to the whole network"] = "127.0.0.1"
    step: Annotated[int | None, "the checkpoint whose heads embed; the latest without it"] = None
    heads: Annotated[str, "further runs whose heads can be chosen on the page: their folders, with commas"] = ""
    engine: Annotated[str, "milvus:ADDRESS: search the collection that --mode=export wrote there"] = ""
    collection: Annotated[str, "the collection of Milvus"] = "fgis"
    use_head: Annotated[str, "of the run: always, never, or auto: where its report shows that it helps"] = "auto"


def run(config: Any, workdir: Path | None, options: Options) -> None:
    """Serves until it is interrupted.

    Raises:
      UserError: there is no gallery, the port is taken, or the extra ``photos`` is not installed.
    """
    from fgis.errors import UserError

    if not options.gallery:
        raise UserError("--gallery: missing; name the folder that --mode=index wrote, such as --gallery=gallery")
    try:
        import starlette
        import uvicorn
    except ImportError as error:
        raise UserError(f"--mode=serve: {error.name} is not installed; pip install '.[photos]' brings it") from error
    del starlette
    from functools import cache
    from threading import Thread

    from fgis.experiment.differences import to_plain
    from fgis.experiment.engines import search_by_engine
    from fgis.experiment.galleries import load_gallery
    from fgis.experiment.gallery_text import gallery_reads_texts, open_by_text
    from fgis.experiment.head_use import check_engine
    from fgis.web.app import HOSTS, make_app

    listening = listen(options)  # before anything slow: a port that is taken is said at once
    with listening:
        use_head = check_engine(options.use_head, options.engine)
        more = [name for name in options.heads.split(",") if name]
        loaded = load_gallery(options.gallery, to_plain(config), str(workdir or ""), options.step, more, use_head)
        absolute = str(workdir.absolute()) if workdir else ""
        loaded = search_by_engine(loaded, options.gallery, options.engine, absolute, options.collection)
        hosts = ["*"] if options.host in EVERYWHERE else [*HOSTS, options.host]
        places = make_describe_places(config)
        words = cache(lambda: open_by_text(options.gallery, loaded)) if gallery_reads_texts(options.gallery) else None
        app = make_app(loaded, reranks=list_reranks(loaded), describe_places=places, by_text=words, hosts=hosts)
        Thread(target=warm_up, args=[loaded], daemon=True).start()
        name = f"[{options.host}]" if ":" in options.host else options.host or "0.0.0.0"
        print(loaded.search.words)
        print(f"http://{name}:{listening.getsockname()[1]}  (Ctrl-C stops it)", flush=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
        # Where Ctrl-C is ignored, as in a script's background job, uvicorn stops too but raises nothing.
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
        print("fgis: stopped; the gallery is as it was")
        raise SystemExit(130)


def listen(options: Options) -> socket.socket:
    """A socket on ``--host`` and ``--port``."""
    from fgis.errors import UserError

    if not 0 <= options.port < 65536:
        raise UserError(f"--port={options.port}: no port; write a whole number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host or None, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UserError(f"--host={options.host}: no address of this machine ({error.strerror})") from error
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(
            f"--port={options.port}: cannot be listened on at {options.host} ({error.strerror}); choose another"
        ) from error
    return listening


def list_reranks(loaded: Any) -> dict[str, Any]:
    """The re-rankings that go with the distance of a gallery, with the options of its configuration."""
    from fgis.retrieval.rerank import DIRECTIONS, RERANKERS

    if loaded.search.prepared.distance not in DIRECTIONS:
        return {}
    made = {name: loaded.make_rerank(name) for name in RERANKERS}
    return {name: rerank for name, rerank in made.items() if rerank is not None}


def make_describe_places(config: Any) -> Any:
    """A function from a picture to its features at every place; None where their mean is not what galleries hold."""
    from functools import cache

    from fgis.experiment.config import extraction_settings, read_settings
    from fgis.experiment.differences import to_plain
    from fgis.features import description
    from fgis.features.backbones import find_backbone
    from fgis.features.store import image_sizes

    settings = extraction_settings(read_settings(to_plain(config)).features)
    several = len(image_sizes(settings.image_size)) > 1
    if settings.pooling != "avg" or settings.fit != "squash" or several:  # other fits show a part or a border
        return None
    if not find_backbone(settings.backbone).stride:  # one vector for the whole image
        return None
    spatial = settings._replace(pooling="spatial")
    load = cache(lambda: description.load_extractor(spatial))  # when the first heat map is wanted
    return lambda image: description.describe(load(), spatial, image)


def warm_up(loaded: Any) -> None:
    """Compiles what the first search needs while the page is opened; what fails is said by the search itself."""
    from contextlib import suppress

    from PIL import Image

    from fgis.web.query import DEFAULT_LISTED
    from fgis.web.ranking import nearest_distance, rank_rows

    with suppress(Exception):
        first = loaded.search.features[:1]
        rank_rows(loaded.search, first, None, 0, DEFAULT_LISTED, None)
        nearest_distance(loaded.search, first, 0)
        loaded.search.prepare(loaded.describe(Image.new("RGB", (64, 64))))
