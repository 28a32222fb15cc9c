"""Spatial verification: the first answers of a search, ordered again by key points that lie in one perspective."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from jaxtyping import Int

from fgis.base import Neighbours
from fgis.errors import UserError
from fgis.features.collection import load_collection
from fgis.features.description import Settings, fit_image
from fgis.features.local import Local, sift, verify
from fgis.features.lookup import picture_finder
from fgis.ranges import Count, require
from fgis.retrieval.first_search import FirstSearch, depth_of

Matches = Callable[[int, int], int]  # (query, answer), rows of the same images -> key points in one perspective


def count_matches(images: Mapping[str, str], image_ids: np.ndarray, image_size: tuple[int, int]) -> Matches:
    """Describes images by RootSIFT and returns a function that verifies two of them, once for each pair.

    Args:
      images: ``collection`` and ``images``, as in a configuration.
      image_ids: [n] those whose rows the function takes.
      image_size: (height, width) that every image is brought to first.

    Raises:
      UserError: an image is not there or cannot be decoded, or OpenCV is not installed.
    """
    find, settings = picture_finder(load_collection(images["collection"], images["images"])), Settings("", image_size)

    def points_of(image_id: str) -> Local:
        picture = find(image_id)
        if picture is None:
            raise UserError(f"{images['images']}: no image {image_id!r}, or a damaged one; put it there")
        return sift(fit_image(picture, settings)[0])

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        points = list(pool.map(points_of, map(str, image_ids)))
    return cache(lambda query, answer: verify(points[query], points[answer]))


def spatially_verified(
    first: FirstSearch, rows: Int[np.ndarray, " n"], matches: Matches, *, candidates: Count = 20, least: Count = 8
) -> Neighbours:
    """The first ``candidates`` answers by falling number of verified key points; the others keep their order.

    Args:
      first: a search of images among themselves: query i is image i of the gallery.
      rows: [n] the rows of these images that ``matches`` takes.
      matches: how many key points of two images lie in one perspective.
      candidates: how many answers of each query are verified.
      least: key points below which an answer counts as not verified and follows those that are.

    Returns:
      Neighbours as deep as the first search; ties keep its order. Distances are places in the new order.

    Reference: Philbin et al., Object retrieval with large vocabularies and fast spatial matching, CVPR 2007.
    """
    require(spatially_verified, candidates=candidates, least=least)
    found, here = first.neighbours.rows.copy(), min(candidates, depth_of(first))

    def order_again(query: int) -> None:
        counts = np.array([matches(int(rows[query]), int(rows[answer])) for answer in found[query, :here]])
        found[query, :here] = found[query, :here][np.argsort(-np.where(counts >= least, counts, 0), kind="stable")]

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        list(pool.map(order_again, range(len(found))))
    return Neighbours(found, np.broadcast_to(np.arange(found.shape[1], dtype=np.float32), found.shape))
