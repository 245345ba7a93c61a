"""Train both text encoders and the UNet together, and save the whole pipeline.

    python train_denoiser.py --data DIR --tokenizers DIR --vae DIR --out DIR --steps N [--init DIR]

Latents of random scenes live in a ring on the device; now and then fresh ones replace the oldest. What is saved is the
weights' exponential moving average.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from captions import random_caption
from drawing import draw_scenes, load_sprites
from networks import (
    LATENT_CHANNELS,
    LATENT_SIZE,
    Denoiser,
    Vae,
    load_denoiser,
    load_tokenizers,
    load_vae,
    new_scheduler,
    save_checkpoint,
)
from optimisation import Optimiser, mixed_precision, pick_device
from scenes import SceneSampler, load_concepts

EMPTY_SHARE = 0.06  # of samples trained with the empty caption: the unconditional one for guidance
ZERO_SHARE = 0.04  # of samples trained with zeros for text embeddings, SDXL's other unconditional
MAX_SNR = 5.0
STEPS_PER_CHUNK = 8  # between fresh chunks of latents
AVERAGE_DECAY = 0.9993
REPORT_EVERY = 100


def tokenise(tokenizers: tuple[CLIPTokenizer, CLIPTokenizer], captions: list[str]) -> Tensor:
    """int64 [caption, 2, 77]: each caption as both tokenizers read it."""
    rows = [t(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids for t in tokenizers]
    return torch.stack(rows, dim=1)


class LatentRing:
    """The most recent `chunks * chunk` scenes as latents, token ids and time ids on the device."""

    def __init__(self, chunks: int, chunk: int, device: torch.device):
        capacity = chunks * chunk
        shape = (capacity, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
        self.latents = torch.empty(shape, dtype=torch.float16, device=device)
        self.ids = torch.empty(capacity, 2, 77, dtype=torch.int16, device=device)
        self.time_ids = torch.empty(capacity, 6, device=device)
        self.added = 0  # scenes so far, replaced ones included

    def add(self, latents: Tensor, ids: Tensor, time_ids: Tensor) -> None:
        """Put a chunk in the place of the oldest."""
        start = self.added % len(self.latents)
        rows = slice(start, start + len(latents))
        self.latents[rows], self.ids[rows], self.time_ids[rows] = latents, ids, time_ids
        self.added += len(latents)

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Random rows: float32 latents, int64 ids, float32 time ids."""
        rows = torch.randint(min(self.added, len(self.latents)), (count,), device=self.latents.device)
        return self.latents[rows].float(), self.ids[rows].long(), self.time_ids[rows]


def chunk_maker(
    args: argparse.Namespace, vae: Vae, tokenizers: tuple[CLIPTokenizer, CLIPTokenizer], device: torch.device
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """A function that makes the next `args.chunk` scenes' latents (in the denoiser's scale), ids and time ids."""
    sprites = load_sprites(args.data, device)
    sampler = SceneSampler(load_concepts(), args.seed)

    @torch.no_grad()
    def make_chunk() -> tuple[Tensor, Tensor, Tensor]:
        scenes, captions = [], []
        for _ in range(args.chunk):
            scenes.append(sampler.draw())
            captions.append(random_caption(scenes[-1], sampler.concepts, sampler.rng))
        with mixed_precision(device):
            latents = vae.encode(draw_scenes(sprites, scenes)).latent_dist.sample()
        time_ids = torch.tensor([scene.time_ids for scene in scenes], dtype=torch.float32)
        return latents * vae.config.scaling_factor, tokenise(tokenizers, captions), time_ids

    return make_chunk


def denoising_loss(
    denoiser: Denoiser, alphas: Tensor, empty: Tensor, batch: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The weighted loss and, for the report, the plain squared error of the predicted noise.

    `alphas` [1000] are the schedule's cumulative products, `empty` [2, 77] the empty caption's ids. The weight is
    min-SNR's (Hang et al. 2023, arXiv:2303.09556): it keeps nearly clean latents from outweighing the rest.
    """
    latents, ids, time_ids = batch
    count, device = len(latents), latents.device
    chance = torch.rand(count, device=device)
    ids = torch.where((chance < EMPTY_SHARE)[:, None, None], empty, ids)
    keep = ((chance < EMPTY_SHARE) | (chance >= EMPTY_SHARE + ZERO_SHARE)).float()
    timesteps = torch.randint(len(alphas), (count,), device=device)
    alpha = alphas[timesteps]
    noise = torch.randn_like(latents)
    mix = alpha.sqrt()[:, None, None, None] * latents + (1 - alpha).sqrt()[:, None, None, None] * noise
    with mixed_precision(device):
        predicted = denoiser(mix.contiguous(memory_format=torch.channels_last), timesteps, ids, time_ids, keep)
    errors = (predicted.float() - noise).square().mean((1, 2, 3))
    snr = alpha / (1 - alpha)
    return (errors * snr.clamp(max=MAX_SNR) / snr).mean(), errors.detach().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="made by build_data.py")
    parser.add_argument("--tokenizers", type=Path, required=True, help="made by build_tokenizer.py")
    parser.add_argument("--vae", type=Path, required=True, help="made by train_vae.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="go on from this checkpoint's text encoders and UNet")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warm-up", type=float, default=0.03, help="share of the steps")
    parser.add_argument("--chunk", type=int, default=256, help="scenes drawn and encoded at once")
    parser.add_argument("--chunks", type=int, default=256, help="to start with; the ring holds twice as many")
    parser.add_argument("--seed", type=int, default=2)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    device = pick_device()
    tokenizers = load_tokenizers(args.tokenizers)
    vae = load_vae(args.vae).to(device, memory_format=torch.channels_last).requires_grad_(False).eval()
    denoiser = load_denoiser(args.init) if args.init else Denoiser()
    denoiser.to(device).unet.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        denoiser.unet.compile(dynamic=False)

    make_chunk = chunk_maker(args, vae, tokenizers, device)
    ring = LatentRing(2 * args.chunks, args.chunk, device)
    for _ in range(args.chunks):
        ring.add(*make_chunk())
    print(f"{ring.added} scenes, latents' deviation {ring.latents[: ring.added].float().std():.3f}", flush=True)

    parameters: list[Any] = list(denoiser.parameters())
    averages = [parameter.detach().clone() for parameter in parameters]
    optimiser = Optimiser(parameters, steps=args.steps, rate=args.lr, warm_up=args.warm_up, decay=0.01)
    alphas = new_scheduler().alphas_cumprod.to(device)
    empty = tokenise(tokenizers, [""])[0].to(device)
    start = time.time()
    for step in range(1, args.steps + 1):
        loss, error = denoising_loss(denoiser, alphas, empty, ring.draw(args.batch))
        optimiser.step(loss)
        decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        if step % STEPS_PER_CHUNK == 0:
            ring.add(*make_chunk())
        if step % REPORT_EVERY == 0 or step == args.steps:
            seconds = time.time() - start
            print(f"{seconds:.0f} s: step {step} loss {loss:.4f} error {error:.4f} scenes {ring.added}", flush=True)

    with torch.no_grad():
        torch._foreach_copy_(parameters, averages)  # pyright: ignore[reportPrivateImportUsage]
    save_checkpoint(args.out, denoiser, vae, args.tokenizers)


if __name__ == "__main__":
    main()
