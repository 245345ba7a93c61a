"""Straight paths: trajectories against diffusers' FlowMatch schedulers, and levels against ComfyUI's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from evaluation import SMALL_UNET
from pipelines import random_pipeline
from torch_weights import randomize, relative_error

import jaxl
from jaxl.diffusion.diffusers_config import read_scheduler_config
from jaxl.diffusion.rows import COLUMNS, MIXED, Table
from jaxl.diffusion.schedulers import SOLVERS
from jaxl.diffusion.tables import build_table
from jaxl.errors import CheckpointError, InputError

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
HEUN = {"_class_name": "FlowMatchHeunDiscreteScheduler"}


def network(x: Any, t: Any, tanh: Any) -> Any:
    return tanh(1.5 * x + t / 500 - 1) - 0.1 * x


def column(table: Table, name: str) -> np.ndarray:
    return table.rows[: table.used, COLUMNS.index(name)].astype(np.float64)


def follow(table: Table, x: np.ndarray) -> list[np.ndarray]:
    """The latents after each row; the network predicts the velocity."""
    c = {name: column(table, name) for name in COLUMNS}
    saved, history, states = np.zeros_like(x), [np.zeros_like(x)] * 3, []
    for row in range(table.used):
        d = c["c_skip"][row] * x + c["c_out"][row] * network(c["c_in"][row] * x, c["t"][row], np.tanh)
        terms = dict(zip(MIXED, (x, saved, d, *history, np.zeros_like(x)), strict=True))
        if c["push_x"][row] or c["push_d"][row]:
            history = [c["push_x"][row] * x + c["push_d"][row] * d, *history[:2]]
        x, saved = (sum(c[f"{to}_{name}"][row] * term for name, term in terms.items()) for to in ("x", "saved"))
        states.append(x)
    return states


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize(
    "raw",
    [
        EULER,
        {**EULER, "shift": 3.0},
        {**EULER, "shift": 2.5, "use_karras_sigmas": True},
        {**EULER, "use_beta_sigmas": True},
        {**EULER, "shift": 0.5, "use_exponential_sigmas": True},
        HEUN,
        {**HEUN, "shift": 3.0},
    ],
    ids=str,
)
def test_every_step_agrees_with_diffusers(raw: dict[str, Any], steps: int) -> None:
    theirs: Any = getattr(diffusers, raw["_class_name"]).from_config(raw)
    table = build_table(read_scheduler_config(raw), steps)
    theirs.set_timesteps(steps)
    x = np.random.default_rng(steps).standard_normal(8)
    ours = follow(table, table.init_scale * x)
    np.testing.assert_allclose(table.timesteps, theirs.timesteps.numpy(), rtol=1e-5)
    state = torch.from_numpy(x)
    for row, t in enumerate(theirs.timesteps):
        state = theirs.step(network(state, t, torch.tanh), t, state).prev_sample
        np.testing.assert_allclose(ours[row], state.numpy(), rtol=2e-5, atol=2e-5, err_msg=str(row))


@pytest.mark.parametrize("solver", [name for name, each in SOLVERS.items() if each.flows])
@pytest.mark.parametrize("schedule", ["", "_karras", "_simple", "_sgm_uniform", "_beta_comfyui", "_kl_optimal_comfyui"])
def test_a_straight_path_is_followed_exactly(solver: str, schedule: str) -> None:
    if solver == "ipndm_v":  # whose weights do not sum to one
        return
    table = build_table(read_scheduler_config({**EULER, "shift": 3.0}), 12, solver + schedule)
    image, noise = 0.8, -1.3
    np.testing.assert_allclose(table.alphas + table.sigmas, 1, atol=1e-12)
    assert (table.sigmas[0], table.init_scale) == pytest.approx((1, 1))
    x = table.alphas * image + table.sigmas * noise
    estimate = column(table, "c_skip") * x[:-1] + column(table, "c_out") * (noise - image)
    np.testing.assert_allclose(estimate, image, atol=1e-6)
    np.testing.assert_allclose(table.timesteps, 1000 * table.sigmas[:-1], rtol=1e-6)
    # for a velocity that is the same everywhere, every row leads to the next level
    c = {name: column(table, name) for name in COLUMNS}
    saved, history, at = 0.0, [0.0] * 3, x[0]
    for row in range(table.used):
        terms = dict(zip(MIXED, (at, saved, image, *history, 0.0), strict=True))
        if c["push_x"][row] or c["push_d"][row]:
            history = [c["push_x"][row] * at + c["push_d"][row] * image, *history[:2]]
        at, saved = (sum(c[f"{to}_{name}"][row] * term for name, term in terms.items()) for to in ("x", "saved"))
        assert at == pytest.approx(x[row + 1], abs=1e-5), row


def test_levels_are_comfyui_s() -> None:
    """`ModelSamplingSD3`, whose table is `shift * t / (1 + (shift - 1) * t)` for t from 1/1000 to 1."""
    config = read_scheduler_config({**EULER, "shift": 3.0})
    trained = 3 * np.arange(1, 1001) / 1000 / (1 + 2 * np.arange(1, 1001) / 1000)
    simple = build_table(config, 8, "euler_simple")
    np.testing.assert_allclose(simple.sigmas[:-1], [trained[-(1 + int(i * 125))] for i in range(8)])
    times = np.linspace(1, trained[0], 9)[:-1]
    np.testing.assert_allclose(build_table(config, 8, "euler_sgm_uniform").sigmas[:-1], 3 * times / (1 + 2 * times))


def test_shift_by_call() -> None:
    config = read_scheduler_config(EULER)
    shifted = build_table(read_scheduler_config({**EULER, "shift": 3.0}), 9)
    np.testing.assert_array_equal(build_table(config, 9, shift=3).rows, shifted.rows)
    np.testing.assert_allclose(build_table(config, None, sigmas=[1.0, 0.5, 0.0]).timesteps, [1000, 500])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": 0.0}, "shift=0.0: must be a number above 0"),
        ({"sigmas": [1.005, 0.0], "steps": None}, "sigmas=.*from 1 down"),
        ({"timesteps": [999, 500], "steps": None}, "timesteps=.*levels are sigmas"),
        ({"s_churn": 1.0}, "s_churn=1.0: a straight path has no churn"),
        ({"timestep_spacing": "leading"}, "timestep_spacing='leading'.*has its own levels"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_table(read_scheduler_config(EULER), **{"steps": 4, **options})


def test_schedulers_that_are_not_for_straight_paths_are_refused() -> None:
    config = read_scheduler_config(EULER)
    with pytest.raises(CheckpointError, match=re.escape("scheduler 'dpm++2m' is not for a model that was trained on")):
        build_table(config, 4, "dpm++2m")
    with pytest.raises(CheckpointError, match="'ays' is made of timesteps that a model with straight paths lacks"):
        build_table(config, 4, "euler_ays")
    with pytest.raises(InputError, match=r"shift=3\.0: is for models that were trained on straight paths"):
        build_table(read_scheduler_config({"_class_name": "EulerDiscreteScheduler"}), 4, shift=3.0)


def test_a_model_with_sixteen_channels_draws_what_diffusers_draws(tmp_path: Path) -> None:
    """From the prompt to the image, with the VAE's shift; the whole way of a folder whose scheduler is FlowMatch's.

    Once more with CFG-Zero*: the guider of diffusers, whose first step does not move.
    """
    pipe = random_pipeline(SMALL_UNET | {"in_channels": 16, "out_channels": 16}, {})
    side = {"block_out_channels": (16, 16, 32, 32), "norm_num_groups": 8, "latent_channels": 16}
    levels = {"scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae: Any = diffusers.AutoencoderKL(**blocks, **side, **levels)  # pyright: ignore
    pipe.vae = randomize(vae, seed=5)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", EULER["_class_name"]]}))
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps({**EULER, "shift": 3.0}))

    ours, params = jaxl.from_pretrained(tmp_path, dtype="float32")
    noise = np.random.default_rng(0).standard_normal((1, 8, 8, 16)).astype(np.float32)
    calls = {"negative_prompt": "a dog", "guidance_scale": 5.0, "width": 64, "height": 64}
    calls |= {"steps": 3, "latents": noise}
    got = ours.generate(params, "a cat", **calls, output="numpy")
    zero = ours.generate(params, "a cat", **calls, output="latents", cfg_zero=1, cfg_zero_steps=1).latents

    def drawn(guider: Any) -> torch.Tensor:
        theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        theirs.set_timesteps(3)
        x = torch.from_numpy(noise.transpose(0, 3, 1, 2))
        positive, negative, pooled, other = pipe.encode_prompt("a cat", negative_prompt="a dog", device="cpu")
        added = {"text_embeds": torch.cat([other, pooled]), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
        context = torch.cat([negative, positive])
        for step, t in enumerate(theirs.timesteps):
            out = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=context, added_cond_kwargs=added).sample
            guider.set_state(step=step, num_inference_steps=3, timestep=t)
            x = theirs.step(guider.forward(*reversed(out.chunk(2))).pred, t, x).prev_sample
        return x

    with torch.no_grad():
        x = drawn(ClassifierFreeGuidance(5.0))
        still = drawn(ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=1))
        image = pipe.vae.decode(x / levels["scaling_factor"] + levels["shift_factor"]).sample
    assert relative_error(zero, still.permute(0, 2, 3, 1)) < 2e-4
    assert relative_error(zero, got.latents) > 0.01
    assert relative_error(got.latents, x.permute(0, 2, 3, 1)) < 2e-4
    wanted = np.clip(image.permute(0, 2, 3, 1).numpy() / 2 + 0.5, 0, 1)
    assert np.mean(np.abs(got.images - wanted) <= 1 / 255) > 0.999
