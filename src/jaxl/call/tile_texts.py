"""Tiles in A1111's text, as its extension "Tiled Diffusion" writes them: JSON, with sizes in latents."""

from __future__ import annotations

import json
from typing import Any

LABEL, METHOD = "Tiled Diffusion", "MultiDiffusion"
LATENT = 8  # pixels of a latent, in all models of SDXL's kind
WIDTH, HEIGHT, OVERLAP = "Tile tile width", "Tile tile height", "Tile Overlap"
# which says nothing of the picture
NOTES = ("Tile batch size", "Keep input size")


def tile_texts(size: int, overlap: int) -> dict[str, str]:
    """Return the pairs of the line of settings for tiles of so many pixels, of which neighbours share `overlap`."""
    told = {"Method": METHOD, WIDTH: size // LATENT, HEIGHT: size // LATENT, OVERLAP: overlap // LATENT}
    return {LABEL: json.dumps(told)}


def take_tiles(pairs: dict[str, str]) -> dict[str, int]:
    """Take the tiles out of such pairs, as the arguments that they stand for; those of another kind are left there."""
    try:
        told: Any = json.loads(pairs.get(LABEL, ""))
        side, overlap = told.pop(WIDTH), told.pop(OVERLAP)
        plain = (told.pop("Method"), told.pop(HEIGHT)) == (METHOD, side) and not set(told) - {*NOTES}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return {}
    if not plain or not all(type(number) is int and 0 <= number <= 2048 for number in (side, overlap)):
        return {}
    del pairs[LABEL]
    return {"tile_size": side * LATENT, "tile_overlap": overlap * LATENT}
