"""Prompt styles: pieces of prompts with names, in a file as AUTOMATIC1111's web UI keeps them, `styles.csv`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxl.errors import InputError, nearest

MOST_BYTES = 16 * 2**20
# what a style puts the prompt in place of
PLACE = "{prompt}"


@dataclass(frozen=True)
class PromptStyle:
    """What a style adds to a prompt and to a negative one."""

    name: str
    prompt: str = ""
    negative_prompt: str = ""

    def apply(self, prompt: str, negative_prompt: str) -> tuple[str, str]:
        """Return both with what the style adds: around them where it has `{prompt}`, else after a comma."""
        return _merged(self.prompt, prompt), _merged(self.negative_prompt, negative_prompt)


def read_styles(file: Path) -> dict[str, PromptStyle]:
    """Return the styles of a file by name. Its first line names columns: name, prompt (or text) and negative_prompt.

    Raises InputError, naming `styles_file`, for a file that cannot be read so.
    """
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InputError("styles_file", str(file), f"at most {MOST_BYTES} bytes are read")
        rows = csv.DictReader(io.StringIO(file.read_text("utf-8-sig"), newline=""), skipinitialspace=True)
        columns = rows.fieldnames or ()
        if "name" not in columns or not {"prompt", "text"} & set(columns):
            raise InputError("styles_file", str(file), "its first line must be name,prompt,negative_prompt")
        made = [
            PromptStyle(
                (row["name"] or "").strip(),
                row.get("prompt") or row.get("text") or "",
                row.get("negative_prompt") or "",
            )
            for row in rows
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no CSV in UTF-8"
        raise InputError("styles_file", str(file), f"{what}; give a file as A1111's styles.csv") from None
    return {style.name: style for style in made if style.name and (style.prompt or style.negative_prompt)}


def chosen(known: Mapping[str, PromptStyle], names: Iterable[str]) -> list[PromptStyle]:
    """Return the styles of these names. Raises InputError, naming `prompt_style`, for one that there is not."""
    found = []
    for name in names:
        if name not in known:
            raise InputError("prompt_style", name, nearest(name, known) if known else "the file has no styles")
        found.append(known[name])
    return found


def _merged(style: str, prompt: str) -> str:
    if PLACE in style:
        return style.replace(PLACE, prompt)
    return ", ".join(part for part in (prompt.strip(), style.strip()) if part)
