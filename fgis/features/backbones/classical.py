"""Descriptors of images without a network: colour, gradients, and bags of local descriptors. Computed on the host.

Each is an entry of ``DESCRIPTORS``: a function from an image and a vocabulary to one vector, with the function that
learns the vocabulary, if it has one. Vectors of histograms sum to 1, so that half the Manhattan distance of two is one
less their intersection; those of VLAD and Fisher vectors are signed, of unit length.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from fgis.errors import UserError
from fgis.features.backbones.backbone import Backbone, Loaded
from fgis.features.local import import_opencv, sift
from fgis.features.vocabulary import (
    Arrays,
    learn_mixture,
    learn_residuals,
    learn_words,
    nearest_words,
    read_vocabulary,
    write_vocabulary,
)
from fgis.ranges import Count, Positive

Image = UInt8[np.ndarray, "h w 3"]
HOG_SIDE = 128  # pixels: cells of 8, blocks of 2 × 2 cells, 9 directions
HUES, SATURATIONS, VALUES = 16, 4, 4
SIFT = 128  # numbers of a local descriptor
LEARNING_IMAGES = 1000  # at most, that a vocabulary is learnt from


class Descriptor(NamedTuple):
    """One kind of description."""

    describe: Callable[[Image, Arrays], Float[np.ndarray, " f"]]
    learn: Callable[[Sequence[Float[np.ndarray, "_ 128"]]], Arrays] | None = None  # from the RootSIFT of images
    arrays: tuple[str, ...] = ()  # of its vocabulary


def colour_histogram(image: Image, vocabulary: Arrays) -> Float[np.ndarray, " f"]:
    """The shares of the pixels in bins of hue, saturation and value, 16 × 4 × 4; ``vocabulary`` is not read."""
    cv2 = import_opencv()
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV_FULL)
    counts = cv2.calcHist([hsv], [0, 1, 2], None, [HUES, SATURATIONS, VALUES], [0, 256] * 3)
    return (counts.ravel() / counts.sum()).astype(np.float32)


def hog(image: Image, vocabulary: Arrays) -> Float[np.ndarray, " f"]:
    """Histograms of oriented gradients of the image at 128 × 128 pixels; ``vocabulary`` is not read.

    Reference: Dalal and Triggs, Histograms of oriented gradients for human detection, CVPR 2005.
    """
    try:
        from skimage.feature import hog as describe
    except ImportError as error:
        raise UserError("scikit-image is not installed; pip install 'fgis[classical]'") from error
    cv2 = import_opencv()
    small = cv2.resize(np.ascontiguousarray(image), (HOG_SIDE, HOG_SIDE), interpolation=cv2.INTER_AREA)
    return describe(small, 9, (8, 8), (2, 2), block_norm="L2-Hys", channel_axis=-1).astype(np.float32)


def bag_of_words(
    image: Image, vocabulary: Arrays, *, inverse: bool = False, nearest: Count = 3, width: Positive = 0.1
) -> Float[np.ndarray, " k"]:
    """The shares of the words among the key points of an image; zeros for an image without key points.

    A key point x counts for its ``nearest`` words w with weights exp(−‖x − w‖² / width) that sum to 1: one between two
    words would otherwise fall to either by chance.

    Args:
      image: RGB.
      vocabulary: of ``learn_words``.
      inverse: whether each word is weighted by log(images / images that hold it) before the sum is made 1.
      nearest: 1 gives each key point to its nearest word alone.
      width: of squared distances of RootSIFT.

    References: Sivic and Zisserman, Video Google, ICCV 2003; Philbin et al., Lost in quantization, CVPR 2008.
    """
    words = vocabulary["words"]
    found, squares = nearest_words(sift(image).descriptors, words, (words**2).sum(axis=1) / 2, nearest)
    weights = np.exp((squares[:, :1] - squares) / width)
    weights /= weights.sum(axis=1, keepdims=True)
    shares = np.bincount(found.ravel(), weights.ravel(), minlength=len(words))
    if inverse:
        shares = shares * np.log(vocabulary["images"] / np.maximum(vocabulary["occurs"], 1))
    return (shares / max(shares.sum(), 1e-12)).astype(np.float32)


def vlad(image: Image, vocabulary: Arrays) -> Float[np.ndarray, " f"]:
    """Sums of the residuals to the nearest word, each sum and the whole of unit length: VLAD with intra-normalisation.

    References: Jégou et al., Aggregating local descriptors into a compact image representation, CVPR 2010; Arandjelović
    and Zisserman, All about VLAD, CVPR 2013.
    """
    words = vocabulary["words"]
    reduced = (sift(image).descriptors - vocabulary["mean"]) @ vocabulary["components"].T
    sums = np.zeros_like(words)
    found = nearest_words(reduced, words, (words**2).sum(axis=1) / 2)[0][:, 0]
    np.add.at(sums, found, reduced - words[found])
    return unit((sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).ravel())


def fisher(image: Image, vocabulary: Arrays) -> Float[np.ndarray, " f"]:
    """The gradient of the likelihood by means and variances of the mixture: improved Fisher vectors.

    Square roots with the sign, then unit length; zeros for an image without key points.

    Reference: Perronnin, Sánchez and Mensink, Improving the Fisher kernel for large-scale image classification, ECCV
    2010.
    """
    shares, means, variances = (vocabulary[name] for name in ("shares", "words", "variances"))
    x = (sift(image).descriptors - vocabulary["mean"]) @ vocabulary["components"].T
    if not len(x):
        return np.zeros(2 * means.size, np.float32)
    inverse = 1 / variances
    logs = x**2 @ (-0.5 * inverse).T + x @ (means * inverse).T
    logs += np.log(shares) - 0.5 * (np.log(variances) + means**2 * inverse).sum(axis=1)
    posterior = np.exp(logs - logs.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    zeroth, first, second = posterior.sum(axis=0)[:, None], posterior.T @ x, posterior.T @ x**2
    deviations = np.sqrt(variances)
    by_means = (first - zeroth * means) / (deviations * np.sqrt(shares)[:, None])
    by_variances = (second - 2 * first * means + zeroth * (means**2 - variances)) / (
        variances * np.sqrt(2 * shares)[:, None]
    )
    both = np.concatenate([by_means.ravel(), by_variances.ravel()])
    return unit(np.sign(both) * np.sqrt(np.abs(both)))


def unit(vector: Float[np.ndarray, " f"]) -> Float[np.ndarray, " f"]:
    """A vector at unit length; zeros stay zeros."""
    return (vector / max(float(np.linalg.norm(vector)), 1e-12)).astype(np.float32)


WORDS = ("words", "occurs", "images")
MIXTURE = ("mean", "components", "words", "shares", "variances")
DESCRIPTORS: dict[str, Descriptor] = {
    "colour_histogram": Descriptor(colour_histogram),
    "hog": Descriptor(hog),
    "bag_of_words": Descriptor(bag_of_words, learn_words, WORDS),
    "bag_of_words_tf_idf": Descriptor(partial(bag_of_words, inverse=True), learn_words, WORDS),
    "bag_of_words_hard": Descriptor(partial(bag_of_words, nearest=1), learn_words, WORDS),
    "vlad": Descriptor(vlad, learn_residuals, MIXTURE[:3]),
    "fisher": Descriptor(fisher, learn_mixture, MIXTURE),
}


def lacks_vocabulary(name: str, weights: str) -> bool:
    """Whether the vocabulary of a description is still to be learnt.

    Raises:
      ValueError: no file is named for it; the message begins with ``weights:``.
    """
    if name not in DESCRIPTORS or not DESCRIPTORS[name].arrays:
        return False
    if not weights.endswith(".npz"):
        raise ValueError(
            f"weights: {weights!r} found, but {name} has a vocabulary; name its file, such as features/words.npz, "
            "which is learnt from the images where it does not exist"
        )
    return not Path(weights).expanduser().exists()


def learn_vocabulary(name: str, weights: str, images: Sequence[Image]) -> None:
    """Learn the vocabulary of a description from images, and write it to the file ``weights``.

    Raises:
      UserError: the images hold too little, or a package is not installed.
    """
    learn = DESCRIPTORS[name].learn
    assert learn is not None
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # half precision: the memory of a thousand images counts
        found = list(pool.map(lambda image: sift(image).descriptors.astype(np.float16), images))
    write_vocabulary(weights, learn(found))


def load_classical(name: str, backbone: Backbone, weights: str) -> Loaded:
    """A function of (nothing, images) that describes them on all cores, and the SHA-256 of the vocabulary.

    Args:
      name: a key of ``DESCRIPTORS``.
      backbone: its entry of ``BACKBONES``.
      weights: the file of the vocabulary; not read where there is none, and the digest is that of the name then.

    Raises:
      ValueError: as ``lacks_vocabulary``, or the file does not exist.
      UserError: the file is damaged or of another description, or OpenCV is not installed.
    """
    import_opencv()
    found = DESCRIPTORS[name]
    if lacks_vocabulary(name, weights):
        raise ValueError(f"weights: no vocabulary {weights}; extracting the features of a collection learns it")
    arrays: Arrays = {}
    digest = hashlib.sha256(name.encode()).hexdigest()
    if found.arrays:
        path = Path(weights).expanduser()
        arrays = read_vocabulary(path, lambda held: _what_is_wrong(held, found.arrays))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    pool = ThreadPoolExecutor(os.cpu_count() or 1)

    def apply(params: Any, images: UInt8[np.ndarray, "b h w 3"]) -> Float[Array, "b 1 1 f"]:
        vectors = list(pool.map(lambda image: found.describe(image, arrays), np.asarray(images)))
        return jnp.asarray(np.stack(vectors)[:, None, None])

    return apply, [], digest


def _what_is_wrong(held: Arrays, wanted: Sequence[str]) -> str:
    missing = [name for name in wanted if name not in held]
    others = [name for name in held if name not in wanted]
    if missing or others:
        return f"{missing[0]} is missing" if missing else f"it holds {others[0]}"
    kinds = {"occurs": "iuf", "images": "iuf"}
    if not all(held[name].dtype.kind in kinds.get(name, "f") for name in wanted):
        return "it holds arrays of other types"
    if not all(np.isfinite(held[name]).all() for name in wanted):
        return "it holds NaN or infinity"
    words, depth = held["words"], SIFT
    if words.ndim != 2 or not words.size:
        return "its words are no matrix"
    shapes: dict[str, tuple[int, ...]] = {"occurs": words.shape[:1], "shares": words.shape[:1], "images": ()}
    if "components" in wanted:
        shapes |= {"mean": (SIFT,), "components": (words.shape[1], SIFT), "variances": words.shape}
        depth = words.shape[1]
    if words.shape[1] != depth or any(held[name].shape != shape for name, shape in shapes.items() if name in wanted):
        return "its arrays do not fit each other"
    if any((held[name] <= 0).any() for name in ("shares", "variances", "images") if name in wanted):
        return "shares, variances or numbers of images are not above 0"
    return ""
