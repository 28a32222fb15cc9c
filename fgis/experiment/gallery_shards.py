"""A gallery that several machines described: their shards, taken together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fgis.errors import UserError
from fgis.experiment.gallery_about import About, refuse_other_features, require_about
from fgis.experiment.gallery_tiles import read_tiles, refuse_other_tiles
from fgis.gallery import shards
from fgis.gallery.store import Store, open_store
from fgis.gallery.tiles import Tiles


def join_shards(store: Store, config: Mapping[str, Any], about: About, gallery: Path, tiles: Tiles | None) -> About:
    """Takes over what the shards of a gallery described, and says which of them are missing.

    Raises:
      UserError: a shard was made in another way, with other weights, or with other windows than ``tiles``.
    """
    found = shards.found_shards(gallery)
    for _, path in found:
        held = require_about(path, path)
        refuse_other_features(config, held, path)
        with open_store(path) as shard_store:
            refuse_other_tiles(read_tiles(shard_store), tiles, path)
        if held.weights_sha256 and about.weights_sha256 not in ("", held.weights_sha256):
            raise UserError(f"{path}: was made with other weights than {gallery}; remove this shard and index it again")
        about = about._replace(weights_sha256=about.weights_sha256 or held.weights_sha256)
    missing = {number for number in range(1, found[0][0].of + 1)} if found else set()
    for shard, new, finished in shards.take_over(store, found):
        missing -= {shard.number} if finished else set()
        print(f"shard {shard.number}/{shard.of}: {new} pictures taken over{'' if finished else '; it is not finished'}")
    if missing:
        names = ", ".join(map(str, sorted(missing)))
        print(f"not finished: {names} of {found[0][0].of} shards; what they lack is described here", flush=True)
    return about
