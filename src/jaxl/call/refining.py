"""The plan of a refiner: a second model that goes on where the plan of another one ends, and draws the last steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np

from jaxl.call import arguments
from jaxl.call.options import DrawOptions, Start, part
from jaxl.call.plan import OTHER_PROMPTS, Plan
from jaxl.call.starts import lengthened, runs_whole
from jaxl.errors import InputError
from jaxl.run.model import Model

# options that a base model alone has, as it has begun already
OF_BASE = ("image", "strength", "width", "height", "latents")
# options that a refiner cannot go on with, and why
WITHOUT: Mapping[str, str] = {
    "mask": "it would change what the mask keeps",
    "controls": "it follows no ControlNets",
    "image_prompts": "it reads no pictures",
}

Make = Callable[[Any, DrawOptions, int | None], Plan]


def check_refiner(base: Model, refiner: Model, options: DrawOptions) -> None:
    """Raise InputError for a model that cannot go on with the latents of another, and for what it would not heed."""
    noises = [model.scheduler.noise.kind for model in (base, refiner)]
    latents = [(model.vae.latent_channels, model.vae.factor) for model in (base, refiner)]
    for what, problem in (
        ("a model that repaints pictures", refiner.inpaints),
        ("of another family, with latents of its own", latents[0] != latents[1]),
        (f"of another family, with noise by {noises[1]}, not by {noises[0]}", len({*noises}) > 1),
        ("by EDM, without timesteps to hand over at", "edm" in noises),
    ):
        if problem:
            raise InputError("refiner", what, "give a refiner of SDXL, or a model like the first one")
    for name, problem in WITHOUT.items():
        given = options.get(name)
        if given is not None and not (isinstance(given, list) and not given):
            raise InputError(name, "with a refiner", f"{problem}; leave one of the two out")


def plan_refined(
    make: Make,
    make_refining: Make,
    model: Model,
    at: float,
    prompt: Any,
    options: DrawOptions,
    earlier: int | None = None,
) -> Plan:
    """Return the plan of a base `model` up to the share `at` of the noise levels, with a refiner's as its second.

    make, make_refining: make plans of a prompt, options and the steps of an earlier pass, for each of the models.
    Raises InputError.
    """
    at = arguments.share("refiner_at", at)
    if (end := options.get("denoising_end")) is not None:
        raise InputError("denoising_end", end, "the refiner goes on there; leave it out, or the refiner")
    with _in_words_of(at, "raise"):
        base = make(prompt, {**options, "denoising_end": at}, earlier)
    shape = replace(base.bucket, batch=base.batch).latents_shape(model)
    with _in_words_of(at, "lower"):
        refining = _plan_refining(make_refining, model, at, base, shape, prompt, options, earlier)
    return replace(base, second=refining)


@contextmanager
def _in_words_of(at: float, way: str) -> Iterator[None]:
    """Say of what is wrong with the ends of a plan that it is `refiner_at`, and which `way` to move that."""
    try:
        yield
    except InputError as error:
        if error.argument not in ("denoising_end", "denoising_start"):
            raise
        remedy = f"leaves one of the two models none of the steps to run; {way} it, or take more steps"
        raise InputError("refiner_at", at, remedy) from None


def _plan_refining(
    make: Make,
    model: Model,
    at: float,
    base: Plan,
    shape: tuple[int, ...],
    prompt: Any,
    options: DrawOptions,
    earlier: int | None,
) -> Plan:
    """Return the plan of the last steps, with zeros in place of the latents that `base` will leave."""
    each, batch = options.get("num_images", 1), base.batch
    texts: dict[str, str | Sequence[str]] = {"prompt": prompt}
    texts |= {name: text for name in OTHER_PROMPTS if (text := options.get(name)) is not None}
    own = {name: arguments.prompts_per_image(name, text, batch // each, each) for name, text in texts.items()}
    kept: dict[str, Any] = {name: value for name, value in options.items() if name not in OF_BASE}
    counted, steps = options.get("strength_steps", "part"), options.get("steps")
    if runs_whole(counted):  # more than were asked for, of which the last ones are run
        kept["steps"] = base.steps if steps is None else lengthened(steps, part(options, Start), model, counted)
    kept |= own | {"image": np.zeros(shape, np.float32), "denoising_start": at, "num_images": 1}
    return replace(make(kept.pop("prompt"), cast(DrawOptions, kept), earlier), refines=True)
