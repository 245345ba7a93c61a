"""AUTOMATIC1111's web UI and ComfyUI as far as they make a picture, in PyTorch with the networks of diffusers.

Both draw with one text, one picture or none, and one sampler. What a seed stands for on a GPU, and a Brownian path, are
jaxl's, which `tests/diffusion/test_other_noise.py` compares with what PyTorch and torchsde print.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from samplers import SAMPLERS, Run, karras
from torch import Tensor

from jaxl.diffusion.brownian import BrownianPath
from jaxl.diffusion.other_noise import A1111_SOURCES, Numbers

Tokens = Sequence[tuple[int, float]]  # ids with weights
Text = tuple[Tensor, Tensor]  # the states [1, T, D] and the pooled embedding [1, P]


@dataclass(frozen=True)
class Asked:
    """What people choose in either program, by its own names of samplers and schedules.

    `source` draws the noise: "CPU", "GPU" or "NV". The picture is `place` of a batch of `of`. `clip_skip` is the number
    of layers that are left out of SDXL's usual ones. Where a picture is given, `mask` is white where it is drawn anew,
    and `run` is the number of steps that A1111 counts, if that is not the share `strength` of them. A `second` pass has
    a size and a strength. A `neg_scale` above 0 is that of a perpendicular negative prompt.
    """

    prompt: str = "a red rocket, on a purple background"
    negative: str = ""
    sampler: str = "Euler"
    schedule: str = "uniform"
    steps: int = 8
    scale: float = 6.0
    seed: int = 7
    size: tuple[int, int] = (128, 128)
    eta: float = 1.0
    source: str = "CPU"
    picture: Image.Image | None = None
    strength: float = 1.0
    mask: Image.Image | None = None
    run: int | None = None
    second: tuple[tuple[int, int], float] | None = None
    variation: tuple[int, float] = (0, 0.0)
    resized_from: tuple[int, int] | None = None
    ensd: int | None = None
    clip_skip: int = 0
    neg_scale: float = 0.0
    place: int = 0
    of: int = 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the latents, as jaxl has them: height, width, channels."""
        return self.size[1] // 8, self.size[0] // 8, 4


class Program(ABC):
    """What both programs have in common: a model, its sigmas, its denoiser with guidance, and pixels that are cut."""

    def __init__(self, pipe: Any):
        self.pipe = pipe
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, 0)
        sigmas = ((1 - alphas) / alphas).sqrt()
        self.trained, self.logs = sigmas.float(), self.logarithms(sigmas)

    def draw(self, asked: Asked) -> np.ndarray:
        """Return the picture, uint8 [height, width, 3]."""
        with torch.no_grad():
            latents = self.sampled(asked, None if asked.picture is None else self.encoded(asked))
            pixels = self.pipe.vae.decode(latents / self.pipe.vae.config.scaling_factor).sample[0]
            return (255 * (pixels / 2 + 0.5).clamp(0, 1)).permute(1, 2, 0).numpy().astype(np.uint8)

    def sampled(self, asked: Asked, picture: Tensor | None) -> Tensor:
        """Return the latents that are drawn, from a picture's or from noise alone."""
        run, whole = self.of_picture(asked, self.sigmas(asked))
        x = self.start_scale(run) * self.first_noise(asked)
        if picture is not None:
            x = self.noised(asked, picture, run)
        made = Run(self.denoiser(asked, picture), x, run, self.normal(asked), self.path(asked, whole), asked.eta)
        return SAMPLERS[asked.sampler](made)

    def logarithms(self, sigmas: Tensor) -> Tensor:
        """Return those of the trained sigmas [T], float64, by which timesteps are found."""
        return sigmas.float().log()

    def noised(self, asked: Asked, latents: Tensor, run: Tensor) -> Tensor:
        return latents + run[0] * self.first_noise(asked)

    def encoded(self, asked: Asked) -> Tensor:
        pixels = torch.from_numpy(np.asarray(asked.picture).astype(np.float32) / 255).permute(2, 0, 1)[None]
        return self.pipe.vae.encode(2 * pixels - 1).latent_dist.mode() * self.pipe.vae.config.scaling_factor

    def denoiser(self, asked: Asked, picture: Tensor | None) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return the guided and the unguided estimate, whose texts may change from call to call."""
        texts = self.texts(asked)
        width, height = asked.size
        sizes = torch.tensor([[height, width, 0, 0, height, width]]).float()

        def evaluated(x: Tensor, sigma: Tensor, text: Text) -> Tensor:
            told = {"text_embeds": text[1], "time_ids": sizes}
            scaled = x / (sigma**2 + 1).sqrt()
            return x - sigma * self.pipe.unet(scaled, self.time(sigma), text[0], added_cond_kwargs=told).sample

        def estimates(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            positive, negative = next(texts)
            one, other = (evaluated(x, sigma, text) for text in (positive, negative))
            return other + asked.scale * (one - other), other

        return estimates

    def interpolated(self, times: Tensor) -> Tensor:
        """Return the sigmas of fractional timesteps, by their logarithms."""
        low = times.floor().long()
        share = times - low
        return ((1 - share) * self.logs[low] + share * self.logs[times.ceil().long()]).exp()

    def spanning(self, kind: str, n: int) -> Tensor:
        """Return the sigmas of the schedules that both programs have, without the 0 at the end."""
        highest, lowest = self.trained[-1], self.trained[0]
        if kind == "karras":
            return karras(highest, lowest, n)
        if kind == "exponential":
            return torch.linspace(highest.log(), lowest.log(), n).exp()
        if kind == "sgm_uniform":
            return self.interpolated(torch.linspace(999, 0, n + 1)[:-1])
        if kind == "simple":
            return torch.stack([self.trained[-1 - int(i * 1000 / n)] for i in range(n)])
        if kind == "uniform":
            return self.interpolated(torch.linspace(999, 0, n))
        raise ValueError(kind)

    def states(self, chunks: Sequence[Sequence[Tokens]], skip: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield of each encoder the states [chunks, T, D] of ids and weights, these weights, and the pooled embedding.

        `chunks` are those of each tokenizer.
        """
        pipe = self.pipe
        for tokenizer, encoder, own in (
            (pipe.tokenizer, pipe.text_encoder, chunks[0]),
            (pipe.tokenizer_2, pipe.text_encoder_2, chunks[1]),
        ):
            length = tokenizer.model_max_length
            ids, weights = [], []
            for each in own:
                row = [tokenizer.bos_token_id, *(token for token, _ in each), tokenizer.eos_token_id]
                ids.append(row + [tokenizer.pad_token_id] * (length - len(row)))
                weights.append([1.0, *(weight for _, weight in each), *[1.0] * (length - len(each) - 1)])
            told = encoder(torch.tensor(ids), output_hidden_states=True)
            yield told.hidden_states[-2 - skip], torch.tensor(weights)[:, :, None], told[0]

    def walk(self, source: str, seed: int, shape: tuple[int, int, int], sigmas: Tensor, **batch: int) -> Any:
        """Return the unit increments of a Brownian path over all these sigmas."""
        levels = sigmas[sigmas > 0]
        path = BrownianPath(Numbers(A1111_SOURCES[source], seed, shape, **batch), float(levels[-1]), float(levels[0]))
        height, width, channels = shape

        def increment(here: Tensor, there: Tensor) -> Tensor:
            way = torch.from_numpy(path(float(there)) - path(float(here)))
            return (way / (here - there).sqrt()).reshape(1, channels, height, width)

        return increment

    @abstractmethod
    def sigmas(self, asked: Asked) -> Tensor:
        """Return the sigmas of all steps, and 0."""

    @abstractmethod
    def of_picture(self, asked: Asked, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sigmas that are run, and those that a Brownian path spans."""

    @abstractmethod
    def start_scale(self, sigmas: Tensor) -> Tensor:
        """Return what unit noise is multiplied by."""

    @abstractmethod
    def time(self, sigma: Tensor) -> Tensor:
        """Return the timestep that the network is told of a sigma."""

    @abstractmethod
    def texts(self, asked: Asked) -> Iterator[tuple[Text, Text]]:
        """Yield the positive and the negative text of each call of the network."""

    @abstractmethod
    def first_noise(self, asked: Asked) -> Tensor:
        """Return unit noise [1, 4, h, w]."""

    @abstractmethod
    def normal(self, asked: Asked) -> Callable[[], Tensor]:
        """Return what draws the noise of steps."""

    @abstractmethod
    def path(self, asked: Asked, sigmas: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return what draws the noise of an SDE's steps."""


def drawn(source: str, seed: int, shape: tuple[int, int, int], place: int = 0, of: int = 1) -> Iterator[Tensor]:
    """Yield the draws [1, C, H, W] of a generator, for an image of a batch; PyTorch itself draws for a CPU."""
    height, width, channels = shape
    if source == "CPU":
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield torch.randn(of, channels, height, width, generator=generator)[place : place + 1]
    for each in Numbers(A1111_SOURCES[source], seed, shape, place, of).draws():
        yield torch.from_numpy(each).permute(2, 0, 1)[None]


def weighed(text: str, weight: float = 1.0, braces: str = "([", replaces: bool = False) -> list[tuple[str, float]]:
    """Return the pieces of a prompt with their weights: `(x)` times 1.1, `[x]` divided by it, `(x:1.3)`.

    `braces` are those that mean this; a weight that is given multiplies those around it, or replaces them.
    """
    pieces, plain, i = [], "", 0
    while i < len(text):
        if text[i] not in braces:
            plain, i = plain + text[i], i + 1
            continue
        end, depth = i, 0
        while True:
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(text[end], 0)
            if depth == 0:
                break
            end += 1
        given = re.fullmatch(r"(.*):\s*([\d.]+)\s*", text[i + 1 : end], re.DOTALL) if text[i] == "(" else None
        inner, factor = (
            (given[1], float(given[2])) if given else (text[i + 1 : end], 1.1 if text[i] == "(" else 1 / 1.1)
        )
        within = factor if given and replaces else factor * weight
        pieces += [(plain, weight), *weighed(inner, within, braces, replaces)]
        plain, i = "", end + 1
    return [(each, own) for each, own in [*pieces, (plain, weight)] if each]
