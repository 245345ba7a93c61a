"""Train the autoencoder on random scenes.

    python train_vae.py --data DIR --out DIR --steps N [--init DIR]

Writes the part's config.json and float16 weights to --out, and a picture of some scenes above what became of them.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from drawing import draw_scenes, load_sprites
from networks import LATENT_CHANNELS, SCALING_FACTOR, Vae, load_vae, new_vae, to_float16
from optimisation import Optimiser, mixed_precision, pick_device
from reconstruction import CHUNK, psnr, reconstruct
from scenes import SceneSampler, load_concepts

SEED = 1
REPORT_EVERY = 50


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """Absolute and squared error, absolute error of the differences of neighbours, and of coarser copies."""
    loss = functional.l1_loss(output, target) + functional.mse_loss(output, target)
    for axis in (-1, -2):
        loss = loss + functional.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    for factor in (2, 4, 8):
        loss = loss + 0.25 * functional.l1_loss(
            functional.avg_pool2d(output, factor), functional.avg_pool2d(target, factor)
        )
    return loss


def vae_loss(vae: Vae, images: Tensor, kl_weight: float, latent_scale: float) -> tuple[Tensor, Tensor]:
    """The loss and, for the report, its reconstruction part.

    The divergence from the standard normal (Kingma & Welling 2014, arXiv:1312.6114) is that of latents times
    `latent_scale`, so that an autoencoder whose latents were already rescaled is not pulled back to unit size.
    """
    posterior = vae.encode(images).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
    reconstruction = reconstruction_loss(vae.decode(latents).sample.float(), images)
    logvar = logvar + 2 * math.log(latent_scale)
    divergence = 0.5 * ((mean * latent_scale).square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction + kl_weight * divergence, reconstruction.detach()


@torch.no_grad()
def standardise_latents(vae: Vae, latents: Tensor, deviation: float) -> None:
    """Give every latent channel mean 0 and the deviation, changing nothing of what the autoencoder computes.

    `latents` is a sample as it is now; shift and scale are folded into the 1x1 convolutions on both sides.
    """
    mean = latents.mean((0, 2, 3))
    scale = latents.std((0, 2, 3)) / deviation
    into, out_of = vae.quant_conv, vae.post_quant_conv
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= scale[None, :, None, None]
    means, logvars = slice(0, LATENT_CHANNELS), slice(LATENT_CHANNELS, None)
    into.weight[means] /= scale[:, None, None, None]
    into.bias[means] = (into.bias[means] - mean) / scale
    into.bias[logvars] -= 2 * scale.log()


def save_preview(path: Path, images: Tensor, outputs: Tensor) -> None:
    """A PNG of the first eight images above their reconstructions."""
    rows = [torch.cat(list(batch[:8]), dim=-1) for batch in (images, outputs)]
    pixels = (torch.cat(rows, dim=-2) + 1) * 127.5
    Image.fromarray(pixels.byte().permute(1, 2, 0).cpu().numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="made by build_data.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="go on from this autoencoder")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=1e-4, help="weight of the divergence")
    args = parser.parse_args()

    torch.manual_seed(SEED)
    device = pick_device()
    sprites = load_sprites(args.data, device)
    sampler = SceneSampler(load_concepts(), SEED)
    vae = load_vae(args.init) if args.init else new_vae()
    vae.to(device, memory_format=torch.channels_last).train()
    latent_scale = SCALING_FACTOR if args.init else 1.0
    optimiser = Optimiser(vae.parameters(), steps=args.steps, rate=args.lr, warm_up=0.04, decay=1e-4)

    def images(count: int) -> Tensor:
        return draw_scenes(sprites, [sampler.draw() for _ in range(count)])

    start = time.time()
    for step in range(1, args.steps + 1):
        batch = images(args.batch)
        with mixed_precision(device):
            loss, reconstruction = vae_loss(vae, batch, args.kl, latent_scale)
        optimiser.step(loss)
        if step % REPORT_EVERY == 0 or step == args.steps:
            seconds = time.time() - start
            print(f"{seconds:.0f} s: step {step} loss {loss:.4f} reconstruction {reconstruction:.4f}", flush=True)

    vae.eval()
    sample = images(256 if device.type == "cuda" else CHUNK)
    with torch.no_grad(), mixed_precision(device):
        latents = torch.cat([vae.encode(part).latent_dist.sample().float() for part in sample.split(CHUNK)])
    standardise_latents(vae, latents, 1 / SCALING_FACTOR)
    with mixed_precision(device):  # a block of its own: autocast remembers the weights it has converted
        outputs = reconstruct(vae, sample)
    print(f"PSNR {psnr(outputs, sample):.2f} dB")
    to_float16(vae)
    vae.save_pretrained(args.out)
    save_preview(args.out / "preview.png", sample, outputs)


if __name__ == "__main__":
    main()
