"""How Sphinx renders these pages: `make docs`. Its source is the repository, so that links hold as they are.

The navigation is the list of pages in `docs/index.md`: one group for each of its headings.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "index.md"

project = "pushsse"
author = "The pushsse authors"
copyright = "The pushsse authors, MIT licence"
root_doc = "README"
extensions = ["myst_parser"]
include_patterns = [
    "*.md",
    "docs/*.md",
    "examples/README.md",
    "examples/*/README.md",
    "pushsse/client/README.md",
]
exclude_patterns = [".*", "build", "dist", "**/node_modules", "**/page"]
language = "en"

# Anchors as GitHub makes them.
myst_heading_anchors = 6
# Blocks of code may leave something out: `…`. A page that the navigation hasn't is a fault that a test finds.
suppress_warnings = ["misc.highlighting_failure", "toc.not_included"]

html_theme = "furo"
html_title = "pushsse"
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_use_index = False
html_static_path = ["static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}

_LINK = re.compile(r"\]\(([^)#\s]+/)\)")
_ENTRY = re.compile(r"^- \[([^\]]+)\]\(([^)#\s]+)\.md\)", re.MULTILINE)


def groups() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The navigation: each heading of the index with its pages, by title and name."""
    for part in re.split(r"^## ", INDEX.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, rest = part.partition("\n")
        pages = [(title, (INDEX.parent / page).resolve()) for title, page in _ENTRY.findall(rest)]
        yield heading, [(title, page.relative_to(ROOT).as_posix()) for title, page in pages]


def toctrees() -> Iterator[str]:
    for heading, pages in groups():
        lines = [f"{title} <{'self' if page == root_doc else page}>" for title, page in pages]
        yield "\n".join(["", "```{toctree}", ":hidden:", f":caption: {heading}", "", *lines, "```", ""])


def lead_to_a_page(app: Sphinx, name: str, source: list[str]) -> None:
    """A link to a folder leads to its README, or to its only file; the first page gets the navigation."""
    folder = (ROOT / name).parent

    def page(match: re.Match[str]) -> str:
        target = folder / match[1]
        if (target / "README.md").is_file():
            return f"]({match[1]}README.md)"
        inside = [file for file in target.iterdir() if file.is_file()] if target.is_dir() else []
        return f"]({match[1]}{inside[0].name})" if len(inside) == 1 else match[0]

    source[0] = _LINK.sub(page, source[0])
    if name == root_doc:
        source[0] += "".join(toctrees())


def begin_with_the_readme(app: Sphinx, exception: Exception | None) -> None:
    """The first page is also there as index.html, beside itself: its links hold."""
    if exception is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", lead_to_a_page)
    app.connect("build-finished", begin_with_the_readme)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
