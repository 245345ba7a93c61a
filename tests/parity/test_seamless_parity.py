"""Pictures without seams beside diffusers with circular padding."""

from typing import Any

import numpy as np
import torch
from torch_weights import relative_error

from jaxl.run.bucket import Bucket

NOISE = np.random.default_rng(3).standard_normal((1, 8, 8, 4), np.float32)
CALL: dict[str, Any] = {"prompt": "a rocket", "guidance_scale": 4.0, "width": 64, "height": 64}


def test_latents_and_pixels(small: Any, reference: Any) -> None:
    for network in (reference.unet, reference.vae):
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.padding_mode = "circular"
                layer._reversed_padding_repeated_twice = [side for side in layer.padding[::-1] for _ in range(2)]
    pipe, params = small
    assert Bucket(1, 8, 8, guided=True, seamless="x").seen(pipe.model).kernels.wrap == (False, True)  # down, across
    got = pipe.generate(params, **CALL, seamless="xy", steps=3, scheduler="euler", latents=NOISE, output="numpy")
    with torch.no_grad():
        noise = torch.from_numpy(NOISE).permute(0, 3, 1, 2)
        wanted = reference(**CALL, num_inference_steps=3, latents=noise, output_type="latent").images
        pixels = reference.vae.decode(wanted / reference.vae.config.scaling_factor).sample / 2 + 0.5
    assert relative_error(got.latents, wanted.permute(0, 2, 3, 1)) < 2e-4
    assert np.abs(got.images - pixels.clamp(0, 1).permute(0, 2, 3, 1).numpy()).max() < 1e-3
