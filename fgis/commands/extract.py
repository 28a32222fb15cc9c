"""Describes images by a pretrained network and writes the feature file that config.features.path names."""

from typing import Annotated, Any, NamedTuple

WORKDIR = "unused"
READS_SAVED_CONFIG = False
GO_ON = "what was described is kept, and the same command goes on from there"


class Options(NamedTuple):
    """The flags of ``--mode=extract``."""

    shard: Annotated[str, "i/n: describe one share of the images; joined by the same command without it"] = ""


def run(config: Any, workdir: Any, options: Options) -> None:
    """Writes the feature file, or that of a share beside it; an extraction that was killed goes on where it stopped.

    Raises:
      UserError: images or weights cannot be had, an image is bad and ``config.features.on_bad_image`` is "stop", or the
        file exists and was made in another way.
    """
    del workdir
    from tqdm import tqdm

    from fgis.errors import UserError, naming
    from fgis.experiment import build
    from fgis.experiment.config import extraction_settings, read_settings
    from fgis.experiment.differences import to_plain
    from fgis.features import collection, extract_shares, joined
    from fgis.features.shares import parse_shard

    checked = read_settings(to_plain(config))
    features = checked.features
    if not features.path:
        raise UserError("config.features.path: empty; name the feature file to write, such as features/mine.h5")
    if len(paths := joined.listed(features.path)) > 1:
        raise UserError(f"config.features.path: {len(paths)} files named, and one is written; extract them one by one")
    if not features.backbone:
        raise UserError("config.features.backbone: empty; name the network that makes the features")
    with naming("--shard="):
        shard = parse_shard(options.shard)
    with naming("config.features."):
        images = collection.load_collection(features.collection, features.images)
        settings = extraction_settings(features)
        with tqdm(unit="image", disable=None) as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            devices = build.find_own_devices(checked.train.devices)
            says: Any = {"devices": devices, "progress": progress, "say": tqdm.write}
            if shard:
                extract_shares.extract_share(images, features.path, settings, shard, **says)
            else:
                extract_shares.extract_joined(images, features.path, settings, **says)
