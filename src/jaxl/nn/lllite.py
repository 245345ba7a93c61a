"""ControlNet-LLLite: small networks that see a picture, and change what layers of attention are fed.

https://github.com/kohya-ss/sd-scripts, networks/control_net_lllite.py, and docs/train_lllite_README.md there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.config import LLLiteConfig, LLLiteModule
from jaxl.nn.layers import Params, Shapes, conv, conv_shapes, linear, linear_shapes


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nudge:
    """What changes the input of a layer: a module's parameters, what it made of pictures, [B, h, w, M], and strengths.

    These are float32 [B].
    """

    params: Params
    embedded: Array
    strengths: Array


Nudges = Sequence[Nudge]


def lllite_shapes(cfg: LLLiteConfig, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The parameter tree of a ControlNet-LLLite: its modules under the names that files have for them."""
    return {module.name: _module_shapes(module, dtype) for module in cfg.modules}


def _module_shapes(module: LLLiteModule, dtype: DTypeLike) -> Shapes:
    strides, half = module.strides, module.embedded // 2
    widths = (3, *(half for _ in strides[1:]), module.embedded)
    convs = [conv_shapes(a, b, size, dtype) for (a, b), size in zip(pairwise(widths), strides, strict=True)]
    return {
        "conditioning1": {str(2 * i): each for i, each in enumerate(convs)},  # between them are activations
        "down": {"0": linear_shapes(module.width, module.inner, dtype)},
        "mid": {"0": linear_shapes(module.embedded + module.inner, module.inner, dtype)},
        "up": {"0": linear_shapes(module.inner, module.width, dtype)},
    }


def embed_picture(params: Params, cfg: LLLiteConfig, pictures: Array) -> dict[str, Array]:
    """Pictures [B, H, W, 3] in 0..1 -> what each module makes of them, by its name, [B, h, w, M].

    No timestep enters it, nor what the layers are fed, so it is made once for an image: up to the sum of which the
    other part comes from there.
    """
    return {module.name: _embedded(params[module.name], module.strides, pictures) for module in cfg.modules}


# modules of the same shapes are traced once, not each
@partial(jax.jit, static_argnums=1)
def _embedded(p: Params, strides: tuple[int, ...], pictures: Array) -> Array:
    weight, bias = p["mid"]["0"]["weight"], p["mid"]["0"]["bias"]
    x = (2.0 * pictures - 1.0).astype(weight.dtype)
    # the U-Net's levels are as large as half of those above, rounded up
    step = math.prod(strides)
    x = jnp.pad(x, ((0, 0), *((0, -size % step) for size in x.shape[1:3]), (0, 0)), mode="edge")
    for i, stride in enumerate(strides):
        x = conv(p["conditioning1"][str(2 * i)], jax.nn.relu(x) if i else x, stride=stride, padding=(0, 0))
    return x @ weight[: x.shape[-1]] + bias


def nudged(x: Array, nudges: Nudges) -> Array:
    """Return what a layer is fed, [B * T, C], as the modules of its ControlNet-LLLites change it.

    Each sees what the layer would be fed without the others, so their order does not matter.
    """
    return x + sum(map(partial(_nudge, x), nudges)) if nudges else x


def _nudge(x: Array, nudge: Nudge) -> Array:
    p, embedded = nudge.params, nudge.embedded
    low = jax.nn.relu(linear(p["down"]["0"], x))
    own = p["mid"]["0"]["weight"][-low.shape[-1] :]
    change = linear(p["up"]["0"], jax.nn.relu(embedded.reshape(low.shape) + low @ own))
    strengths = jnp.repeat(nudge.strengths, len(low) // len(embedded))[:, None]
    # not by a product alone: what an image has no use for may be infinite
    return jnp.where(strengths == 0, 0, strengths.astype(x.dtype) * change)


def nudges(
    params: Params, cfg: LLLiteConfig, embedded: Mapping[str, Array], strengths: Array
) -> dict[str, tuple[Nudge, ...]]:
    """Return what changes the inputs of the U-Net's layers, by their paths."""
    return {m.layer: (Nudge(params[m.name], embedded[m.name], strengths),) for m in cfg.modules}
