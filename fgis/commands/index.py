"""Makes a searchable gallery of any folder of images, or brings one up to date."""

import sys
from pathlib import Path
from typing import Annotated, Any, NamedTuple

WORKDIR = "optional"  # without one, images are compared by the features of the pretrained network
READS_SAVED_CONFIG = True
CONFIG = "photos"
GO_ON = "what was described is kept, and the same command goes on from there"


class Options(NamedTuple):
    """The flags of ``--mode=index``."""

    images: Annotated[str, "the folder of images, at any depth; that of an existing gallery without it"] = ""
    gallery: Annotated[str, "the folder of the gallery"] = ""
    shard: Annotated[str, "i/n: describe one share of the images; joined by --mode=index without it"] = ""
    tiles: Annotated[str, "SIZE,STRIDE: windows of large pictures are found as well, such as 256,128 pixels"] = ""


def run(config: Any, workdir: Path | None, options: Options) -> None:
    """Describes what is new or changed in the folder, forgets what is gone, and lists what cannot be used.

    Raises:
      UserError: there is no such folder, or the gallery is written by another process or was made in another way.
    """
    from tqdm import tqdm

    from fgis.errors import UserError, naming
    from fgis.experiment import galleries
    from fgis.experiment.differences import to_plain
    from fgis.features.shares import parse_shard
    from fgis.gallery.shards import shard_folder, share_of
    from fgis.gallery.tiles import parse_tiles

    if not options.gallery:
        raise UserError("--gallery: missing; name the folder of the gallery, such as --gallery=gallery")
    with naming("--tiles="):
        tiles = parse_tiles(options.tiles)
    with naming("--shard="):
        shard = parse_shard(options.shard)
    gallery = Path(options.gallery).expanduser()
    scan, root = galleries.scan_images(options.images, gallery)
    print(f"{len(scan.files)} images in {root}{_others(scan.others)}", flush=True)
    if shard:
        scan, gallery = share_of(scan, shard), shard_folder(gallery, shard)
        print(f"shard {options.shard}: {len(scan.files)} of them", flush=True)
    plain = to_plain(config)
    about = galleries.About(root, plain, str(workdir.absolute()) if workdir else "", None, "")
    with tqdm(unit="image", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        indexed = galleries.index_gallery(plain, scan, about, gallery, tiles=tiles, progress=progress)
    print(summary_words(indexed))
    for image_id, reason in indexed.bad:
        print(f"fgis: left out: {image_id}: {reason}", file=sys.stderr)


def summary_words(done: Any) -> str:
    """What was done, in one line."""
    parts = [
        f"{count} {word}"
        for word, count in (
            ("new", done.added),
            ("changed", done.changed),
            ("moved or copied", done.moved),
            ("gone", done.removed),
            ("left out", len(done.bad)),
        )
        if count
    ]
    rate = f", {done.decoded / done.seconds:.3g} described a second" if done.decoded else ""
    return f"{done.images} images in the gallery ({', '.join(parts) or 'nothing new'}); {done.seconds:.1f} s{rate}"


def _others(others: Any) -> str:
    if not others:
        return ""
    named = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in list(others.items())[:5])
    return f"; other files are not read ({named}{', ...' if len(others) > 5 else ''})"
