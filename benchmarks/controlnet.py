"""What ControlNets cost: a guided step with one and with two, beside one without, and what their operations are.

    python benchmarks/controlnet.py [--kind KIND] [--model random:mid] [--size WxH] [--batch N] [--rows N] [--runs N]

The networks are full ones for the model, with random weights: ControlNets, or their kin of a `--kind`, t2i-adapter or
lllite. All variants take turns; medians of single rows are printed, and the share of a network's operations in the
U-Net's, by XLA's count. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

import jaxl
from jaxl.bench.random_model import ensure_random_model
from jaxl.config import ControlConfig, ControlNetConfig, LLLiteConfig, LLLiteModule, T2IAdapterConfig, UNetConfig
from jaxl.nn.controlnet import controlnet
from jaxl.nn.unet import unet, unet_context, unet_shapes
from jaxl.run.control_kinds import Control, Evaluation, Kind, kind_of
from jaxl.run.model import Model
from jaxl.weights.layout import flatten, to_torch
from jaxl.weights.lllite import module_layers, scale
from lora import in_turns, prepared, print_rows

EMBEDDING = (16, 32, 96, 256)  # as published ones have it
NAMES = ("first", "second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="controlnet", choices=KINDS)
    parser.add_argument("--model", default="random:mid", help="random:sdxl, random:mid or random:tiny")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    pipe, params = jaxl.from_pretrained(ensure_random_model(args.model.removeprefix("random:")), dtype="auto")
    cfg = KINDS[args.kind](pipe.model.unet)
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(NAMES):
            pipe.add_control(name, write(Path(folder) / f"{name}.safetensors", cfg, seed))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    first, second = (jaxl.Control(name, picture) for name in NAMES)
    variants: dict[str, list[jaxl.Control]] = {
        "none": [],
        "one": [first],
        "two": [first, second],
        "one of strength 0": [jaxl.Control("first", picture, strength=0.0)],
    }
    runs = {
        name: prepared(pipe, params, args.rows, controls=own, width=width, height=height, num_images=args.batch)
        for name, own in variants.items()
    }
    rows = in_turns(runs, args)
    print_rows(rows, args, pipe)
    share = share_of_operations(pipe.model, cfg, width, height)
    print(f"its operations are {share:.1%} of the U-Net's")
    facts = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "share": share, "rows": rows}
    print(json.dumps({**facts, **vars(args)}))


def _controlnet(unet: UNetConfig) -> ControlNetConfig:
    return ControlNetConfig(unet, 3, EMBEDDING, bgr=False, pooled=False)


def _t2i_adapter(unet: UNetConfig) -> T2IAdapterConfig:
    return T2IAdapterConfig(3, (*unet.channels, unet.channels[-1]), factor=16, depth=2)


def _lllite(unet: UNetConfig) -> LLLiteConfig:
    """As published ones are: modules for the way down and the middle, of 32 channels and 64."""
    modules = []
    for name, layer in module_layers(unet).items():
        if not layer.startswith("up_blocks"):
            block, strides = layer.split("."), {1: (4, 2), 2: (4, 4), 4: (4, 4, 2)}[scale(unet, layer)]
            width = unet.channels[int(block[1]) if block[0] == "down_blocks" else -1]
            modules.append(LLLiteModule(name, layer, width, 32, 64, strides))
    return LLLiteConfig(tuple(modules))


KINDS: Mapping[str, Callable[[UNetConfig], ControlConfig]] = {
    "controlnet": _controlnet,
    "t2i-adapter": _t2i_adapter,
    "lllite": _lllite,
}


def share_of_operations(model: Model, cfg: ControlConfig, width: int, height: int) -> float:
    """Return the operations of a control in a row over those of the U-Net, as XLA counts them."""
    factor, text = model.vae.factor, model.text_encoder_2
    pooled = model.unet.projection_input_dim - model.time_ids * model.unet.addition_time_embed_dim
    latents = jax.ShapeDtypeStruct((2, height // factor, width // factor, 4), jnp.float32)
    t, texts = (
        jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        for shape in ((), (text.max_length, model.unet.cross_attention_dim))
    )
    told = [jax.ShapeDtypeStruct((2, n), jnp.float32) for n in (pooled, model.time_ids)]

    def count(run: Any, shapes: Any, *first: Any) -> float:
        context = jax.eval_shape(unet_context, shapes, texts)
        lowered = jax.jit(run).lower(shapes, *first, context, *told)
        return float((lowered.cost_analysis() or {})["flops"])

    kind, of_unet = kind_of(cfg), unet_shapes(model.unet, jnp.float32)
    own, whole = kind.shapes(jnp.float32), count(partial(_of_unet, model), of_unet, latents, t)
    if isinstance(cfg, ControlNetConfig):
        embedded = jax.ShapeDtypeStruct((*latents.shape[:3], cfg.unet.channels[0]), jnp.float32)
        return count(partial(_of_controlnet, cfg), own, latents, t, embedded) / whole
    picture = jax.ShapeDtypeStruct((2, height, width, cfg.picture_channels), jnp.float32)
    embedded, _ = jax.eval_shape(kind.embed, own, picture, None, None, None)
    seen = own, embedded, jax.ShapeDtypeStruct((2, cfg.parts), jnp.float32)
    return count(partial(_of_both, model, kind), of_unet, latents, t, seen) / whole - 1


def _of_controlnet(cfg: ControlNetConfig, params: Any, *told: Any) -> Any:
    x, t, embedded, context, pooled, time_ids = told
    return controlnet(params, cfg, x, t, embedded, context, pooled, time_ids)


def _of_unet(model: Model, params: Any, *told: Any) -> Any:
    x, t, context, pooled, time_ids = told
    return unet(params, model.unet, x, t, context, pooled, time_ids)[0]


def _of_both(model: Model, kind: Kind[Any], params: Any, x: Any, t: Any, seen: Any, *told: Any) -> Any:
    (own, embedded, strengths), (context, *others) = seen, told
    at = Evaluation(x, t, *others, lengths=None, shallow=None, kernels=model.kernels)
    added = kind.added(own, Control(embedded, None, {}, strengths), at)
    return unet(params, model.unet, x, t, context, *others, added=added)[0]


def write(file: Path, cfg: ControlConfig, seed: int) -> Path:
    """Write a file of random numbers, under the names of the parameters."""
    rng = np.random.default_rng(seed)
    tensors = {
        key: (0.02 * rng.standard_normal([leaf.shape[axis] for axis in to_torch(key, leaf.shape)])).astype(np.float16)
        for key, leaf in flatten(kind_of(cfg).shapes(jnp.float32)).items()
    }
    save_file(tensors, file)
    return file


if __name__ == "__main__":
    main()
