"""One gallery that is being served: from a checked request to the JSON document of its result."""

import io
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from threading import Lock
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from fgis.errors import UserError, naming
from fgis.gallery.loaded import LoadedGallery
from fgis.gallery.pictures import Box
from fgis.gallery.search import SearchGallery
from fgis.gallery.tiles import DEEPER, Found, merge_windows
from fgis.report import search_page
from fgis.report.rates import rates_words
from fgis.retrieval.rerank import DIRECTIONS, Rerank
from fgis.web.agreement import split_similarity
from fgis.web.query import PageQuery
from fgis.web.ranking import (
    Selection,
    measure_rows,
    move_query,
    nearest_distance,
    rank_rows,
    rows_of_images,
    similarity,
)
from fgis.web.uploads import Uploads, crop_picture

KEPT_FEATURES = 2000  # of pictures and parts of them that were described: going back costs no second description
SHOWN_SIDE = 1280  # pixels, the longer side of a picture on the page
DescribePlaces = Callable[[Image.Image], np.ndarray]  # an upright picture -> its features at every place, [1, h, w, f]
ByText = Callable[[], tuple[SearchGallery, Callable[[str], np.ndarray]]]  # the gallery by words, and their vectors
NO_PICTURE = Image.new("RGB", (1, 1))  # documents show none


class Described(NamedTuple):
    """The query of a request."""

    name: str  # for people
    prepared: Float[np.ndarray, "1 f"]
    own: int | None  # the row of the image that it is, or is a part of; None of an upload
    width: int  # of the whole upright picture, in pixels
    height: int


class Searcher:
    """A gallery, the pictures that were uploaded to it, and what is already known of them."""

    def __init__(
        self,
        loaded: LoadedGallery,
        reranks: Mapping[str, Rerank],
        describe_places: DescribePlaces | None = None,
        by_text: ByText | None = None,
    ) -> None:
        """Lists the folders and labels of the gallery; searches nothing yet."""
        self.loaded, self.reranks, self.uploads = loaded, dict(reranks), Uploads()
        cosine = loaded.search.judging.distance in DIRECTIONS
        self.describe_places = describe_places if cosine else None
        self.by_text = by_text
        ids = [record.image_id for record in loaded.records]
        self.row_of = {image_id: row for row, image_id in enumerate(ids)}
        self.labels = np.array([record.label for record in loaded.records], dtype=object)
        folders: dict[str, list[int]] = {}
        for row, image_id in enumerate(ids):
            for parent in PurePosixPath(image_id).parents:
                if str(parent) not in (".", "/"):
                    folders.setdefault(str(parent), []).append(row)
        self.folders = {name: np.array(rows) for name, rows in sorted(folders.items())}
        self._features: OrderedDict[tuple[str, Box | None], np.ndarray] = OrderedDict()
        self._noting = Lock()  # of ``_features``
        self._describing, self._showing = Lock(), Lock()  # one picture at a time, however many requests wait
        self._embedding = Lock()  # and one head

    def find_row(self, image_id: str) -> int:
        """The row of an image; ``UserError`` where the gallery has none of this id: no file is looked for."""
        if image_id not in self.row_of:
            raise UserError(f"{image_id[:200]!r}: the gallery has no such image")
        return self.row_of[image_id]

    def select_rows(self, label: str, folder: str) -> Int[np.ndarray, " m"] | None:
        """The rows with a label and in a folder, ascending; None where neither is asked for."""
        if not label and not folder:
            return None
        rows = self.folders.get(folder, np.empty(0, np.int64)) if folder else np.arange(len(self.labels))
        return rows[self.labels[rows] == label] if label else rows

    def overview(self) -> dict[str, Any]:
        """What a page needs to know of the gallery once: its size, labels, folders, re-rankings and operating point."""
        names, counts = np.unique(self.labels.astype(str), return_counts=True)
        point = self.loaded.search.point
        return {
            "images": len(self.labels),
            "made": self.loaded.made,
            "searched": self.loaded.search.words,
            "distance": self.loaded.search.prepared.distance,
            "threshold": point.threshold if point else None,
            "limit": point.limit if point else None,
            "labels": [{"name": str(n), "images": int(c)} for n, c in zip(names, counts, strict=True) if n],
            "folders": [{"name": name, "images": len(rows)} for name, rows in self.folders.items()],
            "reranks": sorted(self.reranks),
            "heads": list(self.loaded.heads),
            "head": self.loaded.head,
            "agreement": self.describe_places is not None,
            "text": self.by_text is not None,
        }

    def list_images(self, label: str, folder: str, start: int, count: int) -> dict[str, Any]:
        """Some images of the gallery by id, with the number of all that there are."""
        rows = self.select_rows(label, folder)
        rows = np.arange(len(self.labels)) if rows is None else rows
        return {"images": len(rows), "results": [self._describe_row(int(row)) for row in rows[start : start + count]]}

    def spread_images(self, label: str, folder: str, count: int) -> dict[str, Any]:
        """At most ``count`` images at even steps through all of them by id: a first view of a gallery of any size."""
        rows = self.select_rows(label, folder)
        rows = np.arange(len(self.labels)) if rows is None else rows
        chosen = rows[np.arange(min(count, len(rows))) * len(rows) // max(1, min(count, len(rows)))]
        return {"images": len(rows), "results": [self._describe_row(int(row)) for row in chosen]}

    def search(self, query: PageQuery) -> dict[str, Any]:
        """The document of a search: the keys of ``--json``, and what the page shows besides.

        Raises:
          UserError: the picture, the box, a mark or the re-ranking does not fit the gallery.
        """
        milliseconds: dict[str, float] = {}
        described = self._describe_query(query, milliseconds)
        gallery, began = self._by_words()[0] if query.text else self._ranked_by(query.head), perf_counter()
        marks = [[self.find_row(name) for name in names] for names in (query.relevant, query.not_relevant)]
        moved = move_query(described.prepared, *(gallery.features[rows] for rows in marks))
        rows = self.select_rows(query.label, query.folder)
        named = {"label": [query.label], "folder": [query.folder]}
        within = None if rows is None else rows_of_images(gallery, rows)
        part = None if within is None else Selection(within, {name: one for name, one in named.items() if one[0]})
        rerank = self.reranks.get(query.rerank)
        with naming("rerank: "):
            depth = query.k * (DEEPER if gallery.windows else 1)
            rank = lambda vector: merge_windows(
                gallery.windows, rank_rows(gallery, vector, part, described.own, depth, rerank), query.k
            )
            found = before = rank(moved)
            if moved is not described.prepared:
                before = rank(described.prepared)
        # The verdict is about the nearest of all images by features: mostly that is what was ranked.
        plain = gallery.prepared is gallery.judging and gallery.embed(moved) is described.prepared
        if plain and not (part or rerank or gallery.find or gallery.windows) and len(found.distances):
            nearest = float(found.distances[0])
        else:
            nearest = nearest_distance(gallery, described.prepared, described.own) if len(self.labels) > 1 else np.inf
        judged = measure_rows(described.prepared, gallery.judging, found.rows)
        milliseconds["search"] = 1000 * (perf_counter() - began)
        result = self._to_result(query, described, found, judged, nearest, milliseconds)
        document = search_page.document(result)
        old_rank = {int(row): rank for rank, row in enumerate(before.rows, 1)}
        bars = similarity(judged, gallery.judging.distance, self._scale())
        for shown, row, by_features, bar in zip(document["results"], found.rows, judged, bars, strict=True):
            shown.update(self._describe_row(self.row_of[shown["image_id"]]))
            shown.update(by_features=float(by_features), similarity=float(bar))
            shown.update(near=result.matches[shown["rank"] - 1].near, rank_before=old_rank.get(int(row)))
        return document | self._words(query, result, rows, described) | self._changes(query, before, found)

    def agree(self, query: PageQuery, image_id: str) -> dict[str, Any]:
        """Where the query and an image of the gallery agree: the parts of their similarity at the places of each.

        Raises:
          UserError: there is no such picture, or the gallery's features cannot be divided among places.
        """
        if self.describe_places is None:
            raise UserError("agreement: the features of this gallery cannot be divided among places")
        with self._describing:
            images = [self.read_part(query), self.read_upload_or_image(image_id, "")]
            places = [np.asarray(self.describe_places(image))[0] for image in images]
        prepare = self.loaded.search.prepare
        own, other = (np.asarray(prepare(one.mean(axis=(0, 1))[None]))[0] for one in places)
        maps = split_similarity(places[0], own, other), split_similarity(places[1], other, own)
        return {"similarity": float(maps[0].sum()), "query": maps[0].tolist(), "result": maps[1].tolist()}

    def read_part(self, query: PageQuery) -> Image.Image:
        """The picture of a query, or the box in it."""
        image = self.read_upload_or_image(query.image, query.picture)
        return crop_picture(image, query.crop) if query.crop else image

    def read_upload_or_image(self, image_id: str, key: str) -> Image.Image:
        """The whole upright picture of an image id or of an upload.

        Raises:
          UserError: there is none, or its file is gone or damaged.
        """
        if key:
            return self.uploads.read(key)
        self.find_row(image_id)
        image = self.loaded.find_picture(image_id)
        if image is None:
            raise UserError(f"{image_id}: the file is gone or damaged; index the folder again")
        return image

    def show_thumbnail(self, image_id: str) -> bytes:
        """The thumbnail as WebP; ``UserError`` where the gallery was indexed again without the image."""
        try:
            return self.loaded.thumbnail(image_id)
        except KeyError as error:
            raise UserError(f"{image_id[:200]!r}: the gallery has no such image") from error

    def show_picture(self, image_id: str, key: str) -> bytes:
        """The picture as a JPEG for the page, the longer side at most ``SHOWN_SIDE``."""
        with self._showing:
            image = self.read_upload_or_image(image_id, key)
            scale = min(1, SHOWN_SIDE / max(image.size))
            size = [max(1, round(side * scale)) for side in image.size]
            image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=88)
        return buffer.getvalue()

    def _by_words(self) -> tuple[SearchGallery, Callable[[str], np.ndarray]]:
        """The gallery as words are compared with it, opened with the first of them."""
        if self.by_text is None:
            raise UserError("text: the network that described this gallery reads no texts; search with a picture")
        with self._describing:
            return self.by_text()

    def _describe_query(self, query: PageQuery, milliseconds: dict[str, float]) -> Described:
        if query.text:
            (_, encode), began = self._by_words(), perf_counter()
            vector = encode(query.text)
            milliseconds["describe"] = 1000 * (perf_counter() - began)
            return Described(query.text, vector, None, 0, 0)
        if query.picture:
            upload, own = self.uploads.find(query.picture), None
            name, width, height = upload.name, upload.width, upload.height
        else:
            own = self.find_row(query.image)
            record = self.loaded.records[own]
            name, width, height = query.image, record.width, record.height
            if not query.crop:
                return Described(name, self.loaded.search.features[own : own + 1], own, width, height)
        key = (query.picture or query.image, query.crop)
        with self._noting:
            prepared = self._features.get(key)
        if prepared is None:
            with self._describing:
                prepared = self._describe_part(query, milliseconds)
        with self._noting:
            self._features[key] = prepared
            self._features.move_to_end(key)
            while len(self._features) > KEPT_FEATURES:
                self._features.popitem(last=False)
        return Described(name, prepared, own, width, height)

    def _describe_part(self, query: PageQuery, milliseconds: dict[str, float]) -> Float[np.ndarray, "1 f"]:
        """The prepared features of an upload, or of the box in a picture."""
        began = perf_counter()
        image = self.read_part(query)
        decoded = perf_counter()
        prepared = self.loaded.search.prepare(self.loaded.describe(image))
        milliseconds.update(decode=1000 * (decoded - began), describe=1000 * (perf_counter() - decoded))
        return np.asarray(prepared)

    def _ranked_by(self, head: str) -> SearchGallery:
        """The gallery under a head, which embeds it when it is first asked for."""
        if head in ("", self.loaded.head):
            return self.loaded.search
        with self._embedding:
            return self.loaded.search_by(head)

    def _describe_row(self, row: int) -> dict[str, Any]:
        record = self.loaded.records[row]
        return {
            "image_id": record.image_id,
            "label_name": record.label,
            "width": record.width,
            "height": record.height,
            "taken": record.taken,
        }

    def _to_result(
        self, query: PageQuery, described: Described, found: Found, judged: Float[np.ndarray, " k"],
        nearest: float, milliseconds: dict[str, float],
    ) -> search_page.SearchResult:  # fmt: skip
        gallery = self._by_words()[0] if query.text else self.loaded.search
        listed = zip(found.images.tolist(), found.distances.tolist(), judged.tolist(), found.boxes, strict=True)
        matches = [
            search_page.Match(
                rank=rank,
                image_id=self.loaded.records[row].image_id,
                label=int(gallery.labels[row]) if self.loaded.records[row].label else -1,
                label_name=self.loaded.records[row].label,
                distance=distance,
                picture=None,
                near=bool(by_features <= gallery.point.threshold) if gallery.point else None,
                box=box,
            )
            for rank, (row, distance, by_features, box) in enumerate(listed, 1)
        ]
        order = f"re-ranked by {query.rerank.replace('_', ' ')}" if query.rerank else search_page.NEAREST_FIRST
        return search_page.SearchResult(
            path=described.name,
            picture=NO_PICTURE,
            nearest=nearest,
            point=gallery.point,
            matches=matches,
            order=order,
            gallery=gallery.words,
            milliseconds=milliseconds,
            words=bool(query.text),
        )

    def _words(
        self, query: PageQuery, result: search_page.SearchResult, rows: np.ndarray | None, described: Described
    ) -> dict[str, Any]:
        """What the page says of a search, besides its document."""
        plain = not (query.label or query.folder or query.relevant or query.not_relevant)
        order = result.order if plain else "of a part"  # the verdict is about the nearest image of the whole gallery
        return {
            "words": search_page.verdict_words(result._replace(order=order)),
            "rates": rates_words(result.point),
            "order": result.order,
            "searched": len(self.labels) if rows is None else len(rows),
            "width": described.width,
            "height": described.height,
        }

    def _changes(self, query: PageQuery, before: Found, after: Found) -> dict[str, Any]:
        """How marks changed the ranking: how many images are new, went up or went down; null without marks."""
        if not query.relevant and not query.not_relevant:
            return {"changes": None}
        old = {row: rank for rank, row in enumerate(before.rows.tolist())}
        moves = [old[row] - rank for rank, row in enumerate(after.rows.tolist()) if row in old]
        return {
            "changes": {
                "new": len(after.rows) - len(moves),
                "up": sum(move > 0 for move in moves),
                "down": sum(move < 0 for move in moves),
                "same": sum(move == 0 for move in moves),
            }
        }

    def _scale(self) -> float:
        """A distance whose bar is half full, for distances that are not told as a cosine."""
        point = self.loaded.search.point
        return point.threshold if point and np.isfinite(point.threshold) and point.threshold > 0 else 1.0
