"""Used by the site (mkdocs.yml): a search for a word of ours shows the glossary first."""

from typing import Any

# times what the page would weigh
BOOST = 8


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leave the text as it is and weigh the glossary in the search."""
    if page.file.src_uri == "glossary.md":
        page.meta["search"] = {"boost": BOOST}
    return markdown
