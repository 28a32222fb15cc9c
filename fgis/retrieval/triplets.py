"""The protocol of Deep Ranking: are (query, positive, negative) ordered as people ordered them?

Reference: Wang, Song, Leung, Rosenberg, Wang, Philbin, Chen and Wu, Learning fine-grained image similarity with deep
ranking, CVPR 2014, arXiv:1404.4661.
"""

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from fgis.errors import UserError
from fgis.retrieval.measures import find_measure
from fgis.retrieval.prepare import prepare_queries
from fgis.retrieval.stored import StoredVectors, search_in, searchable

HEADER = ["query", "positive", "negative"]
SCORE_DEPTH = 30  # K of score_at_k, as published


class TripletScores(NamedTuple):
    """How one model orders a set of triplets."""

    correct: Bool[np.ndarray, " t"]  # whether D(q, p) < D(q, n); their mean is the similarity precision
    counted: Bool[np.ndarray, " t"]  # whether p or n is among the K nearest of q
    score: int  # score@K: correct less incorrect triplets among those counted


class TripletFile(NamedTuple):
    """The content of a triplet file."""

    rows: Int[np.ndarray, "t 3"]  # of images: query, positive, negative
    left_out: tuple[str, ...]  # why each line that cannot be scored is left out, beginning with its line number


def read_triplets(
    path: str | Path, image_ids: np.ndarray, *, on_bad_line: Literal["skip", "stop"] = "skip"
) -> TripletFile:
    """The triplets of a CSV file of ``query,positive,negative`` image ids, with or without that line as a header.

    Public triplet files name the same photo twice in some lines, and photos that are no longer on the web. Such lines
    cannot be scored; they are left out and listed.

    Args:
      path: the file, in UTF-8; empty lines are passed over.
      image_ids: of all images, [n].
      on_bad_line: whether lines that cannot be scored are left out, or the first of them is an error.

    Raises:
      UserError: a line of other than three ids, no triplet that can be scored, no file that can be read, or, with
        ``on_bad_line="stop"``, a line that cannot be scored. The message begins with the path and, where there is one,
        the line.
    """
    place = {str(image_id): row for row, image_id in enumerate(image_ids)}
    rows, left_out = [], []
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig", newline="") as file:
            for number, line in enumerate(csv.reader(file, strict=True), 1):
                ids = [cell.strip() for cell in line]
                if not any(ids) or (number == 1 and [cell.lower() for cell in ids] == HEADER):
                    continue
                if len(ids) != 3 or not all(ids):
                    raise UserError(f"{path}:{number}: found {','.join(ids)!r}; write 'query,positive,negative'")
                if reason := _reason_against(ids, place):
                    left_out.append(f"{number}: {reason}")
                else:
                    rows.append([place[one] for one in ids])
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({why}); name a CSV file in UTF-8") from error
    if left_out and (on_bad_line == "stop" or not rows):
        more = "" if rows else f"; none of {len(left_out)} lines can be scored"
        raise UserError(f"{path}:{left_out[0]}{more}")
    if not rows:
        raise UserError(f"{path}: no triplet in it; write lines of 'query,positive,negative'")
    return TripletFile(np.array(rows), tuple(left_out))


def _reason_against(ids: Sequence[str], place: Mapping[str, int]) -> str:
    """Why a line cannot be scored; "" where it can."""
    for one in ids:
        if one not in place:
            near = difflib.get_close_matches(one, place, 1, 0.6)
            hint = f"did you mean {near[0]!r}?" if near else "write ids as the feature file has them"
            return f"no image {one!r} among these features; {hint}"
    return "" if len(set(ids)) == 3 else f"found {','.join(ids)!r}; name three different images"


def evaluate_triplets(
    embeddings: Float[Array | np.ndarray, "n d"] | StoredVectors,
    triplets: Int[np.ndarray, "t 3"],
    distance: str = "cosine",
    k: int = SCORE_DEPTH,
) -> TripletScores:
    """How embeddings order triplets of images, by the distances that ``search`` ranks by.

    Similarity precision: the share of triplets with D(q, p) < D(q, n); a tie is not correct. score@K: the number of
    correct less the number of incorrect ones among the triplets whose p or n is in the K nearest of q among all
    images, the query left out by its row and ties by the lowest row; a count, which grows with the number of triplets.

    Args:
      embeddings: of all images, [n, d].
      triplets: rows of images (query, positive, negative), [t, 3].
      distance: a key of ``fgis.distances.DISTANCES``.
      k: K; beyond the number of images, every triplet counts.

    Returns:
      What is correct, what counts, and score@K.

    Raises:
      ValueError: as ``search``.

    >>> points = np.array([[0.0], [1.0], [3.0]], np.float32)
    >>> evaluate_triplets(points, np.array([[0, 1, 2], [2, 0, 1]]), "euclidean").correct
    array([ True, False])
    """
    embeddings = embeddings if isinstance(embeddings, StoredVectors) else np.asarray(embeddings)
    listed, place = np.unique(triplets, return_inverse=True)
    vectors, measure = prepare_queries(embeddings[listed], distance, "embeddings"), find_measure(distance)
    queries, index = np.unique(triplets[:, 0], return_inverse=True)
    gallery = searchable(embeddings, np.arange(len(embeddings)), distance)
    k = min(k, max(1, len(embeddings)))
    nearest = search_in(embeddings[queries], gallery, k, queries).rows[index]
    counted = ((nearest == triplets[:, 1:2]) | (nearest == triplets[:, 2:3])).any(axis=1)
    query, positive, negative = (vectors[place.reshape(-1, 3)[:, i]] for i in range(3))
    correct = measure.finish(measure.exact(query, positive)) < measure.finish(measure.exact(query, negative))
    return TripletScores(correct, counted, int(correct[counted].sum()) - int((~correct[counted]).sum()))
