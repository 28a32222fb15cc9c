"""For mkdocstrings: the examples in docstrings (``>>>``) become blocks of code."""

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^>>> .*?(?=\n\s*\n|\Z)", re.DOTALL | re.MULTILINE)


class FenceDoctests(Extension):
    """Puts a fence around each example, up to the next empty line."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Changes the docstring of a module, class or function."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}\n```", obj.docstring.value)
