"""One work directory, opened once: what all commands share."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from fgis.base import RunPlan
from fgis.errors import UserError, naming
from fgis.experiment import identity, operating_point
from fgis.experiment.build import (
    Experiment,
    Images,
    Scoring,
    build_experiment,
    build_scoring,
    find_own_devices,
    head_fits,
    plan_runs,
)
from fgis.experiment.config import ExperimentSettings, extraction_settings, read_settings
from fgis.experiment.differences import OF_EVALUATION, OF_LENGTH, refuse_other, to_plain
from fgis.experiment.embedding import embed_with, first_columns, prepared_rows, refuse_copies
from fgis.experiment.room import require_room
from fgis.features import description, joined, store
from fgis.features.collection import load_collection
from fgis.features.fields import resolved
from fgis.features.lookup import picture_finder
from fgis.features.pixels import pixel_count
from fgis.gallery.search import SearchGallery, compute_operating_point
from fgis.learning import checkpoint
from fgis.retrieval.dealing import search_on
from fgis.retrieval.operating_point import OperatingPoint
from fgis.retrieval.stored import searchable

# Keys of config.features that are in the file too.
CHECKED = ("collection", "backbone", "weights", "image_size", "fit", "pooling", "layer")


class Checkpoint(NamedTuple):
    """Parameters of all runs, and the step and the plain configuration that they were trained with."""

    step: int
    params: Any  # every leaf [runs, ...]
    config: Mapping[str, Any]


class Run:
    """An experiment and its work directory; everything is made when it is first asked for.

    Args:
      config: a plain configuration, as ``differences.to_plain`` gives it.
      workdir: where the run lives; None where a command needs no run.
      step: the checkpoint to restore; None for the latest.

    Raises:
      UserError: the configuration is refused (``config.read_settings``).
    """

    def __init__(self, config: Mapping[str, Any], workdir: Path | None, step: int | None = None) -> None:
        """Checks the configuration and reads nothing; see the class."""
        self.config = config
        self.settings: ExperimentSettings = read_settings(config)
        self.workdir = workdir
        self.wanted_step = step
        self.searches_by_head = True  # whether ``search_gallery`` uses the head of the run

    @classmethod
    def open(cls, config: Any, workdir: str | Path | None = None, step: int | None = None) -> "Run":
        """The run of a ``ConfigDict`` (or a plain configuration) in ``workdir``; its searches use its devices."""
        plain = config if isinstance(config, Mapping) else to_plain(config)
        made = cls(plain, None if workdir is None else Path(workdir), step)
        search_on(find_own_devices(made.settings.train.devices))
        return made

    @cached_property
    def rows(self) -> store.Rows:
        """The feature file, checked against what the configuration says of it; its features are read on demand.

        Raises:
          UserError: the file is missing or damaged, or was made in another way than ``config.features`` says.
        """
        features, weights = self.settings.features, self.settings.inputs.weights
        paths = joined.listed(features.path)
        for path in paths:
            if not Path(resolved(path)).exists():
                raise UserError(
                    f"config.features.path={path}: no such file; --mode=extract makes it, and an empty path takes "
                    "the features that fgis ships"
                )
        if len(weights) not in (0, len(paths)):
            raise UserError(
                f"config.inputs.weights: {len(weights)} weights for {len(paths)} feature files (config.features.path); "
                "write one for each, or () for equal ones"
            )
        with naming("config.features.pixels: " if len(paths) == 1 or features.pixels else "config.features.path: "):
            rows = joined.open_files(features.path, features.pixels)
        if features.backbone:
            checked = (*CHECKED, "shrink") if features.pixels else CHECKED[: 1 if rows.widths else None]
            expected = {key: getattr(features, key) for key in checked}
            with naming("config.features: "):
                store.check_features(rows, features.path, expected)
        return rows

    @property
    def described_by(self) -> str:
        """The network of the feature file, in words; of several files all their networks."""
        each = self.rows.source.get(joined.FILES)
        words = [str(one.get("backbone", one["file"])) for one in each or ()]
        return " + ".join(words) or self.settings.features.backbone

    @property
    def place(self) -> Path:
        """The work directory of a run that has one.

        Raises:
          UserError: none was named.
        """
        if self.workdir is None:
            raise UserError("--workdir: missing; name the folder of a run")
        return self.workdir

    @property
    def shows_its_collection(self) -> bool:
        """Whether the feature file says that its images are those of ``config.features.collection``.

        Published figures are about these images and stand beside no others.
        """
        return self.rows.source.get("collection") == self.settings.features.collection

    @cached_property
    def scoring(self) -> Scoring:
        """How features become embeddings, and what is measured of these."""
        return build_scoring(self.settings, self.rows.widths)

    def read_prepared(self, rows: np.ndarray) -> Float[np.ndarray, "m f"]:
        """The prepared features of some rows of the feature file.

        Raises:
          UserError: they are not finite, though those of the file are.
        """
        return self.scoring.prepare(self.rows.read(rows))

    @cached_property
    def features(self) -> Any:
        """All prepared features, [n, f]: an array where they fit on the device, else ``StoredVectors``."""
        self.require_room()
        shape = len(self.rows.labels), self.rows.shape[-1]
        return prepared_rows(self.read_prepared, shape, resident=self.fits_on_device)

    @property
    def frozen(self) -> Any:
        """All prepared features, likewise, without the copies of pixels that follow them, if any."""
        return first_columns(self.features, self.features.shape[1] - pixel_count(self.settings.features.pixels))

    @property
    def fits_on_device(self) -> bool:
        """Whether all prepared features may stay on the device (``config.train.resident_megabytes``)."""
        size = len(self.rows.labels) * self.rows.shape[-1] * 4
        return size <= self.settings.train.resident_megabytes * 2**20

    def require_room(self) -> None:
        """Raises ``UserError`` where features that are to stay in memory, or the values of queries, would not fit."""
        require_room(self.settings, len(self.rows.labels), self.rows.shape[-1], resident=self.fits_on_device)

    def training_features(self) -> Array | Callable[[np.ndarray], np.ndarray]:
        """The prepared features, where they fit on the device; otherwise a function that fetches rows of them."""
        if self.fits_on_device:
            return jnp.asarray(self.features)
        return lambda rows: self.read_prepared(rows.ravel()).reshape(*rows.shape, -1)

    @cached_property
    def plans(self) -> tuple[RunPlan, ...]:
        """What every run of the experiment is trained on, without reading the features."""
        return plan_runs(self.settings)

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment on the images of the feature file: runs, folds and the functions of training.

        Raises:
          UserError: the images do not allow it, such as more folds than objects.
        """
        rows = self.rows
        return build_experiment(self.settings, Images(rows.labels, rows.coarse, rows.shape[-1], self.read_prepared))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint of the work directory: the latest one, or the wanted step.

        Raises:
          UserError: there is none, or it was trained with another configuration.
        """
        with naming("--workdir: " if self.wanted_step is None else f"--step={self.wanted_step}: "):
            found = Checkpoint(*checkpoint.restore_params(self.place, self.wanted_step))
        refuse_other(self.config, found.config, self.place, (*OF_EVALUATION, *OF_LENGTH))
        return found

    def set_checkpoint(self, step: int, params: Any) -> None:
        """Takes parameters that were just trained for those of the run, without reading them back."""
        self.checkpoint = Checkpoint(step, params, self.config)

    @property
    def params(self) -> Any:
        """The parameters of all runs, stacked."""
        return self.checkpoint.params

    @property
    def step(self) -> int:
        """The step that ``params`` were trained to."""
        return self.checkpoint.step

    def embed(self, features: Any, run: int = 0) -> Any:
        """The embeddings of prepared features under the head of one run."""
        return embed_with(self.scoring, self.params, features, run)

    def refuse_other_size(self) -> None:
        """Raises ``UserError`` where the heads were trained on features of another size than those of the file."""
        size = self.rows.shape[-1]
        if not head_fits(self.settings, self.params, size):
            raise UserError(
                f"config.features.path: features of size {size}, but the heads in {self.workdir} were trained on "
                "features of another size; take features of the same backbone and pooling"
            )
        trained_on = identity.saved_identity(self.workdir) if self.workdir is not None else None
        if trained_on and (joined.FILES in trained_on or self.rows.widths):
            with naming("config.features.path: "):
                joined.refuse_other_makers(trained_on.get(joined.FILES, []), joined.made_by(self.rows))

    @cached_property
    def has_own_images(self) -> bool:
        """Whether the feature file holds exactly what the run was trained on, whatever the file is called."""
        trained_on = identity.trained_digest(self.place)
        if not trained_on:  # of an older version, which did not say: only the features that fgis ships cannot change
            return not self.settings.features.path and not self.checkpoint.config["features"]["path"]
        return trained_on == identity.digest_rows(self.rows)["sha256"]

    def compute_operating_point(self) -> OperatingPoint | None:
        """When an object counts as known among these images, by their features; None of images of one object.

        Not by heads: these know the images that they were trained on, and would promise more than a new photo keeps.
        """
        return compute_operating_point(self.frozen, self.rows.labels, self.scoring.distance, self.scoring.seed)

    @cached_property
    def search_gallery(self) -> SearchGallery:
        """The images of the feature file, ready to be searched, under a head that was trained on all objects, if any.

        Without a work directory, or with ``searches_by_head`` off, features are compared as they are.
        """
        refuse_copies(self.settings)
        rows, scoring, point = self.rows, self.scoring, None
        everything = np.arange(len(rows.labels))
        judging = searchable(self.features, everything, scoring.distance)
        embeddings, prepared, embed, words = self.features, judging, lambda query: query, "the features as they are"
        if self.workdir is not None:
            self.refuse_other_size()
        if self.workdir is not None and self.searches_by_head:
            run = next((number for number, plan in enumerate(self.plans) if plan.fold < 0), 0)
            embed = lambda query: self.embed(query, run)
            embeddings, words = self.embed(self.features, run), f"the head of {self.workdir} at step {self.step}"
            prepared = searchable(embeddings, everything, scoring.distance)
        if self.workdir is not None and self.has_own_images:
            point = operating_point.read_point(self.workdir, scoring.distance)
        features = self.settings.features
        return SearchGallery(
            embeddings=embeddings,
            prepared=prepared,
            features=self.features,
            judging=judging,
            labels=rows.labels,
            image_ids=rows.image_ids,
            prepare=scoring.prepare,
            embed=embed,
            point=point or self.compute_operating_point(),
            words=f"{len(rows.labels)} images ({features.collection}, {self.described_by}): {words}, "
            f"{scoring.distance.replace('_', ' ')} distance",
        )

    def label_name(self, row: int) -> str:
        """The name of the label of an image; "" where labels have no names."""
        names, label = self.rows.label_names, int(self.rows.labels[row])
        return names[label] if names and 0 <= label < len(names) else ""

    @cached_property
    def describe(self) -> Callable[[Image.Image], np.ndarray]:
        """A function from one picture to its features [1, ...], by the network that made those of the file.

        Raises:
          UserError: the configuration names no network, or one with other weights or features of another shape.
        """
        if self.rows.widths:
            raise UserError(
                f"config.features.path: {len(self.rows.widths)} files of several networks, and an image is described "
                "by one; search with the features of one file"
            )
        if not self.settings.features.backbone:
            raise UserError("config.features.backbone: empty; name the network that made the features of the file")
        settings = extraction_settings(self.settings.features)
        with naming("config.features."):
            extractor = description.load_extractor(settings)
        held, own = self.rows.source.get("weights_sha256"), extractor.source["weights_sha256"]
        if held not in (None, own):
            raise UserError(
                f"config.features.weights: {settings.weights!r} here are not the weights that the gallery's features "
                f"were made with (SHA-256 {own[:12]} and {held[:12]}); name that file, or extract the gallery again"
            )
        if tuple(self.rows.shape[1:]) != (shape := tuple(extractor.find_shape())):
            raise UserError(
                f"config.features: describe an image by features of shape {shape}, but the gallery "
                f"holds {tuple(self.rows.shape[1:])}; set backbone, image_size and pooling to those of its extraction"
            )
        return lambda image: description.describe(extractor, settings, image)

    @cached_property
    def find_picture(self) -> Callable[[str], Image.Image | None]:
        """A function from an image id to its picture; None where the images are not at hand or one cannot be read."""
        features = self.settings.features
        if not features.images:
            return lambda image_id: None
        with naming("config.features."):
            return picture_finder(load_collection(features.collection, features.images))
