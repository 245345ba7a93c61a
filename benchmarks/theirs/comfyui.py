"""ComfyUI (https://github.com/comfyanonymous/ComfyUI): its nodes for texts, KSampler and VAEDecode."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from programs import Asked, Program, Text, Tokens, drawn, weighed
from torch import Tensor

DISCARDING = ("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2")


class ComfyUI(Program):
    """It draws a batch with one generator, the noise of steps on a GPU, and tells the network whole timesteps."""

    def sigmas(self, asked: Asked) -> Tensor:
        n = asked.steps
        if asked.picture is not None and asked.strength < 0.9999:
            n = int(asked.steps / asked.strength)
        n += asked.sampler in DISCARDING
        if asked.schedule == "beta":
            from scipy.special import betaincinv

            times = np.rint(betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, n, endpoint=False)) * 999).astype(int)
            sigmas = self.trained[[time for i, time in enumerate(times) if i == 0 or time != times[i - 1]]]
        elif asked.schedule == "kl_optimal":
            ramp = torch.linspace(0, 1, n)
            sigmas = (ramp * self.trained[0].atan() + (1 - ramp) * self.trained[-1].atan()).tan()
        elif asked.schedule == "ddim_uniform":
            sigmas = self.trained[1 :: max(1000 // n, 1)].flip(0)
        else:
            sigmas = self.spanning({"normal": "uniform"}.get(asked.schedule, asked.schedule), n)
        whole = torch.cat([sigmas, torch.zeros(1)])
        return torch.cat([whole[:-2], whole[-1:]]) if asked.sampler in DISCARDING else whole

    def of_picture(self, asked: Asked, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        run = sigmas if asked.picture is None else sigmas[-asked.steps - 1 :]
        return run, run

    def start_scale(self, sigmas: Tensor) -> Tensor:
        highest = sigmas[0] >= self.trained[-1] * (1 - 1e-5)
        return (sigmas[0] ** 2 + 1).sqrt() if highest else sigmas[0]

    def time(self, sigma: Tensor) -> Tensor:
        return (sigma.log() - self.trained.log()).abs().argmin().float()

    def texts(self, asked: Asked) -> Iterator[tuple[Text, Text]]:
        positive, negative = (self._embedded(text, asked.clip_skip) for text in (asked.prompt, asked.negative))
        while True:
            yield positive, negative

    def _embedded(self, prompt: str, skip: int) -> Text:
        chunks = [self._chunks(tokenizer, prompt) for tokenizer in (self.pipe.tokenizer, self.pipe.tokenizer_2)]
        states, all_pooled = [], []
        empty = [each for each, _, _ in self.states([[[]], [[]]], skip)]
        for (plain, weights, pooled), nothing in zip(self.states(chunks, skip), empty, strict=True):
            all_pooled.append(pooled[:1])
            states.append((nothing + (plain - nothing) * weights).flatten(0, 1)[None])
        return torch.cat(states, -1), all_pooled[-1]

    def _chunks(self, tokenizer: Any, prompt: str) -> list[Tokens]:
        """Words are not split, if they are short."""
        chunks: list[list[tuple[int, float]]] = [[]]
        for text, weight in weighed(prompt, braces="(", replaces=True):
            for word in re.findall(r"\S+", text):
                tokens = [(token, weight) for token in tokenizer(word, add_special_tokens=False).input_ids]
                if len(chunks[-1]) + len(tokens) > 75:
                    chunks.append([])
                chunks[-1] += tokens
        return [*chunks]

    def first_noise(self, asked: Asked) -> Tensor:
        return next(drawn("CPU", asked.seed, asked.shape, asked.place, asked.of))

    def normal(self, asked: Asked) -> Callable[[], Tensor]:
        draws = drawn("GPU", asked.seed, asked.shape, asked.place, asked.of)
        return lambda: next(draws)

    def path(self, asked: Asked, sigmas: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return self.walk("CPU", asked.seed, asked.shape, sigmas, place=asked.place, of=asked.of)
