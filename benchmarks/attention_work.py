"""How much of a full-size U-Net's work its attention is: what there is to save for methods that leave parts of it out.

    python benchmarks/attention_work.py [--size 1024] [--gate 0.4]

Multiply-adds of one evaluation for one image, counted from the configuration; the text's keys and values, which are
made once for an image, are not in them. Two bounds follow. T-GATE (Zhang et al. 2024, arXiv:2404.02747): from a share
of the steps on, its gate, no guidance and no cross-attention; beside it, no guidance alone. Token merging (Bolya and
Hoffman 2023, arXiv:2303.17604): half of the queries and keys of self-attention where there are most tokens, with what
it takes to find which (a quarter of the tokens against all others) and to take them together and apart (products, as
TPUs do it). The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter

import jax
import jax.numpy as jnp

from jaxl.config import UNetConfig
from jaxl.nn.unet import unet, unet_context, unet_shapes
from jaxl.presets import SDXL_BASE
from jaxl.run.model import Model

TEXT = 77


def blocks(cfg: UNetConfig, side: int) -> Counter[tuple[int, int]]:
    """Return how many transformer blocks there are, by their tokens and channels."""
    levels = [*range(len(cfg.channels)), len(cfg.channels) - 1, *reversed(range(len(cfg.channels)))]
    found: Counter[tuple[int, int]] = Counter()
    for level, depths in zip(levels, (*cfg.down, cfg.mid or (), *cfg.up), strict=True):
        found[(side >> level) ** 2, cfg.channels[level]] += sum(depths)
    return +found


def whole(cfg: UNetConfig, side: int) -> float:
    """Return the multiply-adds of an evaluation, half of the operations that XLA counts."""
    shapes = unet_shapes(cfg)
    text = jax.ShapeDtypeStruct((1, TEXT, cfg.cross_attention_dim), jnp.bfloat16)
    context = jax.eval_shape(unet_context, shapes, text)
    sizes = (1, side, side, cfg.in_channels), (1,)
    latents, t = (jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)
    pooled = jax.ShapeDtypeStruct((1, cfg.projection_input_dim - 6 * cfg.addition_time_embed_dim), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, 6), jnp.float32)
    lowered = jax.jit(lambda p, *told: unet(p, cfg, *told)).lower(shapes, latents, t, context, pooled, ids)
    return float((lowered.cost_analysis() or {})["flops"]) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--gate", type=float, default=0.4)
    args = parser.parse_args()
    model = Model.from_configs(SDXL_BASE)
    side = args.size // model.vae.factor
    kinds = blocks(model.unet, side)
    total = whole(model.unet, side)
    cross = sum(count * (2 * n * c * c + 2 * n * TEXT * c) for (n, c), count in kinds.items())
    products = {n: count * 2 * n * n * c for (n, c), count in kinds.items()}
    most, channels = max(kinds)
    there = kinds[most, channels]
    finding = there * (most // 4) * (most - most // 4) * channels
    moving = there * 2 * (most // 2) * most * channels
    left = args.gate + (1 - args.gate) / 2
    results = {
        "multiply_adds": total,
        "cross_attention": cross / total,
        **{f"self_attention_of_{n}_tokens": work / total for n, work in products.items()},
        "steps_without_guidance": left,
        "steps_with_t_gate": left - (1 - args.gate) / 2 * cross / total,
        "merging_saves": 0.75 * products[most] / total,
        "merging_costs": (finding + moving) / total,
    }
    for name, value in results.items():
        print(f"{name.replace('_', ' '):32} {value:.3g}" if value > 1 else f"{name.replace('_', ' '):32} {value:.1%}")
    print(json.dumps({**vars(args), "results": {name: round(value, 4) for name, value in results.items()}}))


if __name__ == "__main__":
    main()
