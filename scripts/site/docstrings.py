"""Let mkdocstrings show the arguments that a docstring describes as a list."""

from __future__ import annotations

from typing import Any

import griffe

from scripts.site.adapt import list_arguments


class Arguments(griffe.Extension):  # type: ignore[misc]  # griffe is in another environment
    """Read each docstring through `list_arguments`."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Change the docstring of what has been loaded."""
        if obj.docstring:
            obj.docstring.value = list_arguments(obj.docstring.value)
