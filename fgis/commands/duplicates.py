"""Lists groups of exact and near duplicates in a gallery, as table, JSON and page; nothing is deleted."""

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

WORKDIR = "unused"
READS_SAVED_CONFIG = False
CONFIG = "photos"
SHOWN = 50  # groups in the terminal; files hold all


class Options(NamedTuple):
    """The flags of ``--mode=duplicates``."""

    gallery: Annotated[str, "the folder of the gallery"] = ""
    threshold: Annotated[
        float, "the least agreement of near duplicates, from 0 to 1: the correlation of their grey values"
    ] = 0.95
    json: Annotated[bool, "one JSON document on standard output, and nothing else there"] = False


def run(config: Any, workdir: Path | None, options: Options) -> None:
    """Prints the groups and writes ``duplicates.json`` and ``duplicates.html`` into the gallery.

    Raises:
      UserError: there is no such gallery, or the threshold is no share.
    """
    del workdir
    from tqdm import tqdm

    from fgis import files
    from fgis.errors import UserError, naming
    from fgis.experiment.differences import to_plain
    from fgis.experiment.galleries import load_gallery
    from fgis.gallery.duplicates import find_duplicates
    from fgis.ranges import Share, conform
    from fgis.report.duplicates_page import duplicates_document, duplicates_html, duplicates_text

    if not options.gallery:
        raise UserError("--gallery: missing; name the folder of the gallery")
    with naming("--threshold: "):
        conform(Share, options.threshold)
    loaded = load_gallery(options.gallery, to_plain(config), tiled=False)
    with tqdm(unit="pair", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        groups = find_duplicates(loaded, threshold=options.threshold, progress=progress)
    document = duplicates_document(groups, len(loaded.records), options.threshold)
    folder = Path(options.gallery).expanduser()
    with naming(f"--gallery={options.gallery}: "):
        files.write_json(folder / "duplicates.json", document)
        files.write_text(folder / "duplicates.html", duplicates_html(document, loaded.made, loaded.thumbnail))
    if options.json:
        print(json.dumps(document))
    else:
        print(duplicates_text(document, SHOWN))
        print(f"\n{folder / 'duplicates.json'}\n{folder / 'duplicates.html'}")
