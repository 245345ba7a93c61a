"""Regions beside an attention processor in PyTorch that does the same in diffusers' pipeline."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from pipelines import latents_of
from torch.nn import functional
from torch_weights import relative_error

from jaxl import Region

SIDE = 64
NOISE = np.random.default_rng(7).standard_normal((3, 8, 8, 4), np.float32)
SLANTED = np.tril(np.full((SIDE, SIDE), 255, np.uint8))
NEGATIVE = "blurry"
LEFT = Region("a red apple, flat style", box=(0, 0, 0.55, 1), strength=0.8)
BOTTOM = Region("a rocket BREAK on a purple background", box=(8, 32, 64, 64), negative_prompt="a cat")
CORNER = Region("a castle", mask=Image.fromarray(SLANTED), strength=0.6)
# their areas as pixels
AREAS = {LEFT: np.s_[:, :35], BOTTOM: np.s_[32:, 8:], CORNER: np.tril_indices(SIDE)}


class Regional:
    """Cross-attention to several texts, each with a share of each place; [branch][region] -> a text and its area."""

    def __init__(self, texts: list[list[torch.Tensor]], areas: list[torch.Tensor]):
        self.texts, self.areas = texts, areas

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **_: Any) -> Any:
        places = hidden_states.shape[1]

        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        def read(query: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            key, value = heads(attn.to_k(text)), heads(attn.to_v(text))
            return functional.scaled_dot_product_attention(heads(query), key, value).transpose(1, 2).flatten(2)

        query = attn.to_q(hidden_states)
        if encoder_hidden_states is None:
            return attn.to_out[0](read(query, hidden_states))
        side = int(places**0.5)
        shares = [functional.adaptive_avg_pool2d(area[None], side).reshape(1, -1, 1) for area in self.areas]
        branches = []
        for branch, own in enumerate(self.texts):
            q, text = query[branch : branch + 1], encoder_hidden_states[branch : branch + 1]
            y = (1 - sum(shares)) * read(q, text)
            branches.append(y + sum(share * read(q, one) for share, one in zip(shares, own, strict=True)))
        return attn.to_out[0](torch.cat(branches))


def shares(regions: list[Region]) -> list[torch.Tensor]:
    found = torch.zeros(len(regions), SIDE, SIDE)
    for area, region in zip(found, regions, strict=True):
        area[AREAS[region]] = region.strength
    return list(found / found.sum(0).clamp(min=1.0))


def test_latents(small: Any, reference: Any, compilations: Any) -> None:
    """Images of one batch with three regions that overlap, with one, and with none; texts of one and two chunks.

    Other regions compile nothing, and those of others change no image.
    """
    pipe, params = small

    def encoded(text: str) -> torch.Tensor:
        chunks = [
            reference.encode_prompt(chunk, device=torch.device("cpu"), do_classifier_free_guidance=False)[0]
            for chunk in text.split(" BREAK ")
        ]
        return torch.cat(chunks, 1)

    prompts, regions = ["a dog", "a llama", "a cat"], [[], [LEFT, BOTTOM, CORNER], [BOTTOM]]
    how: dict[str, Any] = {"negative_prompt": NEGATIVE, "guidance_scale": 8.0, "width": SIDE, "height": SIDE}
    ours: dict[str, Any] = {"latents": NOISE, "steps": 4, "scheduler": "euler", "output": "latents"}
    got = pipe.generate(params, prompts, regions=regions, **how, **ours).latents
    with compilations() as seen:
        other = pipe.generate(params, prompts, regions=[regions[1], *regions[1:]], **how, **ours).latents
    assert seen == []
    np.testing.assert_array_equal(other[1:], got[1:])
    assert relative_error(other[:1], got[:1]) > 0.01
    for i, own in enumerate(regions):
        if own:
            with torch.no_grad():
                negative = [encoded(NEGATIVE if each.negative_prompt is None else each.negative_prompt) for each in own]
                texts = [negative, [encoded(each.prompt) for each in own]]
            reference.unet.set_attn_processor(Regional(texts, shares(own)))
        wanted = latents_of(
            reference,
            prompt=prompts[i],
            **how,
            num_inference_steps=4,
            latents=torch.from_numpy(NOISE[i : i + 1]).permute(0, 3, 1, 2),
        )
        assert relative_error(got[i : i + 1], wanted) < 2e-4, own
