"""Fuzzed: the files of a gallery, which is loaded, searched and indexed again."""

import json
import random
import shutil
import sqlite3
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from fgis.commands.command_line import parse
from fgis.errors import UserError
from fgis.experiment import galleries, graphs
from fgis.experiment.differences import to_plain
from fgis.experiment.gallery_about import NAME, About
from fgis.features import description
from fgis.gallery.search import SearchOptions, rank_picture
from fgis.gallery.store import DATABASE
from fgis.gallery.tiles import Tiles
from tests.faults.fuzz import Target
from tests.faults.fuzz_features import attempt
from tests.faults.mutations import NUMBERS, TEXTS, damage_bytes, damage_json
from tests.gallery.photos import TINY, Network, photo, save

COUNT = 8
TABLES = {
    "images": ("image_id", "label", "bytes", "modified_ns", "sha256"),
    "contents": ("sha256", "width", "height", "taken", "vector"),
    "thumbnails": ("sha256", "webp"),
    "tiles": ("sha256", "number", "x", "y", "width", "height", "vector"),
    "bad": ("image_id", "reason"),
    "meta": ("key", "value"),
}


class Indexed(NamedTuple):
    """A gallery of some pictures, and the same with windows."""

    images: Path
    config: dict[str, Any]
    files: list[dict[str, bytes]]  # of each gallery
    place: Path


def prepare_galleries(folder: Path) -> Indexed:
    description.load_extractor = Network()  # type: ignore[assignment]  # nothing is downloaded, and it takes no time
    images = folder / "images"
    for number in range(COUNT):
        save(images / f"{number % 3}" / f"{number}.png", number)
    call = parse(["--config=configs/photos.py", "--mode=index", *TINY, "--gallery=x"])
    assert call
    config, found = to_plain(call.config), []
    for name, tiles in (("plain", None), ("tiled", Tiles(64, 48))):
        scan, root = galleries.scan_images(str(images), folder / name)
        galleries.index_gallery(config, scan, About(root, config, "", None, ""), folder / name, tiles=tiles)
        with closing(sqlite3.connect(folder / name / DATABASE)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        found.append({path.name: path.read_bytes() for path in (folder / name).iterdir() if path.is_file()})
    return Indexed(images, config, found, folder / "changed.sqlite")


def change_rows(content: bytes, rng: random.Random, place: Path) -> bytes:
    """The database with other values, rows or tables."""
    place.write_bytes(content)
    with closing(sqlite3.connect(place, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        for _ in range(rng.choice((1, 1, 2, 3))):
            table = rng.choice([*TABLES])
            column = rng.choice(TABLES[table])
            numbers = [one for one in NUMBERS if isinstance(one, float) or abs(one) < 2**63]
            value = rng.choice(
                (
                    rng.choice(numbers),
                    rng.choice(TEXTS),
                    None,
                    b"",
                    b"\x00" * 384,
                    b"\xff" * 768,
                    b"[1]",
                    b"abc",
                    json.dumps(rng.choice(([1], [0], [192], {}, "a", None, [2, 96], -1, [1e9], [64, 48]))),
                )
            )
            if isinstance(value, str):
                value = value.encode("utf-8", "replace").decode()
            rows = rng.choice(("", " WHERE rowid = 1", " WHERE rowid = 3"))
            command = rng.choice(
                (f"UPDATE OR REPLACE {table} SET {column} = ?{rows}",) * 6
                + (
                    f"DELETE FROM {table}{rows}",
                    f"DROP TABLE {table}",
                    f"ALTER TABLE {table} DROP COLUMN {column}",
                    f"ALTER TABLE {table} ADD COLUMN more",
                )
            )
            try:
                connection.execute(command, (value,) if "?" in command else ())
            except sqlite3.Error:  # SQLite refuses it
                continue
    return place.read_bytes()


def damage_gallery(state: Indexed, rng: random.Random) -> bytes:
    """In JSON: which gallery, a file of it, its bytes in Latin-1."""
    number = rng.randrange(2)
    files = state.files[number]
    name = rng.choice([DATABASE, DATABASE, DATABASE, NAME, NAME, *[one for one in files if one == graphs.NAME]])
    whole = files[name]
    if name == NAME:
        content = damage_json(whole, rng)
    elif name == DATABASE and rng.random() < 0.6:
        content = change_rows(whole, rng, state.place)
    else:
        content = damage_bytes(whole, rng, 40)
    return json.dumps([number, name, content.decode("latin-1")]).encode()


def check_gallery(state: Indexed, content: bytes, folder: Path) -> None:
    number, name, changed = json.loads(content)
    gallery = folder / "gallery"
    picture = photo(3)

    def renew() -> None:
        shutil.rmtree(gallery, ignore_errors=True)
        gallery.mkdir()
        for one, whole in state.files[number].items():
            (gallery / one).write_bytes(whole)
        (gallery / name).write_bytes(changed.encode("latin-1"))

    def search() -> None:
        call = parse([f"--gallery={gallery}", "--mode=search"])
        assert call
        loaded = galleries.load_gallery(gallery)
        count = len(loaded.records)
        for rerank in ("none", "k_reciprocal"):
            options = SearchOptions(k=min(5, count), rerank=loaded.make_rerank(rerank))
            found = rank_picture(loaded.search, loaded.describe, picture, options)
            assert found.found.rows.max() < len(loaded.search.embeddings)
        for one in loaded.records:
            try:
                loaded.thumbnail(one.image_id)
            except KeyError:  # the page says that there is no such image
                continue

    def index() -> None:
        scan, root = galleries.scan_images("", gallery)
        with redirect_stdout(StringIO()):
            done = galleries.index_gallery(state.config, scan, About(root, state.config, "", None, ""), gallery)
        assert done.images <= COUNT

    renew()
    refusal = None
    try:
        search()
    except UserError as error:
        refusal = error
    renew()
    attempt(index, search)
    if refusal:
        raise refusal


TARGETS = {"gallery": Target(prepare_galleries, damage_gallery, check_gallery)}
