"""The engine of many machines: a collection of Milvus, by pymilvus; milvus-lite where the address is a file.

Milvus finds candidates and their vectors; distances are computed again here, pair by pair, as by the exact search, so
that they have the same bits and the same order. Where rounding in Milvus could have hidden a nearer image, more
candidates are fetched.
"""

import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from jaxtyping import Float

from fgis.errors import UserError
from fgis.gallery.engines import Hit, check_search, prepare_entries
from fgis.retrieval.measures import Measure, find_measure
from fgis.retrieval.prepare import prepare_queries

METRICS = {
    "euclidean": "L2", "squared_euclidean": "L2", "unit_euclidean": "L2", "inner_product": "IP", "cosine": "COSINE",
}  # fmt: skip
FLAT = {"index_type": "FLAT", "params": {}}
NUMBERS = 1 << 20  # of embeddings that are sent at a time: 4 MiB; a server refuses messages of 64 MiB
IDS = 1000  # that are deleted at a time
DEEPEST = 16_384  # candidates that Milvus gives at most
FETCHED = 1 << 23  # numbers of their embeddings at most: 32 MiB, so that an answer is no message that is refused
MARGIN, WIDER = 6, 8  # candidates beyond k, and times as many where they are not enough
SECONDS = 10  # in which a server has to answer when it is opened
DISTANCE, SOURCE = "fgis.distance", "fgis.source"  # properties of a collection
WITHOUT = "is not installed; pip install '.[engines]' installs what Milvus needs"


class MilvusEngine:
    """A collection of Milvus behind the protocol of engines; ``open_milvus`` makes one."""

    def __init__(self, client: Any, collection: str, distance: str, dimensions: int, approximate: bool) -> None:
        """Takes a connected ``MilvusClient`` and a collection that is there and loaded."""
        self._client, self._collection = client, collection
        self._measure, self._distance, self._dimensions = find_measure(distance), distance, dimensions
        self._approximate = approximate  # then widening the search would promise nothing
        self._deepest = min(DEEPEST, FETCHED // dimensions)

    def upsert(self, image_ids: Sequence[str], labels: Sequence[str], embeddings: Float[np.ndarray, "n d"]) -> None:
        """Adds images, or replaces those of the same ids, some thousands at a time.

        Raises:
          ValueError: as ``prepare_entries``, or embeddings of another size than the collection's.
          UserError: the server refuses them or cannot be reached any more.
        """
        vectors = prepare_entries(image_ids, labels, embeddings, self._distance)
        self._require_size(vectors.shape[1], "embeddings")
        step = max(1, NUMBERS // self._dimensions)
        for start in range(0, len(vectors), step):
            here = slice(start, start + step)
            rows = [
                {"image_id": image_id, "label": label, "embedding": vector}
                for image_id, label, vector in zip(image_ids[here], labels[here], vectors[here], strict=True)
            ]
            with one_line(self._collection):
                self._client.upsert(self._collection, rows)

    def delete(self, image_ids: Sequence[str]) -> None:
        """Removes images; ids that are not there are passed over."""
        for start in range(0, len(image_ids), IDS):
            with one_line(self._collection):
                self._client.delete(self._collection, filter=one_of("image_id", image_ids[start : start + IDS]))

    def image_ids(self) -> list[str]:
        """The ids of all images, in order."""
        found: list[str] = []
        with one_line(self._collection):
            rows = self._client.query_iterator(
                self._collection, filter="", output_fields=["image_id"], batch_size=IDS, consistency_level="Strong"
            )
            while block := rows.next():
                found += [row["image_id"] for row in block]
            rows.close()
        return sorted(found)

    def count(self) -> int:
        """How many images there are."""
        with one_line(self._collection):
            found = self._client.query(
                self._collection, filter="", output_fields=["count(*)"], consistency_level="Strong"
            )
        return int(found[0]["count(*)"])

    def search(
        self, vector: Float[np.ndarray, " d"], k: int, where: Mapping[str, Collection[str]] | None = None
    ) -> list[Hit]:
        """The ``k`` nearest images that pass the filter; of equally near ones the first id first.

        Raises:
          ValueError: ``k`` below 1 or above what Milvus gives, an unknown field, or a vector of another size.
          UserError: the server cannot be reached any more.
        """
        wanted = check_search(k, where)
        if k > self._deepest:
            raise ValueError(f"k: {k} found; of embeddings of this size Milvus gives {self._deepest} at most")
        (query,) = prepare_queries(np.asarray(vector)[None], self._distance)
        self._require_size(len(query), "vector")
        if not all(wanted.values()):
            return []  # one field may have no value at all
        parts = (in_folders(values) if name == "folder" else one_of(name, values) for name, values in wanted.items())
        text, depth = " and ".join(parts), min(k + MARGIN, self._deepest)
        while True:
            rows, vectors = self._fetch(query, depth, text)
            keys = self._measure.exact(query, vectors)
            if len(rows) < depth or depth == self._deepest or self._approximate:
                break
            if np.partition(keys, k - 1)[k - 1] < _least_hidden(query, vectors, keys, self._measure):
                break
            depth = min(WIDER * depth, self._deepest)
        distances = self._measure.finish(keys)
        order = sorted(range(len(rows)), key=lambda place: (distances[place], rows[place][0]))[:k]
        return [Hit(*rows[place], float(distances[place])) for place in order]

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _fetch(self, query: np.ndarray, depth: int, text: str) -> tuple[list[tuple[str, str]], np.ndarray]:
        """(image id, label) and vector of the ``depth`` nearest by Milvus."""
        with one_line(self._collection):
            (found,) = self._client.search(
                self._collection, data=[query], limit=depth, filter=text, anns_field="embedding",
                output_fields=["image_id", "label", "embedding"], consistency_level="Strong",
            )  # fmt: skip
        rows = [(one["image_id"], one["entity"]["label"]) for one in found]
        vectors = np.array([one["entity"]["embedding"] for one in found], np.float32)
        return rows, vectors.reshape(-1, self._dimensions)

    def _require_size(self, found: int, name: str) -> None:
        if found != self._dimensions:
            raise ValueError(
                f"{name}: {found} numbers found; those of the collection {self._collection} have {self._dimensions}"
            )


def open_milvus(
    address: str,
    distance: str,
    dimensions: int,
    *,
    collection: str = "fgis",
    source: str = "",
    index: Mapping[str, Any] = FLAT,
    create: bool = False,
) -> MilvusEngine:
    """A collection of a server, or of a file by milvus-lite.

    Args:
      address: ``http://HOST:PORT`` of a server, or a path that ends in ``.db``.
      distance: a key of ``METRICS``.
      dimensions: of an embedding.
      collection: its name.
      source: what the embeddings are of; a collection that was made of something else is refused. "" for anything.
      index: type and parameters of the index that a new collection gets.
      create: make the collection where there is none.

    Raises:
      ValueError: Milvus has not this distance.
      UserError: pymilvus is not installed, the address is none or cannot be reached, or the collection is missing or
        holds other embeddings.
    """
    if distance not in METRICS:
        raise ValueError(f"distance: {distance!r} found; Milvus has {', '.join(METRICS)}")
    if not re.fullmatch(r"[A-Za-z_]\w{0,254}", collection, re.ASCII):
        raise UserError(f"{address}: {collection!r} cannot name a collection; write letters, digits and underscores")
    client = connect(address, create)
    try:
        with one_line(address):
            if not client.has_collection(collection):
                if not create:
                    raise UserError(f"{address}: no collection {collection}; export a gallery to it first")
                _create(client, collection, dimensions, {DISTANCE: distance, SOURCE: source}, index)
            _require_same(client, address, collection, distance, dimensions, source)
            client.load_collection(collection)
            kind = client.describe_index(collection, "embedding")["index_type"]
    except BaseException:
        client.close()
        raise
    return MilvusEngine(client, collection, distance, dimensions, kind != "FLAT")


def connect(address: str, create: bool = False) -> Any:
    """A ``MilvusClient``; ``UserError`` where the address is none, cannot be reached, or a library is missing."""
    parts, is_file = urlsplit(address), address.endswith(".db")
    if not is_file and (parts.scheme not in ("http", "https") or not parts.hostname):
        raise UserError(f"{address}: no address of Milvus; write http://HOST:PORT, or a path that ends in .db")
    if is_file and not create and not Path(address).exists():
        raise UserError(f"{address}: no such file; export a gallery to it first")
    if is_file and Path(address).is_file():
        raise UserError(f"{address}: a file of another program (milvus-lite keeps a folder); choose another name")
    # A connection that rests is pinged more often than milvus-lite allows, which gRPC writes on stderr and gets over.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import pymilvus

        if is_file:
            import milvus_lite

            del milvus_lite
    except ImportError as error:
        raise UserError(f"{address}: {error.name} {WITHOUT}") from error
    for name in ("pymilvus", "milvus_lite", "grpc"):  # tracebacks of errors that are said in one line here
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        if is_file:
            Path(address).parent.mkdir(parents=True, exist_ok=True)
        return pymilvus.MilvusClient(address, timeout=SECONDS)
    except (pymilvus.MilvusException, OSError, ValueError) as error:
        hint = "another process may have it open" if is_file else "is the server up, and the address right?"
        raise UserError(f"{address}: cannot be opened ({_first_line(error)}); {hint}") from error


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turns what pymilvus raises in the body into a ``UserError`` of one line that begins with ``name``."""
    from pymilvus import MilvusException

    try:
        yield
    except MilvusException as error:
        raise UserError(f"{name}: Milvus says: {_first_line(error)}") from error


def one_of(field: str, values: Collection[str]) -> str:
    """A filter of Milvus: the field has one of the values.

    >>> print(one_of("label", ["cat", 'the "old" one']))
    label in ["cat", "the \\"old\\" one"]
    """
    return f"{field} in [{', '.join(json.dumps(value, ensure_ascii=False) for value in values)}]"


def in_folders(folders: Collection[str]) -> str:
    """A filter of Milvus: the image lies below one of the folders.

    As a range of ids, since "0" follows "/": patterns would need escapes, which versions of Milvus read differently.

    >>> print(in_folders(["a/b"]))
    ((image_id >= "a/b/" and image_id < "a/b0"))
    """
    quote = lambda text: json.dumps(text, ensure_ascii=False)
    ranges = (f"(image_id >= {quote(folder + '/')} and image_id < {quote(folder + '0')})" for folder in folders)
    return f"({' or '.join(ranges)})"


def _create(client: Any, name: str, dimensions: int, properties: dict[str, str], index: Mapping[str, Any]) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("image_id", DataType.VARCHAR, is_primary=True, max_length=4096)  # bytes of the longest path
    schema.add_field("label", DataType.VARCHAR, max_length=1024)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dimensions)
    indexes = client.prepare_index_params()
    indexes.add_index("embedding", index_name="embedding", metric_type=METRICS[properties[DISTANCE]], **index)
    client.create_collection(
        name, schema=schema, index_params=indexes, properties=properties, consistency_level="Strong"
    )


def _require_same(client: Any, address: str, collection: str, distance: str, dimensions: int, source: str) -> None:
    """Refuses a collection that this gallery must not be mixed with."""
    about, name = client.describe_collection(collection), f"{address}: collection {collection}"
    fields, held = {field["name"]: field for field in about["fields"]}, about.get("properties") or {}
    if DISTANCE not in held or "dim" not in fields.get("embedding", {}).get("params", {}):
        raise UserError(f"{name} is not one of fgis; choose another name for yours")
    size = int(fields["embedding"]["params"]["dim"])
    if size != dimensions:
        raise UserError(f"{name} holds embeddings of {size} numbers and not of {dimensions}; choose another name")
    if held[DISTANCE] != distance:
        raise UserError(f"{name} is searched by {held[DISTANCE]} and not by {distance}; choose another name")
    if source and held.get(SOURCE) != source:
        raise UserError(f"{name} holds another gallery ({held.get(SOURCE)}); choose another name")


def _least_hidden(query: np.ndarray, vectors: np.ndarray, keys: np.ndarray, measure: Measure) -> float:
    """What the key of no image that was left out is below, however Milvus rounded: the bound of the exact search."""
    norms = [float(np.sqrt(np.einsum("...d,...d->...", x, x).max())) for x in (query, vectors)]
    return float(keys.max()) - 8 * np.sqrt(len(query)) * float(np.finfo(np.float32).eps) * sum(norms) ** 2


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "message", "") or error).strip()
    return text.splitlines()[0] if text else type(error).__name__
