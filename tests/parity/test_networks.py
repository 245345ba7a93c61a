"""Each network against diffusers and transformers on PyTorch: float32, seeded random weights."""

import re
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from evaluation import whole_unet
from families import FAMILIES, THIN
from torch_weights import randomize, relative_error, shape_tree, tree

from jaxl.config import TextConfig, UNetConfig, VAEConfig
from jaxl.nn.clip import clip, clip_shapes
from jaxl.nn.unet import unet_shapes
from jaxl.nn.vae import decode, encode, vae_shapes
from jaxl.presets import SDXL_BASE
from jaxl.run.model import Model

TOLERANCE = 2e-5


def unet_error(raw: dict[str, Any], size: tuple[int, int], **changed: Any) -> float:
    """How far a network is from diffusers', if its config is changed for jaxl."""
    reference: Any = randomize(diffusers.UNet2DConditionModel(**raw), seed=1)
    cfg = UNetConfig.from_json(dict(reference.config) | changed)
    params = tree(reference)
    assert shape_tree(params) == shape_tree(unet_shapes(cfg))
    rng = np.random.default_rng(0)
    n_ids = (raw["projection_class_embeddings_input_dim"] - 24) // 8
    x = rng.standard_normal((2, *size, cfg.in_channels), np.float32)
    t = np.array([999.0, 20.5], np.float32)
    context = rng.standard_normal((2, 7, 48), np.float32)
    pooled = rng.standard_normal((2, 24), np.float32)
    time_ids = rng.uniform(0, 1024, (2, n_ids)).astype(np.float32)
    with torch.no_grad():
        wanted = reference(
            torch.from_numpy(x).permute(0, 3, 1, 2),
            torch.from_numpy(t),
            torch.from_numpy(context),
            added_cond_kwargs={"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(time_ids)},
        ).sample.permute(0, 2, 3, 1)
    got = jax.jit(whole_unet, static_argnums=1)(params, cfg, x, t, context, pooled, time_ids)
    return relative_error(got, wanted)


@pytest.mark.parametrize(
    ("raw", "size"), [*((raw, (16, 16)) for raw in THIN.values()), (FAMILIES["base"], (18, 13))], ids=[*THIN, "whole"]
)
def test_unet(raw: dict[str, Any], size: tuple[int, int]) -> None:
    assert unet_error(raw, size) < TOLERANCE


def test_the_tolerance_catches_a_wrong_epsilon() -> None:
    """The comparison above must be able to fail for the smallest mistake it is meant to find."""
    assert unet_error(THIN["base"], (16, 16), norm_eps=1e-4) > TOLERANCE


@pytest.mark.parametrize("eos", [2, 98])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_encoder(activation: str, eos: int) -> None:
    raw = {
        "vocab_size": 99,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "hidden_act": activation,
        "projection_dim": 32,
        "eos_token_id": eos,
        "bos_token_id": 97,
        "pad_token_id": 0,
    }
    kinds = {
        "CLIPTextModel": transformers.CLIPTextModel,
        "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
    }
    ids = np.random.default_rng(3).integers(0, 97, (3, 77)).astype(np.int32)
    ids[:, 0] = 97
    ids[0, 5:], ids[1, 76:], ids[2, 40] = 98, 98, 98
    for name, kind in kinds.items():
        reference: Any = randomize(kind(transformers.CLIPTextConfig(**raw)), seed=2)
        bare = not any(key.startswith("text_model.") for key in reference.state_dict())
        params = tree(reference, prefix="text_model." if bare else "")
        cfg = TextConfig.from_json(raw | {"architectures": [name]})
        assert shape_tree(params) == shape_tree(clip_shapes(cfg))
        with torch.no_grad():
            wanted = reference(torch.from_numpy(ids).long(), output_hidden_states=True)
        for skip in (0, 1, 2):
            hidden, pooled = jax.jit(clip, static_argnums=1)(params, cfg, ids, skip)
            assert relative_error(hidden, wanted.hidden_states[-2 - skip]) < TOLERANCE
        if name == "CLIPTextModelWithProjection":
            assert relative_error(pooled, wanted.text_embeds) < TOLERANCE
        else:
            assert pooled is None


@pytest.mark.parametrize("quant", [True, False])
def test_vae(quant: bool) -> None:
    reference: Any = randomize(
        diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[16, 32, 48],
            layers_per_block=2,
            norm_num_groups=8,
            use_quant_conv=quant,
            use_post_quant_conv=quant,
        ),
        seed=4,
    )
    cfg = VAEConfig.from_json(dict(reference.config))
    params = tree(reference)
    assert shape_tree(params) == shape_tree(vae_shapes(cfg))
    rng = np.random.default_rng(5)
    images = rng.uniform(-1, 1, (2, 24, 40, 3)).astype(np.float32)
    latents = rng.standard_normal((2, 6, 10, 4), np.float32)
    with torch.no_grad():
        posterior = reference.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist
        decoded = reference.decode(torch.from_numpy(latents).permute(0, 3, 1, 2)).sample.permute(0, 2, 3, 1)
    mean, log_variance = jax.jit(encode, static_argnums=1)(params, cfg, images)
    assert relative_error(mean, posterior.mean.permute(0, 2, 3, 1)) < TOLERANCE
    assert relative_error(log_variance, posterior.logvar.permute(0, 2, 3, 1)) < TOLERANCE
    assert relative_error(jax.jit(decode, static_argnums=1)(params, cfg, latents), decoded) < TOLERANCE


def test_full_size_parameter_counts() -> None:
    """The published sizes, counted on shapes alone."""
    sizes = {name: _count(shapes) for name, shapes in Model.from_configs(SDXL_BASE).shapes().items()}
    assert sizes == {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    }


def _count(shapes: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_bfloat16_stays_bfloat16() -> None:
    """Every product takes bfloat16 on both sides, so nothing was widened by accident."""
    cfg = UNetConfig.from_json(FAMILIES["base"])
    inputs = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 16, 16, 4), (1,), (1, 7, 48), (1, 24), (1, 6))]
    lowered = jax.jit(whole_unet, static_argnums=1).lower(unet_shapes(cfg, jnp.bfloat16), cfg, *inputs)
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*: \((.*)\) ->", lowered.as_text())
    assert len(products) > 30
    for operands in products:
        assert re.fullmatch(r"tensor<[\dx]*xbf16>, tensor<[\dx]*xbf16>", operands)
