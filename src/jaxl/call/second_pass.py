"""The plan of a second pass, made of that of the first and of the options of the call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from jaxl.call import arguments
from jaxl.call.enlarging import Enlarging
from jaxl.call.hires import PREFIX, Hires, read_upscaler
from jaxl.call.options import DrawOptions
from jaxl.call.plan import Plan
from jaxl.call.region import Region
from jaxl.call.starts import OF_SECOND_PASS
from jaxl.call.styles import styled
from jaxl.diffusion.tables import scheduler_name
from jaxl.errors import InputError
from jaxl.run.model import Model
from jaxl.run.upscaler import Upscaler

# options that a first pass alone has
OF_FIRST = ("latents", "timesteps", "sigmas", "hires")
# options that a second pass may have of its own
OF_SECOND = ("prompt", "negative_prompt", "scheduler", "guidance_scale")
# options that a second pass has no use for, with what to do instead
WITHOUT: Mapping[str, str] = {
    "image": "a second pass is for images that begin as noise; enlarge the picture, and give it as `image` alone",
    "mask": "a second pass is for images that begin as noise; enlarge the picture, and give it with `mask` alone",
    "denoising_start": "a second pass begins anew; leave one of the two out",
    "denoising_end": "another model goes on at the same size; leave one of the two out",
}


def plan_second_pass(
    make: Callable[[Any, DrawOptions, int | None], Plan],
    model: Model,
    first: Plan,
    prompt: str | Sequence[str],
    options: DrawOptions,
    networks: Mapping[str, Upscaler],
) -> Plan:
    """Return the plan of the second pass that options ask for, with zeros in place of what the `first` one will leave.

    It is that of an image from a picture, with the same seed, of which all steps are run. `make` makes a plan of a
    prompt and options; `networks` are the upscalers by name. Raises InputError; PREFIX begins the names of what is
    wrong with the second pass alone.
    """
    hires: Any = options.get("hires")
    if not isinstance(hires, Hires):
        raise InputError("hires", hires, "give a `jaxl.Hires`")
    for name, remedy in WITHOUT.items():
        if options.get(name) is not None:
            raise InputError("hires", hires.facts, f"with `{name}`: {remedy}")
    upscaler, factor = read_upscaler(hires.upscaler, networks), model.vae.factor
    cover, kept = hires.sizes((first.bucket.width, first.bucket.height), factor)
    custom = any(options.get(name) is not None for name in ("timesteps", "sigmas"))
    asked = options.get("steps") or (first.steps if custom else first.preset.steps)  # some schedulers make others
    steps, most = hires.steps or asked, model.scheduler.noise.num_train_timesteps
    if (whole := int(steps / hires.strength)) > most:
        remedy = f"the last of {whole}, for that strength, and a schedule has {most}; give fewer, or raise the strength"
        raise InputError(f"{PREFIX}steps", steps, remedy)
    own: dict[str, Any] = {
        **{name: value for name, value in options.items() if name not in OF_FIRST and value is not None},
        "prompt": prompt,
        "image": np.zeros((1, kept[1] // factor, kept[0] // factor, model.vae.latent_channels), np.float32),
        "width": kept[0],
        "height": kept[1],
        "steps": steps,
        "strength": hires.strength,
    }
    if "regions" in own:
        own["regions"] = _in_shares(own["regions"], first.bucket.width, first.bucket.height)
    changed = {name: value for name in OF_SECOND if (value := getattr(hires, name)) not in (None, "")}
    for name, value in changed.items():
        own.pop(f"{name}_2", None)  # a text of its own is for both encoders
        prompts = 1 if isinstance(prompt, str) else len(prompt)
        texts = name.endswith("prompt")
        own[name] = arguments.prompts_per_image(f"{PREFIX}{name}", value, prompts, 1) if texts else value
    try:
        usual = scheduler_name(model.scheduler, first.preset.scheduler)
        ways = styled(own, usual, first.batch, model.scheduler.noise.kind)
        own["strength_steps"] = OF_SECOND_PASS.get(str(ways.get("strength_steps")), "whole")
        earlier = asked if ways.get("prompt_steps") == "calls" else first.steps
        plan = make(own.pop("prompt"), cast(DrawOptions, own), earlier)
    except InputError as error:
        if error.argument in ("width", "height"):
            name, value = ("scale", hires.scale) if hires.size is None else ("size", hires.size)
            raise InputError(f"{PREFIX}{name}", value, f"{error.argument} {error.value}: {error.remedy}") from None
        if error.argument not in {*changed, "steps", "strength"}:
            raise
        raise InputError(f"{PREFIX}{error.argument}", error.value, error.remedy) from None
    return replace(plan, enlarging=Enlarging(upscaler, cover, kept, factor))


def _in_shares(regions: Sequence[Any], width: int, height: int) -> list[Any]:
    """Return regions, or lists of them for each image, as those of an image of another size."""
    return [
        each.in_shares(width, height) if isinstance(each, Region) else _in_shares(each, width, height)
        for each in regions
    ]
