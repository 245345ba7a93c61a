"""What Draw Things writes: JSON in an XMP packet (https://drawthings.ai)."""

from __future__ import annotations

from jaxl.metadata.container import COMMENT, XMP, Texts
from jaxl.metadata.settings import Reading, Settings

KEYS = {"c", "uc", "sampler", "seed", "steps"}
NOTES = {"c", "uc", "model", "sampler", "seed", "scale", "steps", "size", "strength", "lora", "v2"}


def read(texts: Texts) -> Settings | None:
    """Read the JSON of Draw Things."""
    told = next((found for name in (XMP, COMMENT) if (found := texts.object(name)).keys() >= KEYS), None)
    if told is None:
        return None
    reading = Reading("Draw Things")
    reading.text("prompt", told.get("c"))
    reading.text("negative_prompt", told.get("uc"))
    reading.arguments["prompt_syntax"] = "lenient"
    reading.steps(told.get("steps"))
    reading.number("guidance_scale", told.get("scale"), least=0, most=1000)
    reading.seed(told.get("seed"))
    reading.size_in(told.get("size"))
    reading.sampler(told.get("sampler"))
    reading.network("model", told.get("model"))
    for each in told["lora"][:100] if isinstance(told.get("lora"), list) else ():
        if isinstance(each, dict):
            reading.lora(each.get("model"), each.get("weight", 1))
    if told.get("strength") not in (None, 1, 1.0):
        reading.strength(told["strength"])
    for name, value in told.items():
        if name not in NOTES and value not in ("", None, False, 0):
            reading.miss(name, value)
    return reading.done()
