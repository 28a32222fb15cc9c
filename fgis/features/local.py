"""Local descriptors of an image, and which of two images' descriptors match in one perspective: all by OpenCV."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from fgis.errors import UserError
from fgis.ranges import Count, NonNegative, Positive

RATIO = 0.8  # of Lowe: the nearest descriptor counts where the second nearest is farther by at least 1 / RATIO
PIXELS = 5.0  # how far a point may lie from where the perspective puts it


class Local(NamedTuple):
    """The key points of an image, the strongest first."""

    points: Float[np.ndarray, "m 2"]  # x, y in pixels
    descriptors: Float[np.ndarray, "m 128"]


def import_opencv() -> Any:
    """The module ``cv2``, on one thread of its own: images are described in parallel instead.

    Raises:
      UserError: OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise UserError("OpenCV is not installed; pip install 'fgis[classical]'") from error
    cv2.setNumThreads(1)
    return cv2


def sift(
    image: UInt8[np.ndarray, "h w 3"], *, points: Count = 800, contrast: NonNegative = 0.01, root: bool = True
) -> Local:
    """SIFT at the strongest key points of an image.

    RootSIFT is √(x / Σ x): the Euclidean distance of such vectors is the Hellinger distance of SIFT's histograms.

    Args:
      image: RGB.
      points: how many key points are kept, at most.
      contrast: below which an extremum is no key point; 0.04 is Lowe's.
      root: whether descriptors are RootSIFT, or SIFT in 0..255.

    Returns:
      The key points; none of an image without contrast.

    Raises:
      UserError: OpenCV is not installed.

    References: Lowe, Distinctive image features from scale-invariant keypoints, IJCV 2004; Arandjelović and Zisserman,
    Three things everyone should know to improve object retrieval, CVPR 2012.
    """
    cv2 = import_opencv()
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    found, vectors = cv2.SIFT_create(nfeatures=points, contrastThreshold=contrast).detectAndCompute(grey, None)
    if vectors is None:
        return Local(np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    order = np.argsort([-one.response for one in found], kind="stable")[:points]  # OpenCV keeps more where some tie
    vectors = vectors[order].astype(np.float32)
    if root:
        vectors = np.sqrt(vectors / np.maximum(vectors.sum(axis=1, keepdims=True), 1e-12))
    return Local(np.array([found[row].pt for row in order], np.float32), vectors)


def verify(one: Local, other: Local, *, ratio: Positive = RATIO, pixels: Positive = PIXELS) -> int:
    """How many points of two images match and lie in one perspective: the inliers of a homography, by RANSAC.

    Descriptors match where each is the other's nearest, and the second nearest is farther by 1 / ``ratio``. OpenCV's
    random choices begin at a fixed state, so that the same images give the same number.

    Args:
      one, other: their key points.
      ratio: Lowe's.
      pixels: how far a point may lie from where the homography puts it.

    Returns:
      The number of inliers; 0 where fewer than 4 points match.

    Raises:
      UserError: OpenCV is not installed.
    """
    cv2 = import_opencv()
    if min(len(one.points), len(other.points)) < 4:
        return 0
    products = one.descriptors @ other.descriptors.T
    squares = (one.descriptors**2).sum(axis=1)[:, None] + (other.descriptors**2).sum(axis=1) - 2 * products
    nearest, second = np.partition(squares, 1, axis=1)[:, :2].T
    rows, columns = np.arange(len(squares)), squares.argmin(axis=1)
    good = (nearest <= ratio**2 * second) & (squares.argmin(axis=0)[columns] == rows)
    if good.sum() < 4:
        return 0
    cv2.setRNGSeed(0)
    _, inliers = cv2.findHomography(one.points[good], other.points[columns[good]], cv2.RANSAC, pixels)
    return 0 if inliers is None else int(inliers.sum())
