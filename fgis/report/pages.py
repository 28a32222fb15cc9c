"""The templates of HTML pages: self-contained, escaped, and the same bytes for the same content."""

from functools import cache
from typing import Any

import jinja2

from fgis.report.examples import show_label
from fgis.report.fonts import visible


def render_template(name: str, **content: Any) -> str:
    """The page of a template in this package; an undefined name in it raises ``jinja2.UndefinedError``."""
    return _environment().get_template(name).render(**content)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fgis.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["visible"] = visible
    environment.globals["show_label"] = show_label
    return environment
