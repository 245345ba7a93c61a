"""What the metadata and the name of an adapter say about it: for people to read, never to decide how it is applied."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxl.presets import distilled_by_name

MOST_WORDS = 10
# in the order of trust: what sd-scripts writes, and the standard of Stability AI
BASE_MODEL = ("ss_base_model_version", "modelspec.architecture", "ss_sd_model_name")
NAMES = ("ss_output_name", "modelspec.title")


@dataclass(frozen=True)
class Description:
    """A file's metadata, read: it is often absent, and at times wrong. `names` are those that the file has."""

    names: tuple[str, ...]
    metadata: Mapping[str, str]

    @property
    def base_model(self) -> str | None:
        return next((self.metadata[key] for key in BASE_MODEL if self.metadata.get(key)), None)

    @property
    def distilled(self) -> str | None:
        """The method by which it was distilled for few steps, by its name."""
        names = [*self.names, *(self.metadata[key] for key in NAMES if key in self.metadata)]
        return next((found for name in names if (found := distilled_by_name(name)) is not None), None)

    @property
    def trigger_words(self) -> tuple[str, ...]:
        """The phrase that calls it, or else the most frequent tags of its training."""
        phrase = self.metadata.get("modelspec.trigger_phrase", "").strip()
        if phrase:
            return tuple(word.strip() for word in phrase.split(",") if word.strip())
        counts: Counter[str] = Counter()
        for tags in self._table("ss_tag_frequency").values():
            for tag, count in tags.items() if isinstance(tags, dict) else ():
                if isinstance(count, int):
                    counts[tag.strip()] += count
        return tuple(tag for tag, _ in counts.most_common(MOST_WORDS))

    @property
    def rooted_glora(self) -> bool:
        """Whether it is GLoRA with rsLoRA's scale, which LyCORIS leaves out of that kind's alpha alone."""
        arguments = self._table("ss_network_args")
        return str(arguments.get("algo")).lower() == "glora" and str(arguments.get("rs_lora")).lower() == "true"

    def _table(self, key: str) -> Mapping[str, Any]:
        """Return a value that is JSON; empty if it is not."""
        try:
            value = json.loads(self.metadata.get(key, "{}"))
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}
