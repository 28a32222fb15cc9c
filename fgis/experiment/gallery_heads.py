"""The heads of runs on the images of a gallery."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from fgis import files
from fgis.errors import UserError
from fgis.experiment.build import head_fits
from fgis.experiment.config import ExperimentSettings, read_settings
from fgis.experiment.embedding import embed_with
from fgis.experiment.run import Run
from fgis.gallery.loaded import FEATURES
from fgis.gallery.search import SearchGallery
from fgis.retrieval.graph import GalleryGraph
from fgis.retrieval.search import prepare_gallery


def search_words(settings: ExperimentSettings, count: int, head: str) -> str:
    """What is searched, for people."""
    distance = settings.distance.replace("_", " ")
    return f"{count} images ({settings.features.backbone}): {head}, {distance} distance"


def embed_gallery(plain: SearchGallery, config: Mapping[str, Any], workdir: str, step: int | None) -> SearchGallery:
    """The same images under the head of a run."""
    embed, words = open_head(config, workdir, step, plain.features.shape[1])
    embeddings, distance = embed(plain.features), plain.judging.distance
    return plain._replace(
        embeddings=embeddings,
        prepared=prepare_gallery(embeddings, distance),
        embed=embed,
        graph=GalleryGraph(),
        words=search_words(read_settings(config), len(embeddings), words),
    )


def open_head(
    config: Mapping[str, Any], workdir: str, step: int | None, size: int = 0
) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """The head of a run as a function of prepared features, and its name in words."""
    run = Run.open(config, workdir, step)
    params = run.params
    if size and not head_fits(run.settings, params, size):
        raise UserError(
            f"--workdir={workdir}: its heads were trained on features of another size than {size}, which the gallery "
            "holds; take a run on features of the same backbone and pooling"
        )
    number = next((number for number, plan in enumerate(run.plans) if plan.fold < 0), 0)
    embed = lambda features: embed_with(run.scoring, params, features, number)
    return embed, f"the head of {workdir} at step {run.step}"


def further_heads(plain: SearchGallery, workdirs: Sequence[str]) -> dict[str, Callable[[], SearchGallery]]:
    """The features as they are and the heads of runs, by name; a folder that holds no run is refused at once."""
    heads: dict[str, Callable[[], SearchGallery]] = {FEATURES: lambda: plain}
    for workdir in workdirs:
        saved = files.read_object(Path(workdir) / "config.json")
        if saved is None:
            raise UserError(f"--heads={workdir}: holds no config.json of a run; name the folder of a finished run")
        heads[workdir] = cache(partial(embed_gallery, plain, saved, workdir, None))
    return heads
