"""ComfyUI with its node PerpNegGuider, where the negative prompt is perpendicular (`comfy_extras/nodes_perpneg.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from comfyui import ComfyUI
from programs import Asked
from torch import Tensor


class PerpNegGuider(ComfyUI):
    """It takes an encoded empty text; without `neg_scale` it is the usual guider."""

    def denoiser(self, asked: Asked, picture: Tensor | None) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        if not asked.neg_scale:
            return super().denoiser(asked, picture)
        # one text's estimate is the guided one with a scale of 1
        alone, texts = super().denoiser, (asked.prompt, asked.negative, "")
        positive, negative, empty = (alone(replace(asked, prompt=text, scale=1.0), picture) for text in texts)

        def estimates(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            nothing, _ = empty(x, sigma)
            one, other = (each(x, sigma)[0] - nothing for each in (positive, negative))
            apart = other - (other * one).sum() / one.norm() ** 2 * one
            return nothing + asked.scale * (one - asked.neg_scale * apart), nothing + other

        return estimates
