"""Two coordinates for every embedding: principal components at once, and t-SNE where openTSNE is installed."""

import importlib.util
import os

import numpy as np
from jaxtyping import Float

from fgis.base import Neighbours

BLOCK = 4096  # rows at a time that are multiplied in float64
PERPLEXITY = 30  # of t-SNE: about how many neighbours each image is kept close to
MANY = 4000  # images beyond which t-SNE takes all cores: with fewer, threads wait for each other
FEWEST = 12  # images of a t-SNE: with fewer, a perplexity of (n - 1) / 3 keeps nothing apart
AS_SQUARES = ("cosine", "squared_euclidean", "inner_product")  # distances that grow with the square of a length
OF_DIRECTIONS = ("cosine", "unit_euclidean")  # distances that ignore the lengths of vectors


def project_pca(embeddings: Float[np.ndarray, "n d"], distance: str = "cosine") -> Float[np.ndarray, "n 2"]:
    """The first two principal components of embeddings, of unit vectors where the distance compares directions.

    Args:
      embeddings: [n, d].
      distance: what embeddings are compared by, a key of ``fgis.distances.DISTANCES``.

    Returns:
      Coordinates [n, 2], float64, centred; the sign of each is such that its largest value is positive. Missing
      components (one image, or equal ones) are 0.

    >>> project_pca(np.array([[1.0, 5.0], [3.0, 5.0]], np.float32), "euclidean").tolist()
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    vectors: np.ndarray = np.asarray(embeddings, np.float32)
    if distance in OF_DIRECTIONS:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(lengths > 0, lengths, 1)
    vectors = vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    count, size = vectors.shape
    points = np.zeros((count, 2))
    if count <= size:
        wide = vectors.astype(np.float64)
        values, columns = np.linalg.eigh(wide @ wide.T)
        found = columns[:, ::-1][:, :2] * np.sqrt(values[::-1][:2].clip(min=0))
    else:
        blocks = (vectors[start : start + BLOCK].astype(np.float64) for start in range(0, count, BLOCK))
        _, columns = np.linalg.eigh(sum((block.T @ block for block in blocks), np.zeros((size, size))))
        found = vectors.astype(np.float64) @ columns[:, ::-1][:, :2]
    points[:, : found.shape[1]] = found
    largest = points[np.abs(points).argmax(axis=0), [0, 1]]
    return np.where(largest < 0, -points, points) + 0.0  # no -0


def has_tsne() -> bool:
    """Whether openTSNE is installed."""
    return importlib.util.find_spec("openTSNE") is not None


def tsne_depth(count: int) -> int:
    """How many neighbours of each of ``count`` images t-SNE wants: three times the perplexity; 0 of too few images.

    >>> [tsne_depth(count) for count in (11, 31, 5000)]
    [0, 30, 90]
    """
    return 3 * min(PERPLEXITY, (count - 1) // 3) if count >= FEWEST else 0


def project_tsne(
    neighbours: Neighbours, start: Float[np.ndarray, "n 2"], distance: str = "cosine", seed: int = 0
) -> Float[np.ndarray, "n 2"]:
    """t-SNE of images by their exact nearest neighbours, so that it shows the distance that rankings are made by.

    The same arguments give the same coordinates on the same machine. Squares of lengths enter the Gaussian kernel: the
    distances themselves where they grow like such squares (cosine), else their squares.

    Args:
      neighbours: ``tsne_depth(n)`` of each image, itself left out.
      start: where the images begin, usually ``project_pca``; scaled to a standard deviation of 0.0001.
      distance: of ``neighbours``.
      seed: of openTSNE.

    Returns:
      Coordinates [n, 2], float64.

    Raises:
      ImportError: openTSNE is not installed.

    Reference: L. van der Maaten, G. Hinton, "Visualizing data using t-SNE", JMLR 9, 2008; P. Poličar, M. Stražar,
    B. Zupan, "openTSNE", Journal of Statistical Software 109, 2024.
    """
    from openTSNE import TSNE
    from openTSNE.affinity import PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    distances = np.float64(neighbours.distances)
    if distance in AS_SQUARES:
        distances = np.sqrt((distances - min(0.0, float(distances.min()))).clip(min=0))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = cores if len(start) > MANY else 1
    affinities = PerplexityBasedNN(
        perplexity=neighbours.rows.shape[1] / 3,
        n_jobs=jobs,
        knn_index=PrecomputedNeighbors(neighbours.rows, distances),
    )
    spread = start[:, 0].std()
    beginning = start / (spread if spread > 0 else 1) * 1e-4
    return np.asarray(TSNE(n_jobs=jobs, random_state=seed).fit(affinities=affinities, initialization=beginning))


def align(points: Float[np.ndarray, "n 2"], reference: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """``points`` turned and mirrored about their centre, to lie as close to ``reference`` as they can.

    Distances among points stay. (Orthogonal Procrustes: U Vᵀ of pointsᵀ reference = U S Vᵀ.)

    >>> align(np.array([[0.0, 1.0], [0.0, -1.0]]), np.array([[2.0, 0.0], [-2.0, 0.0]])).round(9).tolist()
    [[1.0, 0.0], [-1.0, 0.0]]
    """
    centred, other = (x - x.mean(axis=0) for x in (points, reference))
    u, _, v = np.linalg.svd(centred.T @ other)
    return centred @ (u @ v) + 0.0
