"""What SD.Next writes: A1111's text, with names of its own (https://github.com/vladmandic/sdnext)."""

from __future__ import annotations

from jaxl.metadata.a1111 import from_pairs
from jaxl.metadata.container import Texts
from jaxl.metadata.settings import Reading, Settings

# names there, and A1111's for the same
SAME = {"CLiP-skip": "Clip skip", "Sampler sigma": "Schedule type"}
# of how it computes, and who of its parts did
NOTES = ("Scheduler", "Pipeline", "Operations", "Parser", "Backend", "Batch")


def read(texts: Texts) -> Settings | None:
    """Read SD.Next's text. Its noise has the dtype of the device, which the text does not say."""
    pairs = texts.pairs()
    if pairs is None or pairs.get("App") != "SD.Next":
        return None
    reading = Reading("SD.Next", pairs.get("Version", ""))
    for name in NOTES:
        pairs.pop(name, None)
    for name, usual in SAME.items():
        if name in pairs:
            pairs[usual] = pairs.pop(name)
    return from_pairs(reading, pairs)
