"""When to say that the object of a query is in the gallery, that it is not, or neither; and how often that is wrong.

Two distances divide the answers: up to the threshold the object counts as known, beyond the limit as absent, and
between them it is uncertain. Both are chosen, and their error rates estimated, on the images of a gallery: as known,
each is searched among the others; as unknown, among those of other objects (``open_set.nearest_known_and_unknown``).
The rates are those of new photos that resemble the photos of the gallery; photos of another camera or season lie
farther away.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgis.ranges import Share, require
from fgis.retrieval.open_set import Scores, choose_threshold

Verdict = Literal["known", "uncertain", "absent"]
PARTS = 10  # of the objects: the share of false alarms on each is measured with the threshold of the others
STEPS = 20  # thresholds that are tried


class OperatingPoint(NamedTuple):
    """Two distances, and how often they err."""

    threshold: float  # at most this far: known
    limit: float  # farther: absent; infinite where nothing tells how far known objects may be
    detection: float  # share of photos of objects in the gallery that count as known; NaN where nothing tells
    false_alarms: float  # share of photos of other objects that count as known
    missed: float  # share of photos of objects in the gallery that count as absent; NaN where nothing tells


def choose_operating_point(
    known: Scores, unknown: Scores, objects: Int[np.ndarray, " n"], *, false_alarms: Share = 0.1, missed: Share = 0.05
) -> OperatingPoint | None:
    """The threshold of most detections at a share of false alarms, and the limit at a share of missed objects.

    The share of false alarms of a threshold is estimated on objects that it was not chosen on, (K a + ½) / (K + ½) for
    a = K / (K − 1) times the mean over parts of the K objects: each image was searched among one object less than a
    new photo will be, and ½ of an object is added, since few objects say little about others. The threshold is the
    largest of ``STEPS`` whose estimate is at most ``false_alarms``; the least where none is, as the estimate then says.
    Detections are counted on each image among the others of its object, which are one fewer than a new photo finds: a
    new photo is detected at least as often.

    Args:
      known: distances to the nearest other image, [seeds, n]; NaN where there is none of the same object.
      unknown: distances to the nearest image of another object, [seeds, n]; NaN where an image was no query.
      objects: the object of each image, [n].
      false_alarms: the share of photos of other objects that may count as known.
      missed: the share of photos of known objects that may count as absent.

    Returns:
      The operating point; None of a gallery of one object, which does not tell how near another one would be.

    Raises:
      ValueError: a share lies outside of [0, 1].

    >>> known, unknown = np.full((1, 40), 0.1), np.full((1, 40), 0.9)
    >>> point = choose_operating_point(known, unknown, np.repeat(np.arange(20), 2))
    >>> 0.1 < point.threshold < 0.9, point.detection, round(point.false_alarms, 3)
    (True, 1.0, 0.024)
    """
    require(choose_operating_point, false_alarms=false_alarms, missed=missed)
    names, index = np.unique(objects, return_inverse=True)
    if len(names) < 2 or not np.isfinite(unknown).any():
        return None
    part = np.random.default_rng(0).permutation(len(names))[index] % min(PARTS, len(names))
    for share in np.linspace(false_alarms, 0, STEPS + 1):
        estimate = _false_alarms(unknown, part, float(share), len(names))
        if estimate <= false_alarms:
            break
    threshold = choose_threshold(unknown.ravel(), float(share))
    scores = np.sort(known[~np.isnan(known)])
    if not len(scores):
        return OperatingPoint(threshold, float("inf"), float("nan"), estimate, float("nan"))
    accepted = min(int(np.ceil((1 - missed) * len(scores))), len(scores))
    limit = max(threshold, float(scores[accepted - 1]))
    return OperatingPoint(
        threshold, limit, float(np.mean(scores <= threshold)), estimate, float(np.mean(scores > limit))
    )


def judge_distance(nearest: float, point: OperatingPoint | None) -> Verdict:
    """``known`` up to the threshold, ``absent`` beyond the limit, else ``uncertain``; always that without a point."""
    if point is None:
        return "uncertain"
    return "known" if nearest <= point.threshold else "absent" if nearest > point.limit else "uncertain"


def _false_alarms(unknown: Float[np.ndarray, "s n"], part: Int[np.ndarray, " n"], share: float, objects: int) -> float:
    """The share of unknown queries that the threshold of the other parts accepts, corrected for few objects."""
    accepted, total = 0, 0
    for number in range(int(part.max()) + 1):
        mine = part == number
        scores = unknown[:, mine][~np.isnan(unknown[:, mine])]
        accepted += int((scores <= choose_threshold(unknown[:, ~mine].ravel(), share)).sum())
        total += len(scores)
    mean = accepted / max(total, 1) * objects / (objects - 1)
    return float(min(1.0, (objects * mean + 0.5) / (objects + 0.5)))
