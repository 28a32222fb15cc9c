"""Searches with a picture, a folder of pictures or words, and says whether its object is in the gallery at all."""

import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

WORKDIR = "optional"  # without one the features are compared as they are
READS_SAVED_CONFIG = True
CONFIG = "photos"  # of a gallery that does not say how it was made
PAGES = Path("runs")  # pages lie in runs/search where there is no work directory


class Searched(NamedTuple):
    """What is searched: a gallery on disk, or the images of a feature file."""

    gallery: Any  # a SearchGallery
    describe: Callable[[Any], Any]  # a picture -> its features
    find_label: Callable[[int], tuple[int, str]]  # row -> number and name; (-1, "") of an image without a label
    find_picture: Callable[[str], Any]  # image id -> a picture to show, or None
    make_rerank: Callable[[str], Any]
    find_size: Callable[[int], tuple[int, int]] = lambda row: (0, 0)  # row -> pixels of the picture; zeros: not known


class Options(NamedTuple):
    """The flags of ``--mode=search``."""

    image: Annotated[str, "the picture to search with, or a folder of pictures"] = ""
    text: Annotated[str, "words to search with, of a gallery whose network reads texts, such as 'a red sofa'"] = ""
    gallery: Annotated[str, "the folder of the gallery"] = ""
    crop: Annotated[str, "x,y,w,h: the part of the upright picture to search with, in pixels"] = ""
    k: Annotated[int, "how many images to list"] = 12
    rerank: Annotated[str, "the re-ranking to apply, one of config.rerank's"] = ""
    farthest: Annotated[bool, "list the farthest images first"] = False
    json: Annotated[bool, "one JSON document on standard output, and nothing else there"] = False
    step: Annotated[int | None, "the checkpoint whose heads embed; the latest without it"] = None
    engine: Annotated[str, "milvus:ADDRESS: search the collection that --mode=export wrote there"] = ""
    collection: Annotated[str, "the collection of Milvus"] = "fgis"
    use_head: Annotated[str, "of the run: always, never, or auto: where its report shows that it helps"] = "auto"


def run(config: Any, workdir: Path | None, options: Options) -> None:
    """Prints the ranking of every picture and writes ``search/NAME.html`` and ``search/NAME.png`` for each.

    Of a folder, pictures that cannot be used are named on standard error and left out.

    Raises:
      UserError: the picture, or every one of a folder, cannot be used; or the gallery cannot be searched.
    """
    from fgis.errors import UserError, naming
    from fgis.gallery import pictures
    from fgis.gallery.search import SearchOptions, rank_picture
    from fgis.report import search_page

    crop = _check(options, workdir)
    left_out: list[UserError] = []
    if options.text:
        paths = [Path(re.sub(r"[^\w-]+", "-", options.text).strip("-")[:60] or "text")]
        usable = iter([pictures.QueryPicture(paths[0], search_page.text_card(options.text), 0.0)])
    else:
        with naming("--image="):
            paths = pictures.picture_paths(options.image)
        usable = pictures.usable_pictures(paths, crop, left_out)
    first = next(usable, None)  # before anything slow: what is wrong with the only picture is said at once
    several = bool(options.image) and Path(options.image).is_dir()
    if first is None and len(paths) == 1 and not several:
        raise UserError(_with_flag(left_out[0], options))
    searched = _open(config, workdir, options)
    if first is None:
        _tell(left_out, options)
        raise UserError(f"--image={options.image}: none of {len(paths)} pictures can be used; repair one")
    if searched.gallery.note:
        print(f"fgis: ranked by {searched.gallery.note}", file=sys.stderr)
    wanted = SearchOptions(options.k, searched.make_rerank(options.rerank), options.farthest)
    folder = _page_folder(workdir)
    names, documents = search_page.page_names(paths), []
    for picture in itertools.chain([first], usable):
        ranking = rank_picture(searched.gallery, searched.describe, picture.image, wanted)
        result = _result(picture, ranking, searched, options)
        files = search_page.write_files(folder / names[picture.path], result) if folder else []
        documents.append(search_page.document(result))
        if not options.json:
            print("\n".join([search_page.search_text(result), *map(str, files), ""]), flush=True)
        _tell(left_out, options)
    _tell(left_out, options)
    if options.json:
        print(json.dumps(documents if several else documents[0]))


def _check(options: Options, workdir: Path | None) -> Any:
    """The box of ``--crop``; raises ``UserError`` for whatever is wrong with the flags by themselves."""
    from fgis.errors import UserError, naming
    from fgis.gallery.pictures import parse_crop
    from fgis.ranges import nearest
    from fgis.retrieval.rerank import RERANKERS

    if options.step is not None and workdir is None and not options.gallery:
        raise UserError(f"--step={options.step}: of which run? name its --workdir as well, or leave --step out")
    if options.engine and not options.gallery:
        raise UserError(f"--engine={options.engine}: searches a gallery; name it by --gallery")
    if options.text:
        _check_text(options)
    elif not options.image:
        raise UserError("--image: missing; name the picture to search with, or a folder of pictures")
    if options.k < 1:
        raise UserError(f"--k={options.k}: nothing to list; write a whole number of at least 1")
    if options.rerank and options.rerank not in RERANKERS:
        raise UserError(f"--rerank={options.rerank}: no such method; {nearest(options.rerank, RERANKERS)}")
    if options.rerank and options.farthest:
        raise UserError(f"--farthest: does not go with --rerank={options.rerank}, which orders the nearest; drop one")
    with naming(f"--crop={options.crop}: "):
        return parse_crop(options.crop)


def _page_folder(workdir: Path | None) -> Path | None:
    """Where pages are written: beside the run, or where that may not be written in ``PAGES``; None: nowhere."""
    from fgis import files
    from fgis.errors import warn

    own = (workdir or PAGES) / "search"
    found = next((place for place in (own, PAGES / "search") if files.can_write(place)), None)
    if found != own:
        warn(f"{own}: cannot be written; " + (f"pages are written to {found}" if found else "no page is written"))
    if found:
        found.mkdir(parents=True, exist_ok=True)
    return found


def _check_text(options: Options) -> None:
    from fgis.errors import UserError

    if not options.text.strip():
        raise UserError("--text: no words in it; write some, such as --text='a red sofa'")
    if not options.gallery:
        raise UserError("--text: searches a gallery; name it by --gallery")
    given = {name: getattr(options, name) for name in ("image", "crop", "rerank", "farthest", "engine")}
    if named := [name for name, value in given.items() if value]:
        raise UserError(f"--text: does not go with --{named[0]}; leave one of them out")


def _open(config: Any, workdir: Path | None, options: Options) -> Searched:
    """The gallery of ``--gallery``, or without it the images of the feature file."""
    if options.gallery:
        return _open_gallery(config, workdir, options)
    from fgis.experiment.build import build_rerank
    from fgis.experiment.head_use import why_not, with_note
    from fgis.experiment.run import Run

    reason = why_not(workdir, options.step, options.use_head) if workdir else ""
    opened = Run.open(config, workdir, options.step)
    opened.searches_by_head = not reason
    gallery, rerank = with_note(opened.search_gallery, reason), opened.settings.rerank
    return Searched(
        gallery=gallery,
        describe=lambda image: opened.describe(image),
        find_label=lambda row: (int(gallery.labels[row]), opened.label_name(row)),
        find_picture=lambda image_id: opened.find_picture(image_id),
        make_rerank=lambda name: build_rerank(rerank._replace(name=name or "none")),
    )


def _open_gallery(config: Any, workdir: Path | None, options: Options) -> Searched:
    import io

    from PIL import Image

    from fgis.experiment.differences import to_plain
    from fgis.experiment.galleries import load_gallery
    from fgis.experiment.head_use import check_engine

    use_head = check_engine(options.use_head, options.engine)
    loaded = load_gallery(options.gallery, to_plain(config), str(workdir or ""), options.step, use_head=use_head)
    if options.engine:
        from fgis.experiment.engines import search_by_engine

        absolute = str(workdir.absolute()) if workdir else ""
        loaded = search_by_engine(loaded, options.gallery, options.engine, absolute, options.collection)

    gallery, describe = loaded.search, loaded.describe
    if options.text:
        from fgis.experiment.gallery_text import open_by_text

        gallery, encode = open_by_text(options.gallery, loaded)
        describe = lambda card: encode(options.text)

    def find_label(row: int) -> tuple[int, str]:
        label = int(loaded.search.labels[row])
        return (label, loaded.label_names[label]) if loaded.records[row].label else (-1, "")

    return Searched(
        gallery=gallery,
        describe=describe,
        find_label=find_label,
        find_picture=lambda image_id: Image.open(io.BytesIO(loaded.thumbnail(image_id))).convert("RGB"),
        make_rerank=loaded.make_rerank,
        find_size=lambda row: (loaded.records[row].width, loaded.records[row].height),
    )


def _with_flag(error: Exception, options: Options) -> str:
    flag = f"--crop={options.crop}" if ": the box " in str(error) else "--image"
    return f"{flag}={error}" if flag == "--image" else f"{flag}: {error}"


def _tell(left_out: list[Any], options: Options) -> None:
    """Names the pictures that were left out, once each."""
    for error in left_out:
        print(f"fgis: left out: {_with_flag(error, options)}", file=sys.stderr)
    left_out.clear()


def _result(picture: Any, ranking: Any, searched: Searched, options: Options) -> Any:
    """What was found with one picture, ready to be shown."""
    from fgis.report import search_page

    gallery = searched.gallery
    found = ranking.found
    near = [gallery.point and bool(distance <= gallery.point.threshold) for distance in ranking.judged]
    matches = [
        search_page.Match(
            rank=rank,
            image_id=str(gallery.image_ids[row]),
            label=searched.find_label(row)[0],
            label_name=searched.find_label(row)[1],
            distance=distance,
            picture=searched.find_picture(str(gallery.image_ids[row])),
            near=near[rank - 1],
            box=box,
            size=searched.find_size(row),
        )
        for rank, (row, distance, box) in enumerate(
            zip(found.images.tolist(), found.distances.tolist(), found.boxes, strict=True), 1
        )
    ]
    order = f"re-ranked by {options.rerank.replace('_', ' ')}" if options.rerank else "nearest first"
    return search_page.SearchResult(
        path=options.text or str(picture.path),
        words=bool(options.text),
        picture=picture.image,
        nearest=ranking.nearest,
        point=gallery.point,
        matches=matches,
        order="farthest first" if options.farthest else order,
        gallery=gallery.words,
        milliseconds={"decode": picture.milliseconds, **ranking.milliseconds},
    )
