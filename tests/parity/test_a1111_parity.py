"""A picture from prompt to bytes as A1111's web UI makes it, written here in PyTorch with diffusers' networks.

The samplers are k-diffusion's (https://github.com/crowsonkb/k-diffusion, `sampling.py`), in float32 as there.
"""

from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from pipelines import TINY

from jaxl.diffusion.brownian import BrownianNoise
from jaxl.diffusion.other_noise import Numbers

PIECES = [("a", 1.0), ("red", 1.4), ("rocket, on a purple background", 1.0)]
PROMPT = "a (red:1.4) rocket, on a purple background"
SIZE, STEPS, SCALE, SEED = 128, 8, 6.0, 7


class WebUI:
    """The web UI with a model: its sigmas, its prompts, and its denoiser with guidance."""

    def __init__(self) -> None:
        self.pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0)
        self.log_sigmas = ((1 - alphas) / alphas).sqrt().float().log()

    def uniform(self) -> torch.Tensor:
        times = torch.linspace(999, 0, STEPS)
        low = times.floor().long()
        share = times - low
        logs = (1 - share) * self.log_sigmas[low] + share * self.log_sigmas[times.ceil().long()]
        return torch.cat([logs.exp(), torch.zeros(1)])

    def spanning(self, kind: str) -> torch.Tensor:
        low, high = (float(self.log_sigmas[i].exp()) for i in (0, -1))
        if kind == "karras":
            ramp = torch.linspace(0, 1, STEPS)
            sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        else:
            sigmas = torch.linspace(np.log(high), np.log(low), STEPS).exp()
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

    def draw(self, sampler: Any, sigmas: torch.Tensor) -> np.ndarray:
        context, pooled = self.embedded()
        # an empty negative prompt is zeros
        both = torch.cat([torch.zeros_like(context), context]), torch.cat([torch.zeros_like(pooled), pooled])
        told = {"text_embeds": both[1], "time_ids": torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]] * 2).float()}

        def denoised(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            scaled = (x / (sigma**2 + 1).sqrt()).repeat(2, 1, 1, 1)
            out = self.pipe.unet(scaled, self.time(sigma), both[0], added_cond_kwargs=told).sample
            negative, positive = x - sigma * out
            return (negative + SCALE * (positive - negative))[None]

        generator = torch.Generator().manual_seed(SEED)
        x = torch.randn(1, 4, SIZE // 8, SIZE // 8, generator=generator) * sigmas[0]
        latents = sampler(denoised, x, sigmas, generator)
        pixels = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample[0]
        pixels = (pixels / 2 + 0.5).clamp(0, 1)
        return (255 * pixels.permute(1, 2, 0).numpy()).astype(np.uint8)


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


def dpmpp_2m_sde(denoised: Any, x: torch.Tensor, sigmas: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """With a Brownian path of the seed, which is compared with torchsde's elsewhere."""
    noise = iter(brownian(sigmas))
    old, before = None, None
    for here, there in pairwise(sigmas):
        estimate = denoised(x, here)
        if there == 0:
            return estimate
        step = here.log() - there.log()
        x = there / here * (-step).exp() * x - (-2 * step).expm1() * estimate
        if old is not None:
            x = x - 0.5 * (-2 * step).expm1() * (step / before) * (estimate - old)
        x = x + next(noise) * there * (-(-2 * step).expm1()).sqrt()
        old, before = estimate, step
    return x


def brownian(sigmas: torch.Tensor) -> list[torch.Tensor]:
    levels = sigmas[:-1].tolist()
    path = BrownianNoise(Numbers("torch", SEED, (SIZE // 8, SIZE // 8, 4)), levels[-1], levels[0], [*pairwise(levels)])
    return [torch.from_numpy(each).permute(2, 0, 1)[None] for each in path.draws()]


@pytest.fixture(scope="module")
def webui() -> WebUI:
    return WebUI()


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("Euler", euler, None),
        ("Euler a", euler_ancestral, None),
        ("DPM++ 2M", dpmpp_2m, "karras"),
        ("DPM++ 2M SDE", dpmpp_2m_sde, "exponential"),
    ],
)
def test_a_picture(tiny: Any, webui: WebUI, name: str, sampler: Any, schedule: str | None) -> None:
    """At least 45 dB apart, to which bytes that are rounded otherwise come; the sampler's schedule is "Automatic"."""
    pipe, params = tiny
    with torch.no_grad():
        wanted = webui.draw(sampler, webui.uniform() if schedule is None else webui.spanning(schedule))
    asked = {"width": SIZE, "height": SIZE, "steps": STEPS, "guidance_scale": SCALE, "seed": SEED, "scheduler": name}
    (image,) = pipe.generate(params, PROMPT, style="a1111", noise="torch", negative_prompt="", **asked).images
    error = np.square(np.asarray(image).astype(np.float64) - wanted).mean()
    decibels = 10 * np.log10(255**2 / max(error, 1e-10))
    assert decibels >= 45
