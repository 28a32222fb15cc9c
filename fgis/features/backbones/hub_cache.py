"""Files of a model repository that somebody downloaded: by path, in a folder, or in the cache of the hub's client.

Nothing is fetched here. The cache is laid out as Hugging Face's client does it: a folder
``models--OWNER--NAME/snapshots/COMMIT`` for each repository, where ``refs/main`` names the newest commit.
"""

import os
from collections.abc import Iterator
from pathlib import Path

WEIGHTS = "model.safetensors"


def find_weights(name: str, repository: str, weights: str) -> Path:
    """The weights file that a setting names.

    Args:
      name: of the network, for messages.
      repository: of the hub, such as ``facebook/dinov2-small``.
      weights: a file; a folder that holds ``model.safetensors`` or is a cache of the hub; or ``imagenet``: the user's
        own cache, wherever ``HF_HUB_CACHE`` or ``HF_HOME`` say that it is.

    Returns:
      The path of a file that exists.

    Raises:
      ValueError: there is none; the message begins with ``weights:`` and says which file to fetch.
    """
    place = _own_cache() if weights == "imagenet" else Path(os.path.expanduser(weights))
    if place.is_file():
        return place
    folders = (folder for root in (place, place / "hub") for folder in _snapshots(root, repository))
    for folder in (*([] if weights == "imagenet" else [place]), *folders):
        if (folder / WEIGHTS).is_file():
            return folder / WEIGHTS
    raise ValueError(
        f"weights: no {WEIGHTS} of {name} in {place}; fetch it with 'hf download {repository} {WEIGHTS}', or download "
        f"{WEIGHTS} of {repository} and name the file instead of {weights!r}"
    )


def _own_cache() -> Path:
    """Where the hub's client keeps what it downloads."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(home).expanduser() / "hub"


def _snapshots(root: Path, repository: str) -> Iterator[Path]:
    """The folders of a repository's downloads, that of ``refs/main`` first, then by name."""
    folder = root / f"models--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        yield folder / "snapshots" / Path(main.read_text(encoding="utf-8", errors="replace").strip()).name
    if (folder / "snapshots").is_dir():
        yield from sorted((folder / "snapshots").iterdir())
