"""Pictures of two passes as A1111's web UI makes them, written here in PyTorch with diffusers' networks.

The samplers are k-diffusion's (https://github.com/crowsonkb/k-diffusion, `sampling.py`), in float32 as there.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from upscaler_files import golden, saved, weights_of

from jaxl.call.hires import Hires

PIECES = [("a", 1.0), ("red", 1.4), ("rocket, on a purple background", 1.0)]
PROMPT = "a (red:1.4) rocket, on a purple background"
SIZE, STEPS, SCALE, SEED = 64, 8, 6.0, 7
LARGER = 96
LATENT_MODES = {
    "Latent": ("bilinear", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
}


class WebUI:
    """The web UI with a model: its sigmas, its prompts, and its denoiser with guidance."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0)
        self.log_sigmas = ((1 - alphas) / alphas).sqrt().float().log()

    def sigmas(self, schedule: str | None, steps: int = STEPS) -> torch.Tensor:
        return self.uniform(steps) if schedule is None else self.spanning(schedule, steps)

    def uniform(self, steps: int) -> torch.Tensor:
        times = torch.linspace(999, 0, steps)
        low = times.floor().long()
        share = times - low
        logs = (1 - share) * self.log_sigmas[low] + share * self.log_sigmas[times.ceil().long()]
        return torch.cat([logs.exp(), torch.zeros(1)])

    def spanning(self, kind: str, steps: int) -> torch.Tensor:
        low, high = (float(self.log_sigmas[i].exp()) for i in (0, -1))
        if kind == "karras":
            ramp = torch.linspace(0, 1, steps)
            sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        else:
            sigmas = torch.linspace(np.log(high), np.log(low), steps).exp()
        return torch.cat([sigmas, torch.zeros(1)])

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        """The fractional timestep."""
        return torch.tensor(float(np.interp(float(sigma.log()), self.log_sigmas.numpy(), np.arange(1000.0))))

    def embedded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Each encoder's states with the weights of their words, whose mean is restored, and the pooled embedding."""
        states, pooled = [], None
        for tokenizer, encoder in (
            (self.pipe.tokenizer, self.pipe.text_encoder),
            (self.pipe.tokenizer_2, self.pipe.text_encoder_2),
        ):
            parts = [(tokenizer(text, add_special_tokens=False).input_ids, weight) for text, weight in PIECES]
            ids = [tokenizer.bos_token_id, *(i for own, _ in parts for i in own), tokenizer.eos_token_id]
            weights = [1.0, *(weight for own, weight in parts for _ in own), 1.0]
            length = tokenizer.model_max_length
            ids += [tokenizer.pad_token_id] * (length - len(ids))
            weights += [1.0] * (length - len(weights))
            told = encoder(torch.tensor([ids]), output_hidden_states=True)
            pooled = told[0]
            plain = told.hidden_states[-2]
            weighed = plain * torch.tensor(weights)[None, :, None]
            states.append(weighed * (plain.mean() / weighed.mean()))
        assert pooled is not None
        return torch.cat(states, -1), pooled

    def sample(self, sampler: Any, sigmas: torch.Tensor, size: int, start: torch.Tensor | None = None) -> torch.Tensor:
        """The latents of a picture, of noise and what it starts from."""
        context, pooled = self.embedded()
        # an empty negative prompt is zeros
        both = torch.cat([torch.zeros_like(context), context]), torch.cat([torch.zeros_like(pooled), pooled])
        told = {"text_embeds": both[1], "time_ids": torch.tensor([[size, size, 0, 0, size, size]] * 2).float()}

        def denoised(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            scaled = (x / (sigma**2 + 1).sqrt()).repeat(2, 1, 1, 1)
            out = self.pipe.unet(scaled, self.time(sigma), both[0], added_cond_kwargs=told).sample
            negative, positive = x - sigma * out
            return (negative + SCALE * (positive - negative))[None]

        generator = torch.Generator().manual_seed(SEED)
        x = torch.randn(1, 4, size // 8, size // 8, generator=generator) * sigmas[0]
        return sampler(denoised, x if start is None else start + x, sigmas, generator)

    def pixels(self, latents: torch.Tensor) -> np.ndarray:
        pixels = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample[0]
        pixels = (pixels / 2 + 0.5).clamp(0, 1)
        return (255 * pixels.permute(1, 2, 0).numpy()).astype(np.uint8)

    def larger(self, latents: torch.Tensor, upscaler: str | Path, size: int) -> torch.Tensor:
        """The latents of an enlarged picture: `StableDiffusionProcessingTxt2Img.sample_hr_pass`."""
        if isinstance(upscaler, str):
            mode, antialias = LATENT_MODES[upscaler]
            return torch.nn.functional.interpolate(latents, (size // 8, size // 8), mode=mode, antialias=antialias)
        small = torch.from_numpy(self.pixels(latents)).permute(2, 0, 1)[None] / 255
        made = compact(torch.load(upscaler), small).clamp(0, 1)[0].permute(1, 2, 0).numpy()
        image = Image.fromarray((255 * made).round().astype(np.uint8)).resize((size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.asarray(image).astype(np.float32)).permute(2, 0, 1)[None] / 255 * 2 - 1
        return self.pipe.vae.encode(pixels).latent_dist.mean * self.pipe.vae.config.scaling_factor


def compact(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Real-ESRGAN's compact network, four times as large: convolutions with PReLUs between them."""
    y, last = x, max(int(key.split(".")[1]) for key in weights)
    for i in range(0, last + 1, 2):
        y = torch.nn.functional.conv2d(y, weights[f"body.{i}.weight"], weights[f"body.{i}.bias"], padding=1)
        y = y if i == last else torch.nn.functional.prelu(y, weights[f"body.{i + 1}.weight"])
    return torch.nn.functional.pixel_shuffle(y, 4) + torch.nn.functional.interpolate(x, scale_factor=4.0)


def euler(denoised: Any, x: torch.Tensor, sigmas: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    for here, there in pairwise(sigmas):
        x = x + (x - denoised(x, here)) / here * (there - here)
    return x


def euler_ancestral(denoised: Any, x: torch.Tensor, sigmas: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    for here, there in pairwise(sigmas):
        up = min(there, (there**2 * (here**2 - there**2) / here**2) ** 0.5)
        down = (there**2 - up**2) ** 0.5
        x = x + (x - denoised(x, here)) / here * (down - here)
        if there > 0:
            x = x + torch.randn(x.shape, generator=generator) * up
    return x


def dpmpp_2m(denoised: Any, x: torch.Tensor, sigmas: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    old, before = None, None
    for here, there in pairwise(sigmas):
        estimate = denoised(x, here)
        step = here.log() - there.log()
        used = estimate
        if old is not None and there > 0:
            ratio = before / step
            used = (1 + 1 / (2 * ratio)) * estimate - 1 / (2 * ratio) * old
        x = there / here * x - (-step).expm1() * used
        old, before = estimate, step
    return x


@pytest.fixture(scope="module")
def webui(reference: Any) -> WebUI:
    return WebUI(reference)


def decibels(image: Any, wanted: np.ndarray) -> float:
    error = np.square(np.asarray(image).astype(np.float64) - wanted).mean()
    return 10 * np.log10(255**2 / max(error, 1e-10))


def test_second_passes(small: Any, webui: WebUI, tmp_path: Path) -> None:
    """At least 45 dB apart each, 55 in the median."""
    pipe, params = small
    network = saved(tmp_path / "x4.pth", weights_of(golden("compact_4x")[0]))
    pipe.add_upscaler("x4", network, tile=64)
    found = []
    try:
        for name, sampler, schedule, upscaler, strength, steps in (
            ("Euler", euler, None, "Latent", 0.7, 5),
            ("Euler a", euler_ancestral, None, "Latent (bicubic antialiased)", 0.6, 4),
            ("DPM++ 2M", dpmpp_2m, "karras", network, 0.4, 4),
        ):
            with torch.no_grad():
                first = webui.sample(sampler, webui.sigmas(schedule), SIZE)
                sigmas = webui.sigmas(schedule, int(steps / strength))[-steps - 1 :]
                start = webui.larger(first, upscaler, LARGER)
                wanted = webui.pixels(webui.sample(sampler, sigmas, LARGER, start))
            hires = Hires(scale=1.5, upscaler="x4" if upscaler is network else upscaler, strength=strength, steps=steps)
            asked = {"width": SIZE, "height": SIZE, "steps": STEPS, "guidance_scale": SCALE, "seed": SEED}
            asked |= {"scheduler": name, "style": "a1111", "noise": "torch", "negative_prompt": "", "hires": hires}
            found.append(decibels(pipe.generate(params, PROMPT, **asked).images[0], wanted))
    finally:
        pipe.remove_upscaler("x4")
    assert min(found) >= 45, found
    assert np.median(found) > 55, found
