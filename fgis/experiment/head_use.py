"""Whether a search uses the head of a run: where its report shows that it helps, unless the user says otherwise."""

from pathlib import Path

from fgis.errors import UserError
from fgis.gallery.search import SearchGallery
from fgis.ranges import nearest
from fgis.report.summary import head_helps, read_report

HEADS = ("auto", "always", "never")


def check_engine(use_head: str, engine: str) -> str:
    """What of ``HEADS`` is in force: an engine elsewhere holds embeddings by the head, if there is one.

    Raises:
      UserError: an engine is to be searched without the head.
    """
    if engine and use_head == "never":
        raise UserError(
            "--use_head=never: does not go with --engine, whose collection holds what was exported; drop one"
        )
    return "always" if engine else use_head


def with_note(gallery: SearchGallery, reason: str) -> SearchGallery:
    """The gallery with the reason of ``why_not``, if any, in its words and as its note."""
    if not reason:
        return gallery
    return gallery._replace(words=f"{gallery.words} ({reason})", note=f"the features as they are: {reason}")


def why_not(workdir: str | Path, step: int | None, use_head: str) -> str:
    """Why a search does not use the head of the run in ``workdir``, in words; "" where it does.

    Args:
      workdir: of the run.
      step: the checkpoint that the user named, which is one to be used; None for the latest.
      use_head: one of ``HEADS``; "auto" reads ``report.json``, and uses the head where there is none, or where it has
        neither new photos nor unseen objects.

    Raises:
      UserError: ``use_head`` is none of these.
    """
    if use_head not in HEADS:
        raise UserError(f"--use_head={use_head}: no such choice; {nearest(use_head, HEADS)}")
    if use_head == "never":
        return "--use_head=never"
    report = read_report(Path(workdir) / "report.json") if use_head == "auto" and step is None else None
    if report is None or head_helps(report) is not False:
        return ""
    return f"the report of {workdir} does not show that its head helps; --use_head=always uses it"
