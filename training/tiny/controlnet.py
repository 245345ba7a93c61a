"""Train the ControlNet `edges`, by which `tiny` draws along white lines on black.

    python controlnet.py --out edges

Pictures of random scenes, drawn by `tiny`, are to be drawn again along their edges. The network is a small one: the
residual blocks of the U-Net's way down and middle, without attention. It needs jaxl, whose networks it trains, and
OpenCV, but no PyTorch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxl
import numpy as np
from jax import Array
from jaxl.config import ControlNetConfig
from jaxl.nn.added import Added
from jaxl.nn.controlnet import controlnet, controlnet_shapes, embed_picture
from jaxl.nn.unet import unet, unet_context
from jaxl.run.model import Model
from jaxl.weights.layout import flatten, to_torch, unflatten
from jaxl.weights.winograd import without_winograd
from PIL import Image
from safetensors.numpy import save_file

from captions import random_caption
from edges import edges, followed
from lessons import CONCEPTS, FIRST_SEED, Lessons, cubic, draw, encode, noisy, train, whole_scenes

EMBEDDING = (8, 16, 32, 64)
EMPTY_SHARE = 0.5  # what no caption says, edges have to
COPIED_SHARE = 0.3  # of the rate, for layers that are the U-Net's at first
WARM_UP = 100
OF_UNET = (  # of its config, those that say something and that diffusers knows of ControlNets too
    *("act_fn", "addition_embed_type", "addition_time_embed_dim", "attention_head_dim", "block_out_channels"),
    *("cross_attention_dim", "downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block"),
    *("norm_eps", "norm_num_groups", "projection_class_embeddings_input_dim", "transformer_layers_per_block"),
    "use_linear_projection",
)
PICTURE = "controlnet_cond_embedding."
NEW = (PICTURE, "controlnet_down_blocks.", "controlnet_mid_block.")
JUDGED = 24


class Fixed(NamedTuple):
    """What is not trained: the U-Net, the lessons, and their edges, bool [N, H, W]."""

    network: Any
    lessons: Lessons
    lines: Array


def small_config(of_unet: Mapping[str, Any]) -> dict[str, Any]:
    """Return the network's config, as diffusers writes it, from that of its U-Net: the same without attention."""
    return {
        **{name: of_unet[name] for name in OF_UNET},
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        "conditioning_embedding_out_channels": list(EMBEDDING),
        "controlnet_conditioning_channel_order": "rgb",
        "down_block_types": ["DownBlock2D"] * len(of_unet["block_out_channels"]),
        "global_pool_conditions": False,
        "mid_block_type": "UNetMidBlock2D",
    }


def new_network(cfg: ControlNetConfig, network: Any, key: Array) -> Any:
    """Return parameters to start from: the U-Net's where it has them, zeros in the last layers, else random ones."""
    of_unet, shapes = flatten(network), flatten(controlnet_shapes(cfg, jnp.float32))
    found = {}
    for (name, shape), own in zip(shapes.items(), jax.random.split(key, len(shapes)), strict=True):
        if name.startswith(PICTURE) and name.endswith(".weight"):
            fan_in = np.prod(shape.shape[:-1])
            found[name] = jax.random.normal(own, shape.shape) * np.sqrt(2 / fan_in)
        elif name.startswith(NEW):
            found[name] = jnp.zeros(shape.shape)
        else:
            found[name] = jnp.asarray(np.asarray(of_unet[name]))
    return unflatten(found)


def loss(
    model: Model, cfg: ControlNetConfig, alphas: Array, batch: int, params: Any, fixed: Fixed, key: Array
) -> Array:
    """Return the weighted error of the noise that the U-Net predicts with the ControlNet, for a random batch."""
    some = noisy(alphas, fixed.lessons, batch, key, empty_share=EMPTY_SHARE, timesteps=cubic)
    pictures = jnp.repeat(fixed.lines[some.rows][..., None].astype(jnp.float32), cfg.picture_channels, axis=-1)
    told = some.pooled, some.time_ids
    *skips, middle = controlnet(
        params,
        cfg,
        some.latents,
        some.timesteps,
        embed_picture(params, cfg, pictures),
        unet_context(params, some.prompt_embeds),
        *told,
        kernels=model.kernels,
    )
    predicted, _ = unet(
        fixed.network,
        model.unet,
        some.latents,
        some.timesteps,
        unet_context(fixed.network, some.prompt_embeds),
        *told,
        added=Added(skips, middle),
        kernels=model.kernels,
    )
    return some.error(predicted)


def train_network(
    pipe: jaxl.Pipeline,
    params: Any,
    lessons: Lessons,
    pictures: Sequence[Image.Image],
    config: dict[str, Any],
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    seen: Callable[[Any], None],
) -> Any:
    """Return the parameters of a network that learned to draw the lessons along the edges of their pictures."""
    start, key = jax.random.split(jax.random.key(seed))
    cfg = ControlNetConfig.from_json(config)
    alphas = jnp.asarray(pipe.model.scheduler.noise.alphas_cumprod(np.float32))
    network = without_winograd(params["unet"])  # plain convolutions are quicker where there are gradients
    lines = jnp.asarray(np.stack([edges(picture) > 0 for picture in pictures]))
    begun = new_network(cfg, network, start)
    return train(
        begun,
        partial(loss, pipe.model, cfg, alphas, batch),
        Fixed(network, lessons, lines),
        steps=steps,
        rate=rate,
        key=key,
        warm_up=WARM_UP,
        shares=unflatten({name: 1.0 if name.startswith(NEW) else COPIED_SHARE for name in flatten(begun)}),
        seen=seen,
    )


def save(folder: Path, config: dict[str, Any], params: Any) -> None:
    """Write the network in float16, as diffusers does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tensors = {
        name: np.ascontiguousarray(np.asarray(leaf).transpose(to_torch(name, leaf.shape)), np.float16)
        for name, leaf in flatten(params).items()
    }
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def judge(pipe: jaxl.Pipeline, params: Any, folder: Path) -> Image.Image:
    """Print how well pictures of new things follow edges, and return some: edges, without and with the network."""
    scenes = whole_scenes(JUDGED, seed=5, held_out=True)
    lines = [edges(picture) for picture in draw(pipe, params, scenes)]
    pipe.add_control("edges", folder)
    asked = [[jaxl.Control("edges", each)] for each in lines]
    other_seed = FIRST_SEED + JUDGED
    sheets = [[Image.fromarray(each).convert("RGB") for each in lines]]
    for name, options in (("without", {}), ("with", {"controls": asked})):
        sheets.append(drawn := draw(pipe, params, scenes, seed=other_seed, **options))
        found = np.mean([followed(*each) for each in zip(lines, drawn, strict=True)], axis=0)
        print(f"{name}: {found[0]:.1%} of the lines have an edge near, {found[1]:.1%} of the edges a line", flush=True)
    pipe.remove_control("edges")
    rows = [np.concatenate([np.asarray(each) for each in row[:8]], axis=1) for row in sheets]
    return Image.fromarray(np.concatenate(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder, whose name the network gets")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=12)
    args = parser.parse_args()

    # of one device: of several, each would work out all of a step
    pipe, params = jaxl.from_pretrained("tiny", dtype=jnp.float32, mesh=jaxl.make_mesh(jax.devices()[:1]))
    scenes = whole_scenes(args.pictures, args.seed)
    rng = np.random.default_rng(args.seed)
    captions = [random_caption(scene, CONCEPTS, rng) for scene in scenes]
    pictures = draw(pipe, params, scenes)
    lessons = encode(pipe, params, captions, pictures)
    config = small_config(pipe.checkpoint.configs["unet"])
    train_network(
        pipe,
        params,
        lessons,
        pictures,
        config,
        steps=args.steps,
        batch=args.batch,
        rate=args.lr,
        seed=args.seed,
        seen=partial(save, args.out, config),
    )
    judge(pipe, params, args.out).save(args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
