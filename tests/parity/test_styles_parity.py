"""Pictures from prompt to bytes beside those of A1111's web UI and of ComfyUI, some settings of `benchmarks/theirs`."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pictures import STYLES, decibels, pictures
from pipelines import TINY
from programs import Asked
from webui import WebUI
from written_pictures import png

import jaxl

NAMES = {
    "a1111": ("DPM++ SDE, Karras", "LCM", "a prompt that changes"),
    "comfyui": ("euler, beta", "a weight within another"),
}


@pytest.fixture(scope="module")
def networks() -> Any:
    return diffusers.StableDiffusionXLPipeline.from_pretrained(TINY, torch_dtype=torch.float32)


@pytest.mark.parametrize(("style", "name"), [(style, name) for style, names in NAMES.items() for name in names])
def test_a_picture(tiny: Any, networks: Any, style: str, name: str) -> None:
    """At least 60 dB apart, where bytes that are rounded otherwise are at 51."""
    program, settings = STYLES[style]
    (setting,) = (each for each in settings if each.name == name)
    assert decibels(*pictures(style, program(networks), setting, *tiny)) >= 60


def test_a_file(tiny: Any, networks: Any) -> None:
    """What the text of a file says is enough for its picture."""
    pipe, params = tiny
    asked = Asked(sampler="DPM++ SDE", schedule="karras", source="NV", prompt="a (red:1.3) rocket", steps=6)
    text = (
        f"{asked.prompt}\nSteps: 6, Sampler: DPM++ SDE, Schedule type: Karras, CFG scale: 6, Seed: 7, Size: 128x128, "
    )
    settings = jaxl.settings_of(png({"parameters": text + "Clip skip: 2, RNG: NV, Version: v1.10.1"}))
    assert not settings.missing
    (image,) = pipe.generate(params, **settings.arguments).images
    assert decibels(WebUI(networks).draw(asked), np.asarray(image)) >= 60
