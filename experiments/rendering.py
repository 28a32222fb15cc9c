"""A table as Markdown, LaTeX and JSON: rendered from its JSON object and from nothing else, printed and written."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tabulate import tabulate

from fgis import files
from fgis.report.tables import figure

LEVEL = 0.05


class Grid(NamedTuple):
    """One block of cells."""

    title: str  # "" for the main one
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    columns: str  # LaTeX's column specification


class Page(NamedTuple):
    """What a table shows below its head line."""

    grids: Sequence[Grid]
    notes: Sequence[str]
    caption: str


def columns(first: float, others: int) -> str:
    r"""A first column of so many ``\linewidth``, and ``others`` as wide as their cells."""
    return rf"p{{{first:.2f}\linewidth}}" + "l" * others


def write_table(summary: Mapping[str, Any], page: Callable[[Mapping[str, Any]], Page], workdir: Path) -> None:
    """Prints the table, and writes it into ``workdir``, as Markdown, LaTeX and JSON."""
    stem = f"{workdir}/{summary['table']}.{summary['dataset']}"
    files.write_json(f"{stem}.json", summary)
    saved: dict[str, Any] = files.read_json(f"{stem}.json") or {}
    for ending, text in ((".md", markdown(saved, page(saved))), (".tex", latex(saved, page(saved)))):
        files.write_text(f"{stem}{ending}", text)
        print(text)
    print(json.dumps(saved, ensure_ascii=False), flush=True)


def markdown(summary: Mapping[str, Any], page: Page) -> str:
    """The table for GitHub: its head line, its grids, its notes and its caption."""
    parts = [
        f"## {summary['table']}: {summary['dataset']}",
        " · ".join(["`" + summary["command"] + "`", *_origin(summary)]),
    ]
    for grid in page.grids:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in (grid.header, *grid.rows)]
        parts += [grid.title, tabulate(cells[1:], cells[0], tablefmt="github", disable_numparse=True)]
    parts += ["\n".join(f"- {line}" for line in page.notes), page.caption]
    return "\n\n".join(part for part in parts if part) + "\n"


def latex(summary: Mapping[str, Any], page: Page) -> str:
    r"""The same as a fragment for ``\input``; needs ``\usepackage{booktabs}``."""
    head = [f"{summary['table']}: {summary['dataset']}", summary["command"], *_origin(summary)]
    lines = [f"% {line}" for line in head] + [r"% needs \usepackage{booktabs}"]
    for grid in page.grids:
        lines += [r"\par\medskip\noindent " + escape(grid.title)] if grid.title else []
        lines += [r"\par\smallskip\noindent", rf"\begin{{tabular}}{{{grid.columns}}}", r"\toprule"]
        body = [" & ".join(escape(cell) for cell in row) + r" \\" for row in grid.rows]
        lines += [" & ".join(escape(cell) for cell in grid.header) + r" \\", r"\midrule", *body, r"\bottomrule"]
        lines += [r"\end{tabular}"]
    lines += [r"\par\smallskip\noindent " + escape(text) for text in (*page.notes, page.caption) if text]
    return "\n".join(lines) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": r"\textsuperscript{*}", '"': r"\textquotedbl{}",
    "Δ": r"$\Delta$", "−": "$-$", "–": "--", "×": r"$\times$", "±": r"$\pm$", "·": r"$\cdot$", "≥": r"$\geq$",
    "≤": r"$\leq$", "→": r"$\rightarrow$", "²": r"\textsuperscript{2}", "χ": r"$\chi$", "β": r"$\beta$",
    "…": r"\ldots{}",
}  # fmt: skip


def escape(text: str) -> str:
    r"""``text`` for LaTeX: special characters escaped, `code` in typewriter, **bold** in bold.

    Brackets are braced, since a row that begins with one after ``\\`` would be read as its argument.
    """
    done = []
    for i, piece in enumerate(re.split(r"`([^`]*)`|\*\*(.+?)\*\*", text)):  # text, code, bold, text, code, bold, ...
        if piece and i % 3 != 1:
            piece = re.sub(r"(?<![\w-])-(?=[\d.])", "−", piece)  # in front of a number: a minus sign
        escaped = "".join(LATEX.get(character, character) for character in piece or "")
        done.append(("%s", r"\texttt{%s}", r"\textbf{%s}")[i % 3] % escaped if escaped else "")
    return "".join(done)


def difference(comparison: Mapping[str, Any] | None) -> str:
    """A paired difference with its sign and its interval; * where its corrected p is below ``LEVEL``."""
    mark = "*" if comparison and comparison["p_holm"] < LEVEL else ""
    return figure(comparison, signed=True) + mark


def _origin(summary: Mapping[str, Any]) -> list[str]:
    """When, with what and where a table was made."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return [text for text in (summary["date"], versions, summary["machine"]) if text]
