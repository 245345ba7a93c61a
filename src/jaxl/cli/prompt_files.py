"""Prompts that files have a part in: wildcards and styles, as commands take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxl.errors import InputError
from jaxl.text.prompt_styles import PromptStyle, chosen, read_styles
from jaxl.text.wildcards import Wildcards

WildcardsOption = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="A folder of .txt files: __name__ in a prompt is a line of one, by the seed."),
]
StylesFileOption = Annotated[str | None, typer.Option(metavar="FILE", help="A1111's styles.csv, for --prompt-style.")]
PromptStyleOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A style of --styles-file, which adds to the prompts; repeatable."),
]


@dataclass(frozen=True)
class PromptFiles:
    """The wildcards and the styles that a command was given."""

    wildcards: Wildcards | None
    styles: Sequence[PromptStyle]

    @classmethod
    def read(cls, folder: str | None, file: str | None, names: Sequence[str] | None) -> PromptFiles | None:
        """Return what is given, None if nothing is. Raises InputError."""
        if names and file is None:
            raise InputError("prompt_style", names[0], "say in which file it is, with --styles-file")
        if folder is None and not names:
            return None
        styles = chosen(read_styles(Path(file)), names) if file is not None and names else []
        return cls(None if folder is None else Wildcards(Path(folder)), styles)

    def prompts(self, options: Mapping[str, Any], seed: int) -> dict[str, str]:
        """Return the prompt and the negative one, if it has any text, of the image of a seed. Raises InputError."""
        texts = options["prompt"], options.get("negative_prompt") or ""
        for style in self.styles:
            texts = style.apply(*texts)
        said = dict(zip(("prompt", "negative_prompt"), texts, strict=True))
        if self.wildcards is not None:
            said = {name: self.wildcards.expand(text, seed, name) for name, text in said.items()}
        return {name: text for name, text in said.items() if text or options.get(name) is not None}
