"""Prompts to begin with, which the model at hand can draw."""

from __future__ import annotations

# like the texts that the embedded model was trained on
TINY = (
    "a red apple on a blue background, flat style",
    "a rocket on a purple background, noto style",
    "a dolphin and a party popper on a yellow background, noto style",
    "the sun above a house on a blue background",
    "a cat to the left of a tree on a green background, flat style",
)
SDXL = (
    "a baby dolphin wearing a party hat, studio photograph, soft light",
    "an astronaut riding a horse through a field of sunflowers, oil painting",
    "a cosy bookshop on a rainy evening, warm windows, watercolour",
    "a fox made of autumn leaves, macro photograph",
    "isometric drawing of a tiny island with a lighthouse, pastel colours",
)


def examples(model: str) -> tuple[str, ...]:
    """Return the examples for a model, by its public name."""
    return TINY if model == "tiny" else SDXL
