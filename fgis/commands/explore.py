"""Draws a map of images: a page with PCA and t-SNE of features and heads, pictures and nearest neighbours."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

WORKDIR = "optional"  # without one the features alone are shown
READS_SAVED_CONFIG = True
CONFIG = "photos"  # of a gallery that does not say how it was made
PAGES = Path("runs")  # the page lies in runs/explore.html where there is no work directory and no gallery
BLOCK = 1024  # images whose features are read together


class Options(NamedTuple):
    """The flags of ``--mode=explore``."""

    gallery: Annotated[str, "the folder of the gallery"] = ""
    tsne: Annotated[bool, "t-SNE beside PCA; --notsne leaves it out"] = True
    limit: Annotated[int, "show at most so many images, drawn at random where there are more"] = 20_000
    step: Annotated[int | None, "the checkpoint whose heads embed; the latest without it"] = None


class Embedded(NamedTuple):
    """One embedding of the images that are shown."""

    name: str
    note: str
    embeddings: Any  # [n, d]
    unseen: Any = None  # [n], whether the head was not trained on the object of an image


class Source(NamedTuple):
    """Where the images come from: a gallery, or a feature file and perhaps a run; rows are those of the whole."""

    image_ids: Any  # [n]
    find_label: Callable[[int], tuple[int, str]]  # row -> number and name; (-1, "") of an image without a label
    embed: Callable[[Any], list[Embedded]]  # rows -> their embeddings
    find_picture: Callable[[str], Any] | None  # image id -> a picture, or None; None where no picture is at hand
    title: str
    distance: str
    seed: int
    folder: Path  # of the page


def run(config: Any, workdir: Path | None, options: Options) -> None:
    """Writes ``explore.html``: first with PCA, then again with t-SNE, which takes a while.

    Raises:
      UserError: the limit is out of range, or the gallery, the feature file, the pictures or the run cannot be used.
    """
    from fgis import files
    from fgis.errors import UserError
    from fgis.report.map_page import MOST

    if options.step is not None and workdir is None and not options.gallery:
        raise UserError(f"--step={options.step}: of which run? name its --workdir as well, or leave --step out")
    if not 1 <= options.limit <= MOST:
        raise UserError(f"--limit={options.limit}: a page shows 1 to {MOST} images; write a number between")
    source = (_gallery_source if options.gallery else _run_source)(config, workdir, options)
    rows, notes = _choose_rows(source, options.limit)
    for note in notes:
        print(note, flush=True)
    shown, images = source.embed(rows), _images(source, rows)
    views = [_first_view(one, source.distance) for one in shown]
    path = source.folder / "explore.html"
    files.write_text(path, _page(source, images, views, notes))
    print(f"{path}: PCA of {len(rows)} images by {', '.join(one.name for one in shown)}", flush=True)
    if options.tsne and _can_draw_tsne(len(rows)):
        views = [_with_tsne(view, one, source) for view, one in zip(views, shown, strict=True)]
        files.write_text(path, _page(source, images, views, notes))
        print(f"{path}: with t-SNE", flush=True)


def _run_source(config: Any, workdir: Path | None, options: Options) -> Source:
    """The images of the feature file."""
    from fgis.experiment.run import Run

    opened = Run.open(config, workdir, options.step)
    features = opened.settings.features
    name = Path(features.images).name or features.collection or "images"
    find_picture = opened.find_picture  # a folder that is not there is said before anything slow
    return Source(
        image_ids=opened.rows.image_ids,
        find_label=lambda row: (int(opened.rows.labels[row]), opened.label_name(row)),
        embed=lambda rows: _embed_by_run(opened, rows),
        find_picture=find_picture if features.images else None,
        title=f"{name} on {opened.described_by or 'own'} features",
        distance=opened.scoring.distance,
        seed=opened.scoring.seed,
        folder=workdir or PAGES,
    )


def _embed_by_run(opened: Any, rows: Any) -> list[Embedded]:
    """The features, a head that was trained without a fold of the objects, and the one that was trained on all."""
    import numpy as np

    from fgis.experiment.build import build_folds

    starts = range(0, len(rows), BLOCK)
    features = np.concatenate([opened.read_prepared(rows[start : start + BLOCK]) for start in starts])
    shown = [Embedded("frozen features", "as the network gives them", features)]
    if opened.workdir is None:
        return shown
    opened.refuse_other_size()
    own, plans = opened.has_own_images, list(enumerate(opened.plans))
    everything = next((number for number, plan in plans if plan.fold < 0), None)
    without, fold = next(
        ((number, plan.fold) for number, plan in plans if plan.fold >= 0 and not plan.photos), (None, -1)
    )
    other = "trained on other images"
    if without is not None and (own or everything is None):
        unseen = build_folds(opened.settings, opened.rows.labels)[rows] == fold if own else None
        note = other if unseen is None else f"{unseen.sum()} images are of objects it has not seen"
        shown.append(Embedded(f"head trained without fold {fold}", note, opened.embed(features, without), unseen))
    if everything is not None:
        note = "it has seen all of these objects" if own else other
        shown.append(Embedded("head trained on all objects", note, opened.embed(features, everything)))
    return shown


def _gallery_source(config: Any, workdir: Path | None, options: Options) -> Source:
    """The images of ``--gallery``."""
    import io

    from PIL import Image

    from fgis.experiment.config import read_settings
    from fgis.experiment.differences import to_plain
    from fgis.experiment.galleries import load_gallery

    settings, place = read_settings(to_plain(config)), Path(options.gallery).expanduser()
    loaded = load_gallery(place, to_plain(config), str(workdir or ""), options.step, tiled=False)
    search = loaded.search

    def find_label(row: int) -> tuple[int, str]:
        label = int(search.labels[row])
        return (label, loaded.label_names[label]) if loaded.records[row].label else (-1, "")

    def embed(rows: Any) -> list[Embedded]:
        shown = [Embedded("frozen features", "as the network gives them", search.features[rows])]
        if search.embeddings is not search.features:
            shown.append(
                Embedded("trained head", "of the run that the gallery is searched by", search.embeddings[rows])
            )
        return shown

    return Source(
        image_ids=search.image_ids,
        find_label=find_label,
        embed=embed,
        find_picture=lambda image_id: Image.open(io.BytesIO(loaded.thumbnail(image_id))),
        title=f"{place.absolute().name} on {settings.features.backbone} features",
        distance=search.prepared.distance,
        seed=settings.seed,
        folder=workdir or place,
    )


def _choose_rows(source: Source, limit: int) -> tuple[Any, list[str]]:
    """The rows that are shown, in order, and what is to be said of them."""
    import numpy as np

    from fgis.streams import stream_generator

    count = len(source.image_ids)
    if count <= limit:
        return np.arange(count), []
    rows = np.sort(stream_generator(source.seed).choice(count, limit, replace=False))
    return rows, [f"A random sample of {limit:,} of {count:,} images; neighbours are those within the sample."]


def _images(source: Source, rows: Any) -> Any:
    """Names, labels and thumbnails of the images that are shown."""
    import numpy as np
    from tqdm import tqdm

    from fgis.report.examples import show_label
    from fgis.report.map_atlas import make_atlas, tile_side
    from fgis.report.map_page import MapImages

    image_ids = [str(image_id) for image_id in source.image_ids[rows]]
    held = [source.find_label(row) for row in rows.tolist()]
    names = {label: show_label(label, name) for label, name in held if label >= 0}
    numbers = {label: number for number, label in enumerate(sorted(names))}
    find = source.find_picture or (lambda image_id: None)
    with tqdm(total=len(rows), unit="picture", disable=None if source.find_picture else True) as bar:
        atlas = make_atlas(
            lambda place: find(image_ids[place]), len(rows), tile_side(len(rows)), lambda done: bar.update(done - bar.n)
        )
    labels = np.array([numbers.get(label, -1) for label, _ in held])
    return MapImages(image_ids, labels, [names[label] for label in sorted(names)], atlas)


def _first_view(one: Embedded, distance: str) -> Any:
    """The view of an embedding with PCA alone."""
    import numpy as np

    from fgis.report.map_page import NEIGHBOURS, MapView
    from fgis.report.map_points import project_pca
    from fgis.retrieval.search import search

    rows = np.arange(len(one.embeddings))
    neighbours = search(one.embeddings, one.embeddings, NEIGHBOURS, distance, query_rows=rows)
    return MapView(one.name, one.note, {"PCA": project_pca(one.embeddings, distance)}, neighbours, one.unseen)


def _can_draw_tsne(count: int) -> bool:
    """Whether t-SNE is possible here; says in one line why not."""
    from fgis.report.map_points import FEWEST, has_tsne

    installed = has_tsne()
    if not installed:
        print("t-SNE left out: openTSNE is not installed; pip install '.[map]' installs it, --notsne does without")
    elif count < FEWEST:
        print(f"t-SNE left out: {count} images are too few for it; {FEWEST} are needed")
    return installed and count >= FEWEST


def _with_tsne(view: Any, one: Embedded, source: Source) -> Any:
    """The view with t-SNE as well."""
    from time import monotonic

    import numpy as np

    from fgis.report.map_points import project_tsne, tsne_depth
    from fgis.retrieval.search import search

    rows, began = np.arange(len(one.embeddings)), monotonic()
    neighbours = search(one.embeddings, one.embeddings, tsne_depth(len(rows)), source.distance, query_rows=rows)
    points = project_tsne(neighbours, view.layouts["PCA"], source.distance, source.seed)
    print(f"t-SNE by {one.name}: {monotonic() - began:.0f} s", flush=True)
    return view._replace(layouts={**view.layouts, "t-SNE": points})


def _page(source: Source, images: Any, views: list[Any], notes: list[str]) -> str:
    """The page, with all layouts turned towards those of the first view."""
    from fgis.report.map_page import map_html
    from fgis.report.map_points import align

    first = views[0].layouts
    turned = [
        view._replace(layouts={name: align(points, first[name]) for name, points in view.layouts.items()})
        for view in views[1:]
    ]
    distance = source.distance.replace("_", " ")
    return map_html(images, [views[0], *turned], title=source.title, notes=notes, distance=distance)
