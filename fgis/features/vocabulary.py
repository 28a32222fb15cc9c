"""Vocabularies of local descriptors: learnt from images once, kept in a file, and used like the weights of a network.

The file is an ``.npz`` of arrays without pickled objects: ``words`` [k, d], and what its kind needs besides.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from fgis.errors import UserError, reason_of
from fgis.files import replacing
from fgis.ranges import Count

Arrays = Mapping[str, np.ndarray]
ROUNDS = 10  # of k-means
BLOCK = 1024  # descriptors that are compared with all words at once


def learn_words(
    images: Sequence[Float[np.ndarray, "_ d"]], *, words: Count = 10_000, per_word: Count = 20, seed: int = 0
) -> Arrays:
    """A vocabulary for bags of words: the centres of k-means, and in how many images each occurs.

    Args:
      images: the descriptors of each image.
      words: how many; there must be as many descriptors.
      per_word: at most so many descriptors for each word are drawn to learn from.
      seed: of the drawing and of k-means.

    Returns:
      {"words" [k, d], "occurs" [k] images that hold the word, "images" []}.

    Raises:
      UserError: there are fewer descriptors than words, or faiss is not installed.
    """
    centres = cluster(sample_rows(images, words * per_word, seed), words, seed)
    half = (centres**2).sum(axis=1) / 2
    occurs = np.zeros(words, np.int64)
    for descriptors in images:
        occurs[np.unique(nearest_words(descriptors, centres, half)[0])] += 1
    return {"words": centres, "occurs": occurs, "images": np.array(len(images))}


def learn_residuals(
    images: Sequence[Float[np.ndarray, "_ d"]], *, words: Count = 64, components: Count = 64, seed: int = 0
) -> Arrays:
    """A vocabulary for VLAD: principal components of the descriptors, and centres of k-means among these.

    Args:
      images: the descriptors of each image.
      words, components: how many.
      seed: as in ``learn_words``; a million descriptors at most are drawn.

    Returns:
      {"mean" [d], "components" [c, d], "words" [k, c]}.

    Raises:
      UserError: as ``learn_words``.
    """
    drawn = sample_rows(images, 1_000_000, seed)
    mean = drawn.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov((drawn - mean).T))
    axes = np.ascontiguousarray(vectors[:, ::-1][:, :components].T.astype(np.float32))
    return {"mean": mean, "components": axes, "words": cluster((drawn - mean) @ axes.T, words, seed)}


def learn_mixture(
    images: Sequence[Float[np.ndarray, "_ d"]], *, words: Count = 64, components: Count = 64, seed: int = 0
) -> Arrays:
    """A vocabulary for Fisher vectors: a mixture of Gaussians of diagonal covariance, begun at the centres of k-means.

    Args:
      images, words, components, seed: as ``learn_residuals``.

    Returns:
      What ``learn_residuals`` returns, with the means as ``words``, "shares" [k] and "variances" [k, c].

    Raises:
      UserError: as ``learn_words``, or scikit-learn is not installed.
    """
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise UserError("scikit-learn is not installed; pip install 'fgis[classical]'") from error
    found = learn_residuals(images, words=words, components=components, seed=seed)
    drawn = (sample_rows(images, 200_000, seed) - found["mean"]) @ found["components"].T
    mixture = GaussianMixture(words, covariance_type="diag", max_iter=30, means_init=found["words"], random_state=seed)
    mixture.fit(drawn)
    fitted = {"words": mixture.means_, "shares": mixture.weights_, "variances": mixture.covariances_}
    return {**found, **{name: values.astype(np.float32) for name, values in fitted.items()}}


def cluster(vectors: Float[np.ndarray, "n d"], words: int, seed: int) -> Float[np.ndarray, "k d"]:
    """The centres of k-means, by faiss.

    Raises:
      UserError: there are fewer vectors than words, or faiss is not installed.
    """
    if len(vectors) < words:
        raise UserError(f"{len(vectors)} descriptors found for {words} words; give more images")
    try:
        import faiss
    except ImportError as error:
        raise UserError("faiss is not installed; pip install 'fgis[classical]'") from error
    means = faiss.Kmeans(vectors.shape[1], words, niter=ROUNDS, seed=seed + 1, min_points_per_centroid=1)
    means.train(np.ascontiguousarray(vectors, np.float32))
    return np.array(means.centroids, np.float32).reshape(words, -1)


def sample_rows(images: Sequence[Float[np.ndarray, "_ d"]], count: int, seed: int) -> Float[np.ndarray, "m d"]:
    """At most ``count`` descriptors, drawn from those of all images together, in their order."""
    ends = np.cumsum([len(one) for one in images])
    total = int(ends[-1])
    drawn = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    starts = ends - [len(one) for one in images]
    parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
    taken = [one[rows - start] for one, rows, start in zip(images, parts, starts, strict=True)]
    return np.concatenate(taken).astype(np.float32)


def nearest_words(
    descriptors: Float[np.ndarray, "m d"],
    words: Float[np.ndarray, "k d"],
    half: Float[np.ndarray, " k"],
    count: int = 1,
) -> tuple[Int[np.ndarray, "m c"], Float[np.ndarray, "m c"]]:
    """The ``count`` nearest words of every descriptor, nearest first, and the squares of their distances.

    Args:
      descriptors, words: rows.
      half: ‖word‖² / 2.
      count: how many; all words where there are fewer.
    """
    count = min(count, len(words))
    found, squares = np.zeros((len(descriptors), count), np.int64), np.zeros((len(descriptors), count), np.float32)
    for start in range(0, len(descriptors), BLOCK):
        block = descriptors[start : start + BLOCK].astype(np.float32)
        scores = half - block @ words.T
        rows = np.arange(len(block))
        for place in range(count):  # a few passes for the minimum are faster than a partition of each row
            best = scores.argmin(axis=1)
            found[start : start + BLOCK, place] = best
            squares[start : start + BLOCK, place] = 2 * scores[rows, best] + (block**2).sum(axis=1)
            scores[rows, best] = np.inf
    return found, squares


def write_vocabulary(path: str | Path, arrays: Arrays) -> None:
    """Write a vocabulary file, whole or not at all."""
    with replacing(Path(path).expanduser()) as partial, partial.open("wb") as file:
        np.savez(file, **dict(arrays))  # type: ignore[arg-type]


def read_vocabulary(path: str | Path, check: Callable[[Arrays], str]) -> Arrays:
    """The arrays of a vocabulary file.

    Args:
      path: the file.
      check: a function of the arrays that returns what is wrong with them, or "".

    Raises:
      UserError: the file is missing or damaged, or not of the wanted kind.
    """
    try:
        with np.load(Path(path).expanduser(), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except MemoryError:
        raise
    except Exception as error:  # NumPy and zipfile raise almost anything for a damaged file
        raise UserError(f"{path}: is no vocabulary ({reason_of(error)}); remove it and extract again") from error
    if wrong := check(arrays):
        raise UserError(f"{path}: is no vocabulary for these descriptors ({wrong}); name another file")
    return arrays
