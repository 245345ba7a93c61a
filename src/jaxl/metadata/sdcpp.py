"""What stable-diffusion.cpp writes: A1111's text (https://github.com/leejet/stable-diffusion.cpp)."""

from __future__ import annotations

from jaxl.metadata.a1111 import from_pairs
from jaxl.metadata.container import Texts
from jaxl.metadata.settings import Reading, Settings

VERSION = "stable-diffusion.cpp"
# its generators by A1111's names: its "cuda" counts as A1111's "NV" does, with one thread for each number
GENERATORS = {"cuda": "NV", "cpu": "CPU"}
# its name for k-diffusion's own levels
DISCRETE = " discrete"


def read(texts: Texts) -> Settings | None:
    """Read the text of stable-diffusion.cpp."""
    pairs = texts.pairs()
    if pairs is None or not (pairs.get("Version", "").startswith(VERSION) or "SDCPP" in pairs):
        return None
    generator = pairs.get("RNG", "cuda")
    pairs["RNG"] = GENERATORS.get(generator, generator)
    if pairs.get("Sampler RNG") == generator:
        del pairs["Sampler RNG"]
    if pairs.get("Sampler", "").endswith(DISCRETE):
        pairs["Sampler"] = pairs["Sampler"].removesuffix(DISCRETE) + " uniform"
    if "Guidance" in pairs:  # of models that are guided by a number they are told, which SDXL is not
        del pairs["Guidance"]
    pairs.pop("SDCPP", None)
    return from_pairs(
        Reading(VERSION, pairs["Version"].removeprefix(VERSION).strip() if "Version" in pairs else ""), pairs
    )
