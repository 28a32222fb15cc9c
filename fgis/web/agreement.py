"""Where two pictures agree: the similarity of their features as a sum over the places of each picture."""

import numpy as np
from jaxtyping import Float

from fgis.retrieval.measures import to_unit

Vector = Float[np.ndarray, " f"]


def split_similarity(places: Float[np.ndarray, "h w f"], own: Vector, other: Vector) -> Float[np.ndarray, "h w"]:
    """The part that each place of a picture has in its similarity to another one.

    The features of a picture are the mean a over its P places s_p, prepared and scaled to unit length: u. With v those
    of the other picture, the cosine is Σ_d u_d v_d, and place p has the share s_pd / (P a_d) of feature d:
    c_p = Σ_d u_d v_d s_pd / (P a_d).

    Args:
      places: features at every place, before they are averaged.
      own: the prepared features of their mean.
      other: the prepared features of the other picture.

    Returns:
      The parts [h, w]; their sum is the cosine of ``own`` and ``other``. Features whose mean is 0 are left out: they
      are prepared to 0. Where features have both signs, parts may be below 0.

    >>> places = np.array([[[2.0, 0.0], [0.0, 4.0]]])  # their mean: (1, 2)
    >>> split_similarity(places, np.array([1.0, 2.0]), np.array([0.0, 3.0])).round(3)  # place 2 alone has feature 2
    array([[0.   , 0.894]])
    """
    units = to_unit(np.stack([own, other]).astype(np.float32))
    mean = places.mean(axis=(0, 1))
    weights = np.divide(units[0] * units[1], mean, out=np.zeros_like(mean), where=np.abs(mean) > 1e-12)
    return places @ weights / (places.shape[0] * places.shape[1])
