"""The seeds of the images of a call, and what else counts up from one image to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxl.call.styles import batch_of


def counts_up(options: Mapping[str, Any]) -> bool:
    """Return whether a seed counts up from image to image.

    It does not where the images are variations of one, nor where one generator draws them all.
    """
    return not options.get("variation_strength") and batch_of(options) is None


def of_image(options: Mapping[str, Any], seed: int, image: int) -> dict[str, Any]:
    """Return what one image of a call, by its number, would be asked for alone: its `seed` and more."""
    own: dict[str, Any] = {"seed": seed}
    variation, delta = (options.get(name) for name in ("variation_seed", "eta_noise_seed_delta"))
    batch = batch_of(options)
    if variation is not None:
        own["variation_seed"] = variation + image if isinstance(variation, int) else variation[image]
    if isinstance(delta, list | tuple):
        own["eta_noise_seed_delta"] = delta[image]
    if batch is not None:
        own["noise_batch"] = (batch[0] + image, batch[1])
    return own
