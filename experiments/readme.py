"""The figures of README and docs, from committed results: tables are written, figures in sentences are checked.

    python -m experiments.readme            # writes the tables anew; names every figure that its source does not give
    python -m experiments.readme --check    # writes nothing

A table stands between ``<!-- table: NAME -->`` and ``<!-- end of table -->``. A figure in a sentence is a number with a
decimal point or with a unit (%, ×, s, ms, MB, GB); settings are written as code and are no figures. The paragraph ends
with a comment that gives the source of each of its figures, in order: a file, then a path into it on a line each; or
``given: TEXT`` for a number that nobody measured, such as a level of confidence::

    Training adds +0.097 [+0.083, +0.113].
    <!-- figures: docs/results/grocerystore.json
    unseen_gallery/difference_untrained/map@r
    -->
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.page_tables import ROOT, TABLES, load

DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
NUMBER = rf"[+−]?(?:{DIGITS}?\.\d+|{DIGITS})"
UNIT = r"\s?(?:%|×(?!\s?\d)|s|ms|MB|GB)(?!\w)"
FIGURE = re.compile(
    rf"(?<![\w.:/−+-])(?P<value>[+−]?{DIGITS}?\.\d+(?![\w.]\d)(?P<unit>{UNIT})?|{NUMBER}(?P<whole>{UNIT}))"
    rf"(?P<interval>\s\[(?P<low>{NUMBER}),\s(?P<high>{NUMBER})\])?"
)
TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)
SOURCES = re.compile(r"<!-- figures:\s(.*?)-->", re.DOTALL)
NO_FIGURES = re.compile(r"```.*?```|^---\n.*?\n---$|<!-- table:.*?<!-- end of table -->|`[^`]*`|\]\([^)]*\)", re.DOTALL)


class Figure(NamedTuple):
    """One number of a text, as it is written: ``+0.097``, ``%`` or nothing, and the two ends of its interval."""

    text: str
    unit: str
    interval: tuple[str, ...]


def pages() -> list[Path]:
    """README and all pages of the documentation."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def lookup(source: str, path: str) -> Any:
    """What ``source`` holds at ``path``; ``A minus B`` is the difference of two paths.

    Raises:
      KeyError: there is nothing at that path; the message says which part is unknown.
    """
    first, minus, second = path.partition(" minus ")
    if minus:
        return _mean(lookup(source, first)) - _mean(lookup(source, second))
    found, parts = load(source), re.split(r"(?<! )/(?! )", path)
    found = found["evaluations"] if parts[0] in found.get("evaluations", ()) else found
    for name in parts:
        if isinstance(found, list):
            found = {str(row.get("row", i)): row for i, row in enumerate(found)}
        if name not in found:
            raise KeyError(f"{source}: {path}: no {name!r}; known: {', '.join(map(str, found))}")
        found = found[name]
    return found


def figures(text: str) -> list[Figure]:
    """The figures of a paragraph whose code, tables and links are left out."""
    return [
        Figure(
            found["value"].removesuffix(found["unit"] or found["whole"] or ""),
            (found["unit"] or found["whole"] or "").strip(),
            (found["low"], found["high"]) if found["interval"] else (),
        )
        for found in FIGURE.finditer(SOURCES.sub("", text))
    ]


def sources(text: str) -> list[tuple[str, str]]:
    """(file, path) of each figure of a paragraph; ("given", TEXT) where nobody measured it."""
    found, source = [], ""
    for line in (line.strip() for comment in SOURCES.findall(text) for line in comment.splitlines()):
        if line.startswith("given: "):
            found.append(("given", line.removeprefix("given: ")))
        elif line.endswith((".json", ".md")):
            source = line
        elif line:
            found.append((source, line))
    return found


def wrong(text: str) -> list[str]:
    """One line for every figure of a page that has no source, or of which its source says something else."""
    complaints = []
    plain = NO_FIGURES.sub(lambda found: "\n" * found[0].count("\n"), text)
    for paragraph in re.split(r"\n\s*\n", plain):
        written, named = figures(paragraph), sources(paragraph)
        if len(written) != len(named):
            words = ", ".join(one.text + one.unit for one in written)
            complaints.append(f"{len(written)} figures ({words}) and {len(named)} sources: {paragraph.strip()[:80]!r}")
            continue
        for figure, (source, path) in zip(written, named, strict=True):
            if source == "given":
                if path != f"{figure.text} {figure.unit}".strip():
                    complaints.append(f"{figure.text} {figure.unit}: the source says given: {path}")
                continue
            try:
                found = lookup(source, path)
            except KeyError as error:
                complaints.append(f"{figure.text}{figure.unit}: {error.args[0]}")
                continue
            values = [_mean(found), *(found["ci95"] if figure.interval else ())]
            for shown, value in zip((figure.text, *figure.interval), values, strict=True):
                right = _as_written(shown, value * _scale(figure.unit, path))
                if right != shown:
                    complaints.append(f"{shown}{figure.unit}: {right} in {source}, {path}")
    return complaints


def with_tables(text: str) -> str:
    """The page with its tables made anew."""
    return TABLE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def _mean(found: Any) -> float:
    return float(found["mean"] if isinstance(found, Mapping) else found)


def _scale(unit: str, path: str) -> float:
    if unit == "GB" and path.endswith(("mb", "megabytes")):
        return 1e-3
    return {"%": 100.0, "ms": 1000.0}.get(unit, 1.0)


def _as_written(shown: str, value: float) -> str:
    """``value`` with the decimals, the separators and the sign of ``shown``."""
    decimals = len(shown.partition(".")[2])
    text = f"{abs(value):,.{decimals}f}" if "," in shown else f"{abs(value):.{decimals}f}"
    is_zero = not float(text.replace(",", ""))
    text = text.removeprefix("0") if shown.lstrip("+−").startswith(".") else text
    sign = "−" if value < 0 and not is_zero else "+" if shown.startswith("+") and not is_zero else ""
    return (shown[0] if is_zero and shown[0] in "+−" else sign) + text


def main(arguments: Sequence[str]) -> int:
    """Writes the tables, or only checks them; returns 1 where a figure or a table is not that of its source."""
    complaints = []
    for page in pages():
        text = page.read_text()
        renewed = with_tables(text)
        if "--check" not in arguments and renewed != text:
            page.write_text(renewed)
        elif renewed != text:
            complaints.append(f"{page.relative_to(ROOT)}: its tables are not those of the results")
        complaints += [f"{page.relative_to(ROOT)}: {complaint}" for complaint in wrong(renewed)]
    print("\n".join(complaints) or "every figure has its source")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
