"""What IP-Adapters cost: a guided step with one and with two image prompts, beside one without.

    python benchmarks/ip_adapter.py [--model random:mid] [--size WxH] [--batch N] [--rows N] [--runs N]

The adapters have random weights, as many tokens as Plus, and a small image encoder, which runs once for a picture. All
variants take turns; medians of single rows are printed. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json

import jax
import numpy as np
from PIL import Image

import jaxl
from jaxl.bench.random_model import ensure_random_model
from jaxl.config import IPAdapterConfig, VisionConfig
from jaxl.run.image_prompts import CONTEXT, IPAdapter, context_shapes, encoder_shapes
from lora import in_turns, prepared, print_rows

ENCODER = VisionConfig(28, 14, 32, 64, 2, 2, "gelu", 1e-5, 32)
TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:mid", help="random:sdxl, random:mid or random:tiny")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    pipe, params = jaxl.from_pretrained(ensure_random_model(args.model.removeprefix("random:")), dtype="auto")
    cfg = IPAdapterConfig(ENCODER, TOKENS, pipe.model.unet.cross_attention_dim, None)
    target, rng = pipe.programs.target, np.random.default_rng(0)
    shapes = {**encoder_shapes(target, cfg), CONTEXT: context_shapes(target)}
    own = jax.tree.map(
        lambda s: jax.device_put((0.02 * rng.standard_normal(s.shape, np.float32)).astype(s.dtype), s.sharding), shapes
    )
    pipe.ip_adapters["like"] = IPAdapter("like", "random", "random", cfg, own)
    prompt = jaxl.ImagePrompt("like", Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)))
    variants = {"none": [], "one": [prompt], "two": [prompt, prompt]}
    runs = {
        name: prepared(pipe, params, args.rows, image_prompts=own, width=width, height=height, num_images=args.batch)
        for name, own in variants.items()
    }
    rows = in_turns(runs, args)
    print_rows(rows, args, pipe)
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rows": rows, **vars(args)}))


if __name__ == "__main__":
    main()
