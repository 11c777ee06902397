"""Lets mkdocstrings read our docstrings: their section `Example:` is Google's `Examples:`, whose
doctests are shown as code.
"""

from typing import Any

import griffe


class ExamplesAsSection(griffe.Extension):
    """Renames the section while the site is built."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Every module, class and function as it is read."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = text.replace("\nExample:\n", "\nExamples:\n")
