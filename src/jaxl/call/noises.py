"""The noise of each image, as seeds stand for it in other programs: what it begins with, and what its steps add."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from jaxl.call import arguments
from jaxl.call.options import Noise
from jaxl.call.row_noise import RowNoise
from jaxl.call.seeds import counts_up
from jaxl.diffusion.brownian import BrownianNoise
from jaxl.diffusion.other_noise import BLOCK, OWN, Numbers, check_source
from jaxl.diffusion.rounded import rounded_levels
from jaxl.diffusion.rows import Table
from jaxl.diffusion.variation import blended, pasted
from jaxl.errors import InputError

Shape = tuple[int, int, int]
LOW = 0xFFFFFFFF  # the bits of a seed that a CPU's generator reads


@dataclass(frozen=True)
class AskedNoise:
    """The options of noise, checked, with one value for each image where images differ.

    `source` and `step_source` are of SOURCES, or OWN. `deltas` make the seeds of steps; where there are none, the first
    noise's generator goes on. The images are at `places` of a batch of `of` that one generator draws.
    """

    source: str
    step_source: str
    sde: str
    seeds: list[int]
    deltas: list[int] | None
    variations: list[int]
    strength: float
    resized_from: tuple[int, int] | None
    places: range | None
    of: int

    def numbers(self, image: int, source: str, shape: Shape, delta: int = 0) -> Numbers:
        """Return what a source draws for an image [H, W, C] from its seed and a difference on."""
        if math.prod(shape) < BLOCK:
            raise InputError("noise", source, f"draws no images of {shape[0]}x{shape[1]} latents; ask for a larger one")
        seed = (self.seeds[image] + delta) % 2**64
        return Numbers(source, seed, shape, self.places[image] if self.places else 0, self.of)


def read_noise(options: Noise, seed: Any, batch: int, factor: int) -> AskedNoise:
    """Check the options of noise; `factor` is that of pixels to latents. Raises InputError."""
    source = check_source("noise", options.get("noise", OWN))
    step_source = check_source("step_noise", options.get("step_noise", source))
    for name, of_source in (
        ("seed_resize_from", source),
        ("noise_batch", source),
        ("eta_noise_seed_delta", step_source),
        ("sde_noise", step_source),
    ):
        if name in options and of_source == OWN:
            raise InputError(name, options[name], "is for noise of other programs; give noise='torch', or another")
    sde = options.get("sde_noise", "brownian")
    if sde not in ("brownian", "brownian_run", "draws"):
        raise InputError("sde_noise", sde, "give 'brownian', 'brownian_run' or 'draws'")
    places, of = _batch(options.get("noise_batch"), batch)
    seeds = arguments.seeds_per_image("seed", seed, batch, counts=counts_up(options))
    return AskedNoise(
        source,
        step_source,
        sde=sde,
        seeds=seeds,
        deltas=_deltas(options.get("eta_noise_seed_delta"), seeds),
        variations=arguments.seeds_per_image("variation_seed", options.get("variation_seed", 0), batch),
        strength=arguments.share("variation_strength", options.get("variation_strength", 0.0)),
        resized_from=_latents_size(options.get("seed_resize_from"), factor),
        places=places,
        of=of,
    )


def _batch(value: Any, batch: int) -> tuple[range | None, int]:
    """The places of the images among those that one generator draws, and how many these are."""
    if value is None:
        return None, 1
    remedy = f"give the first image's place and the number of images, of which {batch} are drawn: (0, {batch})"
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError("noise_batch", value, remedy)
    place, of = (arguments.whole_number("noise_batch", each, least=0, remedy=remedy) for each in value)
    if place + batch > of:
        raise InputError("noise_batch", value, remedy)
    return range(place, place + batch), of


def _deltas(value: Any, seeds: Sequence[int]) -> list[int] | None:
    if value is None:
        return None
    if value == "inverted":
        return [(seed & LOW ^ LOW) - (seed & LOW) for seed in seeds]
    values = value if isinstance(value, (list, tuple)) else [value] * len(seeds)
    if len(values) != len(seeds):
        raise InputError("eta_noise_seed_delta", value, f"{len(values)} values for {len(seeds)} images")
    remedy = "give a whole number, one for each image, or 'inverted'"
    return [arguments.whole_number("eta_noise_seed_delta", each, least=-(2**64), remedy=remedy) for each in values]


def _latents_size(value: Any, factor: int) -> tuple[int, int] | None:
    """Height and width in latents of a size in pixels."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError("seed_resize_from", value, "give width and height in pixels, such as (512, 512)")
    width, height = (arguments.whole_number("seed_resize_from", side, least=factor) for side in value)
    return height // factor, width // factor


def first_noise(asked: AskedNoise, shape: Shape) -> np.ndarray | None:
    """Draw the noise [B, *shape] that images begin with; None where the devices draw jaxl's own."""
    if asked.source == OWN:
        return None
    return np.stack([_first(asked, image, shape) for image in range(len(asked.seeds))])


def _first(asked: AskedNoise, image: int, shape: Shape) -> np.ndarray:
    def varied(shape: Shape) -> np.ndarray:
        numbers = asked.numbers(image, asked.source, shape)
        noise = next(numbers.draws())
        if not asked.strength:
            return noise
        other = next(replace(numbers, seed=asked.variations[image]).draws())
        return blended(noise, other, np.float32(asked.strength))

    if asked.resized_from is None:
        return varied(shape)
    return pasted(varied((*asked.resized_from, shape[-1])), next(asked.numbers(image, asked.source, shape).draws()))


def row_noise(asked: AskedNoise, *, brownian: bool, whole: Table, run: Table, shape: Shape) -> list[RowNoise] | None:
    """Return the noise that each image's rows add, if it is not jaxl's own.

    brownian: whether the solver is for that of an SDE. whole: the table of the whole schedule, whose sigmas a Brownian
    path spans; run: that of the rows that are run.
    """
    takes = run.noisy
    if asked.step_source == OWN or not takes.any():
        return None
    if brownian and asked.sde != "draws":
        spanned, levels = rounded_levels(whole, run)
        spanned = levels if asked.sde == "brownian_run" else spanned
        steps = [*zip(levels[:-1][takes].tolist(), levels[1:][takes].tolist(), strict=True)]
        ends = float(spanned[spanned > 0].min()), float(spanned.max())
        # the difference that A1111 adds to seeds of steps is none for these
        return [
            RowNoise(BrownianNoise(asked.numbers(i, asked.step_source, shape), *ends, steps).draws, takes)
            for i in range(len(asked.seeds))
        ]
    goes_on = asked.deltas is None and asked.step_source == asked.source
    deltas = asked.deltas or [0] * len(asked.seeds)
    return [
        RowNoise(partial(_draws, asked.numbers(i, asked.step_source, shape, delta), int(goes_on)), takes)
        for i, delta in enumerate(deltas)
    ]


def _draws(numbers: Numbers, skipped: int) -> Iterator[np.ndarray]:
    return islice(numbers.draws(), skipped, None)
