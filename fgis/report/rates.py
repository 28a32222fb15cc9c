"""How often a search is wrong about whether an object is in its gallery, in words."""

import math

from fgis.retrieval.operating_point import OperatingPoint


def rates_words(point: OperatingPoint | None) -> str:
    """The rates of an operating point as a sentence; "" where there is none.

    >>> rates_words(OperatingPoint(0.2, 0.4, detection=0.86, false_alarms=0.09, missed=0.05)).partition(";")[0]
    'Estimated on this gallery: 86 % of new photos of its objects, if they resemble its own photos, and 9 % \
of photos of other objects would be within the threshold'
    """
    if point is None:
        return ""
    alarms = f"{100 * point.false_alarms:.0f} % of photos of other objects"
    if math.isnan(point.detection):
        return f"Estimated on this gallery: {alarms} would be taken for one of its objects."
    return (
        f"Estimated on this gallery: {100 * point.detection:.0f} % of new photos of its objects, if they resemble its "
        f"own photos, and {alarms} would be within the threshold; {100 * point.missed:.0f} % of the former beyond the "
        "limit."
    )
