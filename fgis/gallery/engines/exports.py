"""The embeddings of a gallery as files for other programs: Parquet, and an index of faiss with its image ids."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from fgis import files
from fgis.errors import UserError
from fgis.gallery.store import ImageRecord
from fgis.retrieval.prepare import prepare_queries

BLOCK = 4096  # rows that are turned into a table at a time; a row group
PRODUCTS = {"cosine", "inner_product"}  # distances that an index of inner products searches
FAISS_DISTANCES = {*PRODUCTS, "euclidean", "squared_euclidean", "unit_euclidean", "manhattan"}


def write_parquet(
    path: str | Path,
    records: Sequence[ImageRecord],
    embeddings: Float[np.ndarray, "n d"],
    provenance: Mapping[str, Any],
) -> None:
    """A table with a row for each image: image_id, label, width, height, sha256, embedding (d numbers, float32).

    Args:
      path: of the file; it is whole or absent.
      records: [n] the images.
      embeddings: [n, d] as they are, not yet prepared for a distance.
      provenance: in JSON's types; JSON under the key ``fgis`` of the schema's metadata.

    Raises:
      UserError: pyarrow is not installed, or the file cannot be written.
    """
    with _installed(path):
        import pyarrow as pa
        from pyarrow import parquet
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    texts = [(name, pa.string()) for name in ("image_id", "label")]
    numbers = [(name, pa.int32()) for name in ("width", "height")]
    vector = pa.list_(pa.float32(), embeddings.shape[1])
    schema = pa.schema([*texts, *numbers, ("sha256", pa.string()), ("embedding", vector)])
    schema = schema.with_metadata({"fgis": _to_json(provenance)})
    with _writable(path), files.replacing(path) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for start in range(0, len(records), BLOCK):
            block, here = records[start : start + BLOCK], embeddings[start : start + BLOCK]
            columns: list[Any] = [pa.array([getattr(one, name) for one in block], kind) for name, kind in texts]
            columns += [pa.array([getattr(one, name) for one in block], kind) for name, kind in numbers]
            columns.append(pa.array([one.sha256 for one in block], pa.string()))
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(here.ravel()), embeddings.shape[1]))
            writer.write_batch(pa.record_batch(columns, schema=schema))


def write_faiss(
    path: str | Path,
    records: Sequence[ImageRecord],
    embeddings: Float[np.ndarray, "n d"],
    distance: str,
    provenance: Mapping[str, Any],
) -> Path:
    """A flat index of faiss, and beside it ``PATH.json`` with the image id and the label of each of its rows.

    The index holds embeddings as the distance compares them (unit vectors for ``cosine`` and ``unit_euclidean``):
    queries have to be brought to the same form. The ids file names the SHA-256 of the index that it belongs to.

    Args:
      path: of the index; it is whole or absent, and so is the ids file.
      records: [n] the images.
      embeddings: [n, d].
      distance: a key of ``fgis.distances.DISTANCES``.
      provenance: in JSON's types.

    Returns:
      The path of the ids file.

    Raises:
      ValueError: faiss has no flat index for the distance.
      UserError: faiss is not installed, or a file cannot be written.
    """
    if distance not in FAISS_DISTANCES:
        raise ValueError(f"distance: {distance!r} found; faiss has no flat index for it, Parquet holds any embeddings")
    with _installed(path):
        import faiss
    metric = faiss.METRIC_INNER_PRODUCT if distance in PRODUCTS else faiss.METRIC_L2
    vectors = prepare_queries(embeddings, distance, "embeddings")
    index = faiss.IndexFlat(vectors.shape[1], faiss.METRIC_L1 if distance == "manhattan" else metric)
    index.add(np.ascontiguousarray(vectors))
    ids = Path(f"{path}.json")
    with _writable(path):
        with files.replacing(path) as partial:
            faiss.write_index(index, str(partial))
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        rows = [[one.image_id, one.label] for one in records]
        files.write_json(ids, {"index_sha256": digest, "distance": distance, "provenance": provenance, "rows": rows})
    return ids


def _to_json(provenance: Mapping[str, Any]) -> str:
    return json.dumps(files.json_types(provenance), ensure_ascii=False, sort_keys=True)


@contextmanager
def _installed(path: str | Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(f"{path}: {error.name} is not installed; pip install '.[engines]' installs it") from error


@contextmanager
def _writable(path: str | Path) -> Iterator[None]:
    """Whatever libraries raise about the file system, in one line; faiss raises RuntimeError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be written ({reason}); name another file") from error
