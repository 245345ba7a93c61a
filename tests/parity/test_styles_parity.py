"""Pictures from prompt to bytes beside those of A1111's web UI and of ComfyUI, some settings of `benchmarks/theirs`."""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from comfyui import ComfyUI
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


def test_a_graph(tiny: Any, networks: Any) -> None:
    """ComfyUI's perpendicular negative prompt, from its graph to its picture."""
    asked = Asked(sampler="euler", schedule="normal", negative="a rocket, blurry", neg_scale=0.8, steps=4)
    texts = {"6": asked.prompt, "7": asked.negative, "10": ""}
    guider = {"cfg": asked.scale, "neg_scale": asked.neg_scale, "model": ["4", 0], "empty_conditioning": ["10", 0]}
    levels = {"scheduler": asked.schedule, "steps": asked.steps, "denoise": 1.0, "model": ["4", 0]}
    custom = {"noise": "12", "guider": "13", "sampler": "14", "sigmas": "11", "latent_image": "5"}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "3": ("SamplerCustomAdvanced", {name: [id, 0] for name, id in custom.items()}),
        "4": ("CheckpointLoaderSimple", {"ckpt_name": "tiny.safetensors"}),
        "5": ("EmptyLatentImage", {"width": asked.size[0], "height": asked.size[1], "batch_size": 1}),
        **{id: ("CLIPTextEncode", {"text": text, "clip": ["4", 1]}) for id, text in texts.items()},
        "8": ("VAEDecode", {"samples": ["3", 0], "vae": ["4", 2]}),
        "9": ("SaveImage", {"images": ["8", 0]}),
        "11": ("BasicScheduler", levels),
        "12": ("RandomNoise", {"noise_seed": asked.seed}),
        "13": ("PerpNegGuider", {**guider, "positive": ["6", 0], "negative": ["7", 0]}),
        "14": ("KSamplerSelect", {"sampler_name": asked.sampler}),
    }
    graph = {id: {"class_type": kind, "inputs": inputs} for id, (kind, inputs) in nodes.items()}
    settings = jaxl.settings_of(png({"prompt": graph}))
    assert not settings.missing
    pipe, params = tiny
    (image,) = pipe.generate(params, **settings.arguments).images
    assert decibels(ComfyUI(networks).draw(asked), np.asarray(image)) >= 60
