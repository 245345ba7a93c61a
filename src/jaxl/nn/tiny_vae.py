"""TAESD, a distilled autoencoder (https://github.com/madebyollin/taesd; diffusers `AutoencoderTiny`).

Convolutions and ReLU alone, at one width: far less work than the full autoencoder's, and less fine detail.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxl.config import TinyVAEConfig
from jaxl.nn.layers import Params, Shapes, conv, conv_shapes, upsample


def tiny_vae_shapes(cfg: TinyVAEConfig, dtype: DTypeLike = jnp.bfloat16) -> Shapes:
    """The parameter tree of the encoder and the decoder."""

    def side(layers: list[str], inputs: int, width: int, outputs: int) -> Shapes:
        shapes: Shapes = {}
        for i, layer in enumerate(layers):
            if layer == "block":
                shapes[str(i)] = {"conv": {n: conv_shapes(width, width, 3, dtype) for n in ("0", "2", "4")}}
            elif layer in ("conv", "down", "mix"):
                last = i == len(layers) - 1
                shapes[str(i)] = conv_shapes(width if i else inputs, outputs if last else width, 3, dtype)
                if layer != "conv":
                    del shapes[str(i)]["bias"]
        return {"layers": shapes}

    return {
        "encoder": side(_encoder(cfg), cfg.in_channels, cfg.encoder_width, cfg.latent_channels),
        "decoder": side(_decoder(cfg), cfg.latent_channels, cfg.decoder_width, cfg.out_channels),
    }


def encode(params: Params, cfg: TinyVAEConfig, images: Array) -> Array:
    """Images [B, H, W, 3] in -1..1 -> latents [B, H/8, W/8, 4], float32."""
    return _run(params["encoder"]["layers"], _encoder(cfg), images / 2 + 0.5)


def decode(params: Params, cfg: TinyVAEConfig, latents: Array) -> Array:
    """Latents [B, H/8, W/8, 4] -> images [B, H, W, 3] float32, -1..1 but not clipped."""
    return _run(params["decoder"]["layers"], _decoder(cfg), 3 * jnp.tanh(latents / 3)) * 2 - 1


def _encoder(cfg: TinyVAEConfig) -> list[str]:
    """The encoder's layers; a layer's place is its name in a checkpoint. `down` and `mix` have no bias."""
    layers = []
    for level, blocks in enumerate(cfg.encoder_blocks):
        layers += ["down" if level else "conv", *["block"] * blocks]
    return [*layers, "conv"]


def _decoder(cfg: TinyVAEConfig) -> list[str]:
    layers = ["conv", "relu"]
    for blocks in cfg.decoder_blocks:
        layers += [*["block"] * blocks, "up", "mix"]
    return [*layers[:-2], "conv"]


def _run(p: Params, layers: list[str], x: Array) -> Array:
    """The layers one after another, in the dtype of the parameters; float32 comes out."""
    x = x.astype(p["0"]["weight"].dtype)
    for i, layer in enumerate(layers):
        if layer == "relu":
            x = jax.nn.relu(x)
        elif layer == "up":
            x = upsample(x, 2 * x.shape[1], 2 * x.shape[2])
        elif layer == "block":
            x = _block(p[str(i)]["conv"], x)
        elif layer == "conv":
            x = conv(p[str(i)], x)
        else:
            x = conv({**p[str(i)], "bias": 0}, x, stride=2 if layer == "down" else 1)
    return x.astype(jnp.float32)


def _block(p: Params, x: Array) -> Array:
    """Three convolutions beside a shortcut."""
    h = jax.nn.relu(conv(p["0"], x))
    h = jax.nn.relu(conv(p["2"], h))
    return jax.nn.relu(conv(p["4"], h) + x)
