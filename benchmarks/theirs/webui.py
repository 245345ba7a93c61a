"""AUTOMATIC1111's web UI: https://github.com/AUTOMATIC1111/stable-diffusion-webui, as of version 1.10."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from programs import Asked, Program, Text, Tokens, drawn, weighed
from torch import Tensor

# the samplers that leave out the last sigma but one, and those that count a prompt's steps twice
DISCARDING = ("DPM2", "DPM2 a", "DPM++ 3M SDE")
COUNTING = ("DDIM", "DDIM CFG++", "PLMS")  # timesteps
TWICE = ("Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "Restart")
EDITED = re.compile(r"\[([^\[\]:|]*):([^\[\]:|]*):([\d.]+)\]")


class WebUI(Program):
    """It draws each image with a generator of its own, and tells the network fractional timesteps."""

    distilled = unit = False

    def sigmas(self, asked: Asked) -> Tensor:
        self.distilled = asked.sampler == "LCM"
        self.unit = asked.sampler in (*COUNTING, "UniPC")  # whose latents have unit variance
        if asked.sampler in COUNTING:
            return self.trained[self._timesteps(asked)].flip(0)
        if asked.sampler == "UniPC":
            return self._even(999, len(self._timesteps(asked)))
        n = asked.steps + (asked.sampler in DISCARDING)
        if asked.schedule == "beta":
            share = torch.tensor(_quantiles(np.linspace(1, 0, n)), dtype=torch.float32)
            sigmas = self.trained[0] + share * (self.trained[-1] - self.trained[0])
        elif asked.schedule == "kl_optimal":  # has no 0 at its end
            angles = torch.linspace(0, 1, n + 1) * self.trained[0].atan()
            return (angles + torch.linspace(1, 0, n + 1) * self.trained[-1].atan()).tan()
        elif asked.sampler == "LCM" and asked.schedule == "uniform":
            sigmas = self._lcm(n)
        else:
            sigmas = self.spanning(asked.schedule, n)
        whole = torch.cat([sigmas, torch.zeros(1)])
        return torch.cat([whole[:-2], whole[-1:]]) if asked.sampler in DISCARDING else whole

    def _timesteps(self, asked: Asked) -> Tensor:
        """Rising, of the samplers that count them."""
        return (torch.arange(0, 1000, 1000 // asked.steps) + 1).clamp(max=999)

    def _even(self, highest: float, steps: int) -> Tensor:
        """Even timesteps down to 0, interpolated between the logarithms of the signal's share."""
        times = torch.linspace(highest, 0, steps + 1)
        low, high = times.floor().long(), times.ceil().long()
        logs = -(1 + self.trained**2).log()
        return (-((1 - times % 1) * logs[low] + times % 1 * logs[high])).expm1().sqrt()

    def _lcm(self, n: int) -> Tensor:
        """Even places among every 20th timestep, interpolated between their sigmas."""
        places = torch.linspace(49, 0, n)
        low = places.floor().long()
        share = places - low
        logs = self.trained[19::20].log()
        return ((1 - share) * logs[low] + share * logs[places.ceil().long()]).exp()

    def denoiser(self, asked: Asked, picture: Tensor | None) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        if asked.sampler == "DDIM CFG++":
            asked = replace(asked, scale=asked.scale / 12.5)
        plain = super().denoiser(asked, picture)
        if asked.sampler != "LCM":
            return plain

        def consistent(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            time = 10 * self.time(sigma)
            kept, weight = 0.25 * x, time * (time**2 + 0.25).sqrt()
            guided, unguided = ((kept + weight * each) / (time**2 + 0.25) for each in plain(x, sigma))
            return guided, unguided

        return consistent

    def of_picture(self, asked: Asked, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        if asked.picture is None and asked.run is None:
            return sigmas, sigmas
        run = self._run(asked)
        if asked.sampler == "UniPC":
            return self._even(float(self._timesteps(asked)[run - 1]), run), sigmas
        return sigmas[-run if asked.sampler in COUNTING else asked.steps - run - 1 :], sigmas

    def _run(self, asked: Asked) -> int:
        return int(min(asked.strength, 0.999) * asked.steps) if asked.run is None else asked.run

    def noised(self, asked: Asked, latents: Tensor, run: Tensor) -> Tensor:
        if not self.unit:
            return super().noised(asked, latents, run)
        above = self.trained[self._timesteps(asked)[self._run(asked)]]
        unit = (latents + above * self.first_noise(asked)) / (1 + above**2).sqrt()
        return unit * (1 + run[0] ** 2).sqrt()

    def sampled(self, asked: Asked, picture: Tensor | None) -> Tensor:
        """With a second pass over what was drawn, if one is asked for."""
        latents = super().sampled(asked, picture)
        if asked.second is None:
            return latents
        (width, height), strength = asked.second
        larger = torch.nn.functional.interpolate(latents, (height // 8, width // 8), mode="bilinear")
        steps = int(asked.steps / min(strength, 0.999))
        again = replace(asked, size=(width, height), steps=steps, run=asked.steps - 1, second=None)
        return super().sampled(again, larger)

    def start_scale(self, sigmas: Tensor) -> Tensor:
        return (1 + sigmas[0] ** 2).sqrt() if self.unit else sigmas[0]

    def time(self, sigma: Tensor) -> Tensor:
        if self.distilled:  # every 20th timestep alone
            return 20.0 * (sigma.log() - self.trained[19::20].log()).abs().argmin() + 19
        return torch.tensor(float(np.interp(float(sigma.log()), self.logs.numpy(), np.arange(1000.0))))

    def texts(self, asked: Asked) -> Iterator[tuple[Text, Text]]:
        calls = asked.steps * (2 if asked.sampler in TWICE else 1)
        texts = {text: self._embedded(text) for text in {self._at(asked.prompt, call, calls) for call in range(calls)}}
        some = next(iter(texts.values()))
        # an empty negative prompt is zeros
        negative = self._embedded(asked.negative) if asked.negative else (some[0] * 0, some[1] * 0)
        call = 0
        while True:
            yield texts[self._at(asked.prompt, call, calls)], negative
            call += 1

    def _at(self, prompt: str, call: int, calls: int) -> str:
        """The text at a call, counted from 0: one that changes at step n has its old form up to call n."""

        def chosen(match: re.Match[str]) -> str:
            when = int(float(match[3]) * calls if "." in match[3] else float(match[3]))
            return match[1] if call <= when else match[2]

        return EDITED.sub(chosen, prompt)

    def _embedded(self, prompt: str) -> Text:
        chunks = [self._chunks(tokenizer, prompt) for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2)]
        states, all_pooled = [], []
        for plain, weights, pooled in self.states(chunks, 0):
            each = [
                chunk * weight * (chunk.mean() / (chunk * weight).mean())
                for chunk, weight in zip(plain, weights, strict=True)
            ]
            all_pooled.append(pooled[:1])
            states.append(torch.cat(each)[None])
        return torch.cat(states, -1), all_pooled[-1]

    def _chunks(self, tokenizer: Any, prompt: str) -> Sequence[Tokens]:
        comma = tokenizer(",", add_special_tokens=False).input_ids[0]
        chunks: list[list[tuple[int, float]]] = []
        for part in re.split(r"\s*\bBREAK\b\s*", prompt):
            now: list[tuple[int, float]] = []
            for text, weight in weighed(part):
                for token in tokenizer(text, add_special_tokens=False).input_ids:
                    if len(now) == 75 and token != comma:
                        after = next((n for n in range(21) if now[74 - n][0] == comma), 0)
                        chunks.append(now[: 75 - after])
                        now = now[75 - after :]
                    elif len(now) == 75:
                        chunks.append(now)
                        now = []
                    now.append((token, weight))
            chunks.append(now)
        return chunks

    def first_noise(self, asked: Asked) -> Tensor:
        seed, other, (_, share) = asked.seed, asked.variation[0], asked.variation
        seed, other = (seed, other + asked.place) if share else (seed + asked.place, other)
        shape = asked.shape
        if asked.resized_from:
            shape = asked.resized_from[1] // 8, asked.resized_from[0] // 8, 4
        noise = next(drawn(asked.source, seed, shape))
        if share:
            noise = _between(noise[0], next(drawn(asked.source, other, shape))[0], share)[None]
        if not asked.resized_from:
            return noise
        whole = next(drawn(asked.source, seed, asked.shape))
        (height, width), (h, w) = whole.shape[2:], noise.shape[2:]
        dy, dx = (height - h) // 2, (width - w) // 2
        into = slice(max(dy, 0), max(dy, 0) + min(h, height)), slice(max(dx, 0), max(dx, 0) + min(w, width))
        of = slice(max(-dy, 0), max(-dy, 0) + min(h, height)), slice(max(-dx, 0), max(-dx, 0) + min(w, width))
        whole[:, :, *into] = noise[:, :, *of]
        return whole

    def normal(self, asked: Asked) -> Callable[[], Tensor]:
        seed = asked.seed + (0 if asked.variation[1] else asked.place)
        draws = drawn(asked.source, seed + (asked.ensd or 0), asked.shape)
        if asked.ensd is None:
            next(draws)
        return lambda: next(draws)

    def path(self, asked: Asked, sigmas: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return self.walk(asked.source, asked.seed + asked.place, asked.shape, sigmas)


class Forge(WebUI):
    """https://github.com/lllyasviel/stable-diffusion-webui-forge and its kin: the network is told whole timesteps."""

    def logarithms(self, sigmas: Tensor) -> Tensor:
        return sigmas.log().float()

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma.log() - self.logs).abs().argmin().float()


def _between(one: Tensor, other: Tensor, share: float) -> Tensor:
    """The way over the sphere from one noise [C, H, W] to another, by one angle for each channel and column."""
    units = [each / each.norm(dim=1, keepdim=True) for each in (one, other)]
    cosines = (units[0] * units[1]).sum(1, keepdim=True)
    if cosines.mean() > 0.9995:
        return one * share + other * (1 - share)
    angle = cosines.acos()
    return (((1 - share) * angle).sin() * one + (share * angle).sin() * other) / angle.sin()


def _quantiles(shares: np.ndarray) -> np.ndarray:
    from scipy.special import betaincinv

    return betaincinv(0.6, 0.6, shares)
