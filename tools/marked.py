"""A part of a page that a tool writes, between two marks."""

from __future__ import annotations

END = "<!-- until here -->\n"


def rewritten(old: str, tool: str, text: str) -> str:
    """Return a page with `text` in place of what `tool` has written there."""
    begin = f"<!-- written by tools/{tool}.py -->\n"
    before, rest = old.split(begin)
    return f"{before}{begin}\n{text}\n{END}{rest.split(END)[1]}"
