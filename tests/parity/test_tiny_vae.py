"""The small autoencoder against diffusers' AutoencoderTiny: float32, seeded random weights."""

from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_weights import randomize, relative_error, shape_tree, tree

from jaxl.config import TinyVAEConfig, VAEConfig, read_vae_config
from jaxl.errors import CheckpointError
from jaxl.nn.tiny_vae import decode, encode, tiny_vae_shapes

TOLERANCE = 2e-5
SMALL: dict[str, Any] = {
    "encoder_block_out_channels": (12, 12, 12),
    "decoder_block_out_channels": (16, 16, 16),
    "num_encoder_blocks": (1, 2, 3),
    "num_decoder_blocks": (3, 0, 2),
}
# madebyollin/taesdxl's config.json
TAESDXL: dict[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64],
    "encoder_block_out_channels": [64, 64, 64, 64],
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}


def test_both_ways() -> None:
    reference: Any = randomize(diffusers.AutoencoderTiny(**SMALL), seed=6)
    cfg = TinyVAEConfig.from_json(dict(reference.config))
    params = tree(reference)
    assert shape_tree(params) == shape_tree(tiny_vae_shapes(cfg))
    assert cfg.factor == 4
    rng = np.random.default_rng(7)
    images = rng.uniform(-1, 1, (2, 24, 40, 3)).astype(np.float32)
    latents = 3 * rng.standard_normal((2, 6, 10, 4), np.float32)  # where the clamp has a say
    with torch.no_grad():
        encoded = reference.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latents.permute(0, 2, 3, 1)
        decoded = reference.decode(torch.from_numpy(latents).permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1)
    assert relative_error(jax.jit(encode, static_argnums=1)(params, cfg, images), encoded) < TOLERANCE
    assert relative_error(jax.jit(decode, static_argnums=1)(params, cfg, latents), decoded) < TOLERANCE
    coarse = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), params)
    for run, given, wanted in ((encode, images, encoded), (decode, latents, decoded)):
        got = jax.jit(run, static_argnums=1)(coarse, cfg, given)
        assert got.dtype == jnp.float32
        assert relative_error(got, wanted) < 0.02


def test_the_published_one() -> None:
    with torch.device("meta"):
        reference = diffusers.AutoencoderTiny.from_config(TAESDXL)
    cfg = read_vae_config(TAESDXL)
    assert isinstance(cfg, TinyVAEConfig)
    assert cfg.factor == 8
    shapes = tiny_vae_shapes(cfg)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("act_fn", "gelu"),
        ("scaling_factor", 0.13025),
        ("upsampling_scaling_factor", 1),
        ("decoder_block_out_channels", [64, 64, 64, 32]),
        ("num_encoder_blocks", [1, 3, 3]),
        ("midblock_gn", True),
    ],
)
def test_other_structures(field: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        TinyVAEConfig.from_json(TAESDXL | {field: value})
    assert str(caught.value).startswith("vae/config.json: ")
    assert field.removeprefix("num_").split("_")[0] in str(caught.value)


def test_kinds_by_class_name() -> None:
    assert isinstance(read_vae_config({"_class_name": "AutoencoderKL"}), VAEConfig)
    assert isinstance(read_vae_config({}), VAEConfig)
    with pytest.raises(CheckpointError, match="VQModel is not supported, only AutoencoderKL and AutoencoderTiny"):
        read_vae_config({"_class_name": "VQModel"})
