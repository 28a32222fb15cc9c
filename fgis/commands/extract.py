"""Describes images by a pretrained network and writes the feature file that config.features.path names."""

from typing import Any, NamedTuple

WORKDIR = "unused"
READS_SAVED_CONFIG = False


class Options(NamedTuple):
    """No flags of its own."""


def run(config: Any, workdir: Any, options: Options) -> None:
    """Writes the feature file; an extraction that was killed goes on where it stopped.

    Raises:
      UserError: images or weights cannot be had, an image is bad and ``config.features.on_bad_image`` is "stop", or the
        file exists and was made in another way.
    """
    del workdir, options
    from tqdm import tqdm

    from fgis.errors import UserError, naming
    from fgis.experiment.config import extraction_settings, read_settings
    from fgis.experiment.differences import to_plain
    from fgis.features import collection, extract

    features = read_settings(to_plain(config)).features
    if not features.path:
        raise UserError("config.features.path: empty; name the feature file to write, such as features/mine.h5")
    if not features.backbone:
        raise UserError("config.features.backbone: empty; name the network that makes the features")
    with naming("config.features."):
        images = collection.load_collection(features.collection, features.images)
        with tqdm(total=len(images.labels), unit="image", disable=None) as bar:
            extract.extract(
                images,
                features.path,
                extraction_settings(features),
                progress=lambda done, total: bar.update(done - bar.n),
                say=lambda line: tqdm.write(line),
            )
