"""What guidance needs inside the U-Net, against diffusers on PyTorch: float32, seeded random weights."""

import math
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from diffusers.utils.torch_utils import fourier_filter
from evaluation import whole_unet
from families import BASE, FAMILIES, LCM
from torch_weights import randomize, relative_error, shape_tree, tree

from jaxl.config import UNetConfig
from jaxl.nn.freeu import low_frequencies
from jaxl.nn.unet import guidance_sinusoids, unet_shapes

TOLERANCE = 2e-5
RUN = jax.jit(whole_unet, static_argnums=1, static_argnames="pag_layers")


def model(raw: dict[str, Any]) -> tuple[Any, UNetConfig, Any]:
    """A family's U-Net with few layers in PyTorch, its config and its parameters."""
    few = {"layers_per_block": 1, "transformer_layers_per_block": 1}
    reference: Any = randomize(diffusers.UNet2DConditionModel(**(raw | few)), seed=1)
    return reference, UNetConfig.from_json(dict(reference.config)), tree(reference)


def inputs(cfg: UNetConfig, size: tuple[int, int] = (16, 16), tokens: int = 7) -> tuple[np.ndarray, ...]:
    """Two different rows of everything that every U-Net takes."""
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((2, *size, cfg.in_channels), np.float32),
        np.array([999.0, 20.5], np.float32),
        rng.standard_normal((2, tokens, 48), np.float32),
        rng.standard_normal((2, 24), np.float32),
        rng.uniform(0, 1024, (2, (cfg.projection_input_dim - 24) // 8)).astype(np.float32),
    )


def predict(reference: Any, given: tuple[np.ndarray, ...], **options: Any) -> np.ndarray:
    x, t, context, pooled, time_ids = (torch.from_numpy(a) for a in given)
    added = {"text_embeds": pooled, "time_ids": time_ids}
    with torch.no_grad():
        out = reference(x.permute(0, 3, 1, 2), t, context, added_cond_kwargs=added, **options).sample
    return out.permute(0, 2, 3, 1).numpy()


def test_freeu() -> None:
    """Of the refiner's two blocks at work one has transformers and one has none; its sizes here are odd on the way."""
    reference, cfg, params = model(FAMILIES["refiner"])
    given = inputs(cfg, (18, 13))
    freeu = np.array([[0.9, 0.2, 1.3, 1.4], [0.6, 0.4, 1.1, 1.2]], np.float32)
    wanted = []
    for row, scales in enumerate(freeu.tolist()):
        reference.enable_freeu(*scales)
        wanted.append(predict(reference, given)[row])
    got = RUN(params, cfg, *given, freeu=freeu)
    assert relative_error(got, np.stack(wanted)) < TOLERANCE
    for change in 0.1 * np.eye(4, dtype=np.float32):
        assert relative_error(RUN(params, cfg, *given, freeu=freeu + change), got) > 10 * TOLERANCE


@pytest.mark.parametrize("size", [(32, 32), (18, 13), (5, 2), (1, 9)])
def test_low_frequencies(size: tuple[int, int]) -> None:
    """What a filter of scale 0 removes."""
    x = np.random.default_rng(1).standard_normal((2, *size, 3), np.float32)
    wanted = x - fourier_filter(torch.from_numpy(x).permute(0, 3, 1, 2), 1, 0).permute(0, 2, 3, 1).numpy()
    assert relative_error(low_frequencies(x), wanted) < 1e-5


def test_guidance() -> None:
    reference, cfg, params = model(LCM)
    assert shape_tree(params) == shape_tree(unet_shapes(cfg))
    given = inputs(cfg)
    guidance = np.array([1.5, 8.0], np.float32)
    embedding = diffusers.StableDiffusionXLPipeline.get_guidance_scale_embedding
    condition = embedding(None, torch.from_numpy(guidance) - 1, embedding_dim=16)
    wanted = predict(reference, given, timestep_cond=condition)
    assert relative_error(RUN(params, cfg, *given, guidance=guidance), wanted) < TOLERANCE
    assert relative_error(RUN(params, cfg, *given, guidance=guidance + 0.5), wanted) > 100 * TOLERANCE
    for dim in (16, 17, 256):
        wanted = embedding(None, torch.from_numpy(guidance) - 1, embedding_dim=dim)
        # angles of up to 7000 radians, rounded to float32, leave this much
        np.testing.assert_allclose(guidance_sinusoids(guidance, dim), wanted, atol=1e-3)


def test_lengths() -> None:
    reference, cfg, params = model(BASE)
    given = inputs(cfg, tokens=14)
    lengths = np.array([5, 14], np.int32)
    mask = torch.arange(14) < torch.from_numpy(lengths)[:, None]
    wanted = predict(reference, given, encoder_attention_mask=mask)
    assert relative_error(RUN(params, cfg, *given, lengths=lengths), wanted) < TOLERANCE
    assert relative_error(RUN(params, cfg, *given, lengths=lengths - 1), wanted) > 100 * TOLERANCE


@pytest.mark.parametrize("sigma", [0.7, 2.5, 1e4])
def test_blurred_queries(sigma: float) -> None:
    """The blur is the one of the paper's code, which diffusers has too, where it is asked for the wrong way round."""
    reference, cfg, params = model(BASE)
    places = ("mid_block", "down_blocks.1")
    given = inputs(cfg)
    plain = predict(reference, given)
    size = math.ceil(6 * sigma) // 2 * 2 + 1

    def blur(module: Any, entered: Any, queries: torch.Tensor) -> torch.Tensor:
        return _gaussian_blur_2d(queries.clone(), size, sigma, 0.0 if sigma < 9999 else 2 * sigma)

    hooks = [
        module.register_forward_hook(blur)
        for name, module in reference.named_modules()
        if name.endswith("attn1.to_q") and name.startswith(tuple(f"{place}." for place in places))
    ]
    wanted = predict(reference, given)
    for hook in hooks:
        hook.remove()
    how = {"perturbed": np.array([True, True]), "pag_layers": places}
    got = RUN(params, cfg, *given, **how, blur=np.float32([sigma, sigma]))
    assert relative_error(got, wanted) < TOLERANCE
    assert relative_error(plain, wanted) > 20 * TOLERANCE
    some = RUN(params, cfg, *given, **{**how, "perturbed": np.array([False, True])}, blur=np.float32([sigma, 0]))
    assert relative_error(some[0], plain[0]) < TOLERANCE
    assert relative_error(some[1], RUN(params, cfg, *given, **how)[1]) < TOLERANCE  # the identity


def test_perturbed_attention() -> None:
    reference, cfg, params = model(BASE)
    places = ("mid_block", "down_blocks.1", "up_blocks.0.attentions.1")
    processors = {
        name: PAGIdentitySelfAttnProcessor2_0()
        if ".attn1." in name and name.startswith(tuple(f"{place}." for place in places))
        else processor
        for name, processor in reference.attn_processors.items()
    }
    assert sum(isinstance(p, PAGIdentitySelfAttnProcessor2_0) for p in processors.values()) == 3
    given = inputs(cfg)
    unperturbed = predict(reference, given)
    reference.set_attn_processor(processors)
    wanted = predict(reference, given)  # these processors perturb the second half of the batch
    got = RUN(params, cfg, *given, perturbed=np.array([False, True]), pag_layers=places)
    assert relative_error(got, wanted) < TOLERANCE
    turned = RUN(params, cfg, *(a[::-1] for a in given), perturbed=np.array([True, False]), pag_layers=places)
    assert relative_error(turned, wanted[::-1]) < TOLERANCE
    assert relative_error(unperturbed[1], wanted[1]) > 100 * TOLERANCE
