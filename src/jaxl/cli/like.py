"""The settings of a picture, as `jaxl generate --like` takes them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxl.cli.flags import flag
from jaxl.cli.terminal import note, one_line
from jaxl.errors import respelled
from jaxl.metadata import settings_of
from jaxl.text.tags import TAG, TAGGED, written
from jaxl.weights.adapters.strength import Strength

# options that say the same in different ways: where one is given, the picture's others are not taken
SAME = ({"steps", "timesteps", "sigmas"}, {"timestep_spacing", "timesteps", "sigmas"}, {"size", "width", "height"})
# what belongs to a scheduler
OF_SCHEDULER = {"eta", "timesteps", "sigmas", "timestep_spacing"}


class Like:
    """A picture's settings, of which `options` are those that no flag replaces; `given` are all flags by their names.

    Raises InputError, naming `like`, for a file without settings that can be read.
    """

    def __init__(self, file: str, given: Mapping[str, Any]):
        self.name = Path(file).name
        self.settings = settings_of(file, argument="like")
        flags = {name for name, value in given.items() if value is not None}
        replaced = (flags | {name for group in SAME if group & flags for name in group}) - {"loras"}
        if "scheduler" in flags:
            replaced |= OF_SCHEDULER
        if "image" not in flags:
            replaced.add("strength")  # there is no picture that it could be of
        self.options = {name: value for name, value in self.settings.arguments.items() if name not in replaced}
        self.loras: dict[str, Any] = self.options.pop("loras", {})

    def adapted(self, known: Collection[str], flags: Mapping[str, float]) -> dict[str, Any]:
        """Return the prompt, and LoRAs with strengths: those of `flags`, and the picture's that are `known` by name."""
        kept = {*known} - {*flags}
        loras = {name: strength for name, strength in self.loras.items() if name in kept}
        prompt = self.options.get("prompt")
        found: dict[str, Any] = {}
        if prompt is not None and self.options.get("prompt_syntax") in TAGGED:

            def read(tag: re.Match[str]) -> str:
                name = (tag[2] or "").partition(":")[0].strip()
                return tag[0] if not name or name in kept else ""

            # a strength of its own for the text encoders is a tag's
            own = {name: each for name, each in loras.items() if isinstance(each, Strength)}
            tags = [written(name, each.of_text.at("text_encoder", ""), each.unet) for name, each in own.items()]
            found["prompt"] = " ".join([TAG.sub(read, prompt), *tags])
            loras = {name: each for name, each in loras.items() if name not in own}
        plain = {name: Strength.read("loras", each).unet for name, each in loras.items()}
        return {**found, "loras": {**plain, **flags} or None}

    def tell(self, has: Mapping[str, Collection[str]], *, quiet: bool) -> list[str]:
        """Print what was read, unless `quiet`, and return a line for each thing that was not."""
        settings = self.settings
        lacking = [one_line(respelled(line, flag)) for line in settings.lacking(has)]
        if not quiet:
            program = f"{settings.program} {settings.version}".rstrip()
            note(one_line(f"settings of {self.name}, by {program}: {', '.join(sorted({*self.options, *self.loras}))}"))
            for line in lacking:
                note(f"not taken: {line}")
        return lacking
