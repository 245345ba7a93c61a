"""MkDocs' hooks for the site of these pages: `make docs`.

The README and the other pages at the root of the repository are pages of the site too, and links to files that the site
lacks become the names of these files. The site fetches nothing from other machines: otherwise the build fails.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
AT_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)")
# what a browser fetches unasked; a link that people click is none of these
FETCHED = (
    (
        "*.html",
        re.compile(r"<(?:script|link|img|iframe|source|video)\b[^>]*\b(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)"),
    ),
    ("*.css", re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"') ]+)")),
)


def for_site(text: str, page: Path) -> str:
    """Return the text of a page, a file of the repository, with its links as the site has them.

    Raises ValueError for a link to a file that is not there.
    """

    def target(name: str) -> str | None:
        """Return where a link leads from the page's place on the site; None for a file that the site lacks."""
        file = (page.parent / name).resolve()
        if not file.exists():
            raise ValueError(f"{page.relative_to(ROOT)} links to {name}, which is not there")
        path = file.relative_to(ROOT).as_posix()
        if path in AT_THE_ROOT:
            return AT_THE_ROOT[path]
        return path.removeprefix("docs/") if path.startswith("docs/") and file.is_file() else None

    def link(match: re.Match[str]) -> str:
        label, name, anchor = match[1], match[2], match[3] or ""
        there = target(name)
        if there is not None:
            return f"[{label}]({there}{anchor})"
        path = os.path.relpath((page.parent / name).resolve(), ROOT)
        return f"`{path}`" if label.strip("`") in path else f"{label} (`{path}`)"

    text = PICTURE.sub(lambda match: f"![{match[1]}]({target(match[2])})", text)
    return LINK.sub(link, text)


def fetched_from_elsewhere(site: Path) -> list[str]:
    """Return what pages and styles of a built site fetch from other machines, each with its file."""
    return [
        f"{file.relative_to(site)}: {address}"
        for pattern, fetched in FETCHED
        for file in sorted(site.rglob(pattern))
        for address in fetched.findall(file.read_text())
    ]


def on_files(files: Any, config: Any) -> Any:
    """Add the pages at the root of the repository."""
    from mkdocs.structure.files import File  # pyright: ignore[reportMissingImports]

    for name, uri in AT_THE_ROOT.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Give each page the links of the site."""
    names = {uri: name for name, uri in AT_THE_ROOT.items()}
    uri = page.file.src_uri
    return for_site(markdown, ROOT / names.get(uri, f"docs/{uri}"))


def on_post_build(config: Any) -> None:
    """End the build with an error if the site fetches anything from elsewhere."""
    found = fetched_from_elsewhere(Path(config["site_dir"]))
    if found:
        raise ValueError("the site fetches from other machines:\n" + "\n".join(found))
