"""Which images are held out together: by object, or the photos of every object."""

import numpy as np
from jaxtyping import Bool, Int

from fgis.base import RunPlan


def object_folds(labels: Int[np.ndarray, " n"], folds: int, seed: int = 0) -> Int[np.ndarray, " n"]:
    """The fold of every image: objects are shuffled and dealt out in turn, and images follow their object.

    Args:
      labels: the object of each image, [n].
      folds: how many folds.
      seed: of the shuffle.

    Returns:
      Folds [n], 0 … folds − 1; their numbers of objects differ by 1 at most.

    >>> folds = object_folds(np.array([7, 7, 4, 9, 9, 5]), 2)
    >>> bool(folds[0] == folds[1] and folds[3] == folds[4]), sorted(set(folds.tolist()))
    (True, [0, 1])
    """
    objects, index = np.unique(labels, return_inverse=True)
    fold_of_object = np.empty(len(objects), np.int64)
    fold_of_object[np.random.default_rng(seed).permutation(len(objects))] = np.arange(len(objects)) % folds
    return fold_of_object[index]


def photo_folds(labels: Int[np.ndarray, " n"], folds: int, seed: int = 0) -> Int[np.ndarray, " n"]:
    """The fold of every image: objects and the images of each are shuffled, and the images are dealt out in turn.

    Images of one object get consecutive folds, so with two folds or more none holds a whole object.

    Args:
      labels: the object of each image, [n].
      folds: how many folds, at least 2.
      seed: of the shuffle.

    Returns:
      Folds [n], 0 … folds − 1, whose numbers of images differ by 1 at most, of each object and in all; −1 for the only
      image of an object, which no fold holds.

    >>> folds = photo_folds(np.array([7, 7, 4, 9, 9, 9]), 2)
    >>> int(folds[2]), sorted(folds[:2].tolist()), sorted(set(folds[3:].tolist()))
    (-1, [0, 1], [0, 1])
    """
    objects, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    place = rng.permutation(len(objects))[index]
    shuffled = rng.permutation(len(labels))
    order = shuffled[np.argsort(place[shuffled], kind="stable")]
    order = order[counts[index[order]] > 1]
    found = np.full(len(labels), -1, np.int64)
    found[order] = np.arange(len(order)) % folds
    return found


def held_out(
    plan: RunPlan, folds: Int[np.ndarray, " n"], photos: Int[np.ndarray, " n"] | None
) -> Bool[np.ndarray, " n"]:
    """Which images a run is not trained on: those of its fold, of objects (``folds``) or of photos (``photos``)."""
    own = photos if plan.photos and photos is not None else folds
    return (own == plan.fold) & (plan.fold >= 0)
